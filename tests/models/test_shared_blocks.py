"""Exits with block weights in common: names, numbers, what they compute and learn, files."""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import tiny
from mindspore import Tensor

from dvt.checkpoint import load_model, load_weights, save_checkpoint, transfer
from dvt.convert import parameter_shapes, to_reference_state_dict, with_shared
from dvt.cost import exit_parameters, parameter_count
from dvt.errors import CheckpointError, ConfigError
from dvt.models.cascade import build_from_config
from dvt.models.variants import ModelConfig, model_config
from dvt.training.loss import ExitLosses

SETTINGS = {
    "patch": tiny.patch_config(share_blocks=True),
    "t2t": tiny.t2t_config(share_blocks=True),
    "no feature reuse": tiny.patch_config(share_blocks=True, feature_reuse=False),
}
TWO_EXITS = {"grid_sizes": (2, 3), "resize_sides": None}


def weights_of(model) -> dict[str, np.ndarray]:
    return {name: parameter.asnumpy().copy() for name, parameter in model.parameters_dict().items()}


def unshared(config: ModelConfig) -> ModelConfig:
    return ModelConfig.from_dict(config.to_dict() | {"share_blocks": False})


@pytest.mark.parametrize("config", SETTINGS.values(), ids=list(SETTINGS))
def test_parameters_are_there_once(config: ModelConfig):
    model = build_from_config(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.parameters_dict().items()}
    assert shapes == parameter_shapes(config)
    assert parameter_count(config) == sum(parameter.size for parameter in model.get_parameters())
    assert len(model.trainable_params()) == len({id(parameter) for parameter in model.trainable_params()})
    block = parameter_count(tiny.patch_config()) if config.tokenizer == "patch" else parameter_count(tiny.t2t_config())
    assert sum(exit_parameters(config)) == parameter_count(config) < block
    assert "exits.1.blocks.0.attn.qkv.weight" not in shapes
    assert ("exits.1.blocks.0.mlp.fc1.weight" in shapes) == config.feature_reuse


def test_a_third_of_a_wide_model_is_shared():
    sizes = {"image_size": 54, "grid_sizes": (3, 6, 9), "embed_dim": 64, "depth": 4, "num_heads": 2, "mlp_hidden": 128}
    whole = parameter_count(model_config("dvt_deit_small", num_classes=10, **sizes))
    shared = parameter_count(model_config("dvt_deit_small", num_classes=10, share_blocks=True, **sizes))
    assert 0.6 < shared / whole < 0.7


def test_it_computes_and_learns_what_equal_blocks_do(pynative_mode: None):
    """Against a model whose exits have the same weights of their own: the gradients of these add up."""
    config = tiny.patch_config(share_blocks=True, drop_path_rate=0.0, **TWO_EXITS)
    images, labels = Tensor(tiny.images_for(config)), Tensor(np.array([1, 4], np.int32))
    model, other = build_from_config(config), build_from_config(unshared(config))
    weights = {name: value + 0.1 for name, value in weights_of(model).items()}
    load_weights(model, weights)
    load_weights(other, with_shared(config, weights))
    results = []
    for each in (model, other):
        losses, gradients = ms.value_and_grad(ExitLosses(each), None, each.trainable_params())(images, labels)
        names = [parameter.name for parameter in each.trainable_params()]
        results.append((losses.asnumpy(), dict(zip(names, (each.asnumpy() for each in gradients), strict=True))))
    (losses, shared), (expected, separate) = results
    np.testing.assert_allclose(losses, expected, atol=1e-6)
    for name, gradient in shared.items():
        parts = [separate[name]]
        borrowed = name.replace("exits.0.", "exits.1.")
        if borrowed not in shared:
            parts.append(separate[borrowed])
        np.testing.assert_allclose(gradient, np.sum(parts, axis=0), atol=1e-5, err_msg=name)
    assert len(separate) > len(shared)


def test_files(tmp_path: Path):
    config = tiny.patch_config(share_blocks=True, **TWO_EXITS)
    model = build_from_config(config)
    path = tmp_path / "shared.ckpt"
    save_checkpoint(path, model)
    loaded, checkpoint = load_model(path)
    assert checkpoint.model.share_blocks
    for name, value in weights_of(model).items():
        np.testing.assert_array_equal(loaded.parameters_dict()[name].asnumpy(), value)
    with pytest.raises(CheckpointError, match=r"share_blocks.*cannot be converted"):
        to_reference_state_dict(model)

    # Weights to start from, in both directions.
    separate = transfer.initial_weights(unshared(config), path).weights
    name = "blocks.0.attn.qkv.weight"
    np.testing.assert_array_equal(separate[f"exits.1.{name}"], checkpoint.weights[f"exits.0.{name}"])
    other = build_from_config(unshared(config))
    save_checkpoint(tmp_path / "separate.ckpt", other)
    initial = transfer.initial_weights(config, tmp_path / "separate.ckpt")
    transfer.apply(model, initial)
    np.testing.assert_array_equal(weights_of(model)[f"exits.0.{name}"], weights_of(other)[f"exits.0.{name}"])


def test_no_number_is_a_switch():
    with pytest.raises(ConfigError, match=r"model\.share_blocks is 1; it must be true or false"):
        tiny.patch_config(share_blocks=1)
