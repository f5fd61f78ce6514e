"""Exits that answer with the mean of the probabilities so far: the model, stopping early, and exported files."""

from pathlib import Path

import numpy as np
import pytest
import tiny
from mindspore import Tensor

from dvt.convert import load_reference_state_dict, to_reference_state_dict
from dvt.deploy import Cascade, export_bundle
from dvt.deploy.manifest import exit_values
from dvt.early_exit.classifier import AdaptiveClassifier, ExitCell
from dvt.errors import CheckpointError
from dvt.models.cascade import DVT, build_from_config
from dvt.models.cost import handed_on_shapes
from dvt.models.variants import ModelConfig


def pair(**overrides: object) -> tuple[DVT, DVT, np.ndarray]:
    """A model that averages, the same that does not, and images."""
    configs = [tiny.patch_config(average_exits=average, drop_path_rate=0.0, **overrides) for average in (True, False)]
    averaging, plain = (build_from_config(config) for config in configs)
    weights = tiny.recipe_weights(configs[1])
    for model in (averaging, plain):
        load_reference_state_dict(model, weights)
        model.set_train(False)
    return averaging, plain, tiny.images_for(configs[0], 9)


def running_means(all_logits: list[np.ndarray]) -> np.ndarray:
    """Independent of the model: (K, B, C)."""
    powers = np.exp(np.stack(all_logits).astype(np.float64))
    probabilities = powers / powers.sum(axis=2, keepdims=True)
    return np.cumsum(probabilities, axis=0) / np.arange(1, len(powers) + 1)[:, None, None]


def test_answers_are_means_in_evaluation_alone(pynative_mode: None):
    averaging, plain, images = pair()
    own = [logits.asnumpy() for logits in plain(Tensor(images))]
    means = running_means(own)
    for logits, mean in zip(averaging(Tensor(images)), means, strict=True):
        np.testing.assert_allclose(np.exp(logits.asnumpy()), mean, atol=1e-6)
    np.testing.assert_array_equal(averaging(Tensor(images))[0].asnumpy().argmax(axis=1), own[0].argmax(axis=1))
    averaging.set_train(True)
    for logits, expected in zip(averaging(Tensor(images)), own, strict=True):
        np.testing.assert_allclose(logits.asnumpy(), expected, atol=1e-5)

    classifier = AdaptiveClassifier(averaging, batch_sizes=[4])
    np.testing.assert_allclose(classifier.all_exits(images), means, atol=1e-5)
    confidence = means.max(axis=2)
    first = np.median(confidence[0])
    thresholds = [first, np.median(confidence[1, confidence[0] < first]), 0.0]
    wanted = (confidence >= np.array(thresholds)[:, None]).argmax(axis=0)
    assert len(set(wanted)) == 3
    latency = classifier.predict(images, thresholds)
    for found in ((latency.exit_index, latency.probabilities), _joined(classifier, images, thresholds)):
        np.testing.assert_array_equal(found[0], wanted)
        np.testing.assert_allclose(found[1], means[wanted, np.arange(9)], atol=1e-5)


def _joined(classifier: AdaptiveClassifier, images: np.ndarray, thresholds: list[float]) -> tuple:
    """Of throughput mode: (exit index, probabilities)."""
    parts = list(classifier.predict_batches(iter([images[:4], images[4:]]), thresholds, 4))
    return tuple(np.concatenate([getattr(part, key) for part in parts]) for key in ("exit_index", "probabilities"))


@pytest.mark.parametrize(
    ("format_", "backend"), [("ONNX", "onnxruntime"), pytest.param("MINDIR", "mindspore", marks=pytest.mark.slow)]
)
def test_bundles_average_too(format_: str, backend: str, tmp_path: Path, graph_mode: None):
    """Also with shared blocks, which are written into each exit's file."""
    averaging, _, images = pair(grid_sizes=(2, 3))
    shared = ModelConfig.from_dict(averaging.config.to_dict() | {"share_blocks": True})
    model = build_from_config(shared)
    model.set_train(False)
    export_bundle(model, tmp_path, [format_], [0.5, 0.0])
    expected = AdaptiveClassifier(model, batch_sizes=[9]).all_exits(images)
    with Cascade(tmp_path, backend) as cascade:
        inputs = [value.role for value in cascade.manifest.graphs[format_].exits[1].inputs]
        assert inputs == ["images", "features", "relations", "probabilities"]
        np.testing.assert_allclose(cascade.all_exits(images), expected, atol=1e-5)
        cut = float(np.median(expected[0].max(axis=1)))
        found = cascade.predict(images, [cut, 0.0])
        later = found.exit_index == 1
        assert 0 < later.sum() < 9
        np.testing.assert_allclose(found.probabilities[later], expected[1][later], atol=1e-5)


@pytest.mark.parametrize(
    "reuse",
    [{}, {"feature_reuse": False}, {"relation_reuse": False}, {"feature_reuse": False, "relation_reuse": False}],
)
def test_answers_come_last_of_what_is_handed_on(reuse: dict):
    config = tiny.patch_config(average_exits=True, grid_sizes=(2, 3), **reuse)
    names = ExitCell(build_from_config(config), 1).input_names
    assert names == tuple(value.role for value in exit_values(config, 1)[0]) and names[-1] == "probabilities"


def test_conversion_to_pytorch_is_refused():
    model = build_from_config(tiny.patch_config(average_exits=True, grid_sizes=(2, 3)))
    with pytest.raises(CheckpointError, match="average_exits"):
        to_reference_state_dict(model)


def test_answers_count_as_handed_on():
    plain, averaging = (tiny.patch_config(average_exits=average) for average in (False, True))
    assert handed_on_shapes(averaging, 0) == handed_on_shapes(plain, 0) | {"probabilities": (averaging.num_classes,)}
