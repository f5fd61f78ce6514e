"""ONNX exits against the second implementation in NumPy, and the full-size models against the published numbers."""

import numpy as np
import numpy_dvt
import onnx
import onnxruntime
import pytest
import recipe
import tiny
from test_parity import CASES, REFERENCE

from dvt.convert import from_reference, reference_shapes
from dvt.deploy.manifest import exit_values
from dvt.deploy.onnx.exits import OnnxWriter
from dvt.models.variants import ModelConfig

TWO_T2T = {"grid_sizes": (2, 4), "soft_splits": ((6, 4, 1), (3, 2, 1))}

CONFIGS = {
    "patch": tiny.patch_config(depth=2),
    "patch, features": tiny.patch_config(relation_reuse=False),
    "patch, relations": tiny.patch_config(feature_reuse=False),
    "patch, no reuse": tiny.patch_config(feature_reuse=False, relation_reuse=False),
    "patch, padded, grey": tiny.patch_config(image_size=30, grid_sizes=(4,), in_channels=1),
    "patch, padded like 23/23/3": tiny.patch_config(image_size=44, grid_sizes=(4, 10), embed_dim=32, num_heads=4),
    "patch, no qkv bias": tiny.patch_config(grid_sizes=(2, 4), qkv_bias=False, norm_eps=1e-2, resize_sides=(3,)),
    "t2t": tiny.t2t_config(),
    "t2t, relations, depth 2": tiny.t2t_config(feature_reuse=False, depth=2, **TWO_T2T),
    "t2t, one exit, grey": tiny.t2t_config(grid_sizes=(4,), soft_splits=((3, 2, 1),), in_channels=1, qkv_bias=True),
}


def run_exits(
    config: ModelConfig, tensors: dict[str, np.ndarray], images: np.ndarray, precision: str = "float32"
) -> list[dict[str, np.ndarray]]:
    """Outputs of every exit by role, each exit fed by the one before."""
    writer = OnnxWriter(config, from_reference(config, tensors), precision)
    results, values = [], {"images": images}
    for index in range(config.num_exits):
        content = writer.model(index).SerializeToString()
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        inputs, outputs = exit_values(config, index, precision)
        computed = session.run([value.name for value in outputs], {value.name: values[value.role] for value in inputs})
        results.append({value.role: array for value, array in zip(outputs, computed, strict=True)})
        values = {"images": images, **results[-1]}
    return results


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize(("precision", "absolute"), [("float32", 2e-5), ("float16", 2e-2)], ids=["float32", "float16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_exits_against_numpy(name: str, precision: str, absolute: float):
    config = CONFIGS[name]
    tensors, images = tiny.recipe_weights(config), tiny.images_for(config, 3)
    results = run_exits(config, tensors, images, precision)
    for index, (result, expected) in enumerate(zip(results, numpy_dvt.forward(config, tensors, images), strict=True)):
        wanted = {"probabilities": softmax(expected.logits)}
        if index < config.num_exits - 1:
            wanted |= {"features": expected.features} if config.feature_reuse else {}
            wanted |= {"relations": expected.relations} if config.relation_reuse else {}
        assert set(result) == set(wanted)
        assert np.ptp(wanted["probabilities"], axis=0).max() > 1e-3  # images differ
        for role, value in wanted.items():
            assert result[role].dtype == ("float32" if role == "probabilities" else precision)
            np.testing.assert_allclose(result[role], value, rtol=absolute, atol=absolute, err_msg=role)


def test_the_file_says_what_it_is():
    config = CONFIGS["patch"]
    model = OnnxWriter(config, from_reference(config, tiny.recipe_weights(config))).model(1)
    onnx.checker.check_model(model, full_check=True)
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 17}
    assert model.producer_name == "dvt-mindspore"
    batches = {value.type.tensor_type.shape.dim[0].dim_param for value in (*model.graph.input, *model.graph.output)}
    assert batches == {"batch"}
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_full_size_models_against_the_published_numbers(case: str):
    config = CASES[case]
    images, _ = recipe.images_and_targets()
    results = run_exits(config, recipe.weights(reference_shapes(config), config.tokenizer), images)
    probabilities = np.stack([result["probabilities"] for result in results])
    np.testing.assert_allclose(probabilities, softmax(REFERENCE[f"{case}/logits"]), rtol=2e-4, atol=1e-6)
    stride = int(REFERENCE[f"{case}/stride"])
    if config.feature_reuse and config.relation_reuse:
        for index, result in enumerate(results[:-1]):
            parts = {
                "features": result["features"],
                "relation_first": result["relations"][:, : config.num_heads],
                "relation_last": result["relations"][:, -config.num_heads :],
            }
            for part, value in parts.items():
                expected = REFERENCE[f"{case}/exit{index + 1}/{part}"]
                np.testing.assert_allclose(value.ravel()[::stride], expected, rtol=0, atol=5e-4)
