"""Properties of a built model: independence of images, modes, stochastic depth, initialisation, parameters."""

import mindspore as ms
import numpy as np
import pytest
import tiny
from mindspore import Tensor

import dvt
from dvt.cost import parameter_count
from dvt.errors import ConfigError
from dvt.models.cascade import AllExits, build_from_config
from dvt.models.variants import ModelConfig

ONE_T2T = tiny.t2t_config(grid_sizes=(4,), soft_splits=((3, 2, 1),))


def logits_of(model, images: np.ndarray) -> np.ndarray:
    """(K, B, classes)."""
    return np.stack([part.asnumpy() for part in model(Tensor(images))])


def seeded(config: ModelConfig, seed: int = 3) -> dict[str, np.ndarray]:
    ms.set_seed(seed)
    return {name: value.asnumpy() for name, value in build_from_config(config).parameters_dict().items()}


# ------------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("config", [tiny.patch_config(), ONE_T2T], ids=["patch", "t2t"])
def test_an_image_does_not_depend_on_its_batch(config: ModelConfig, graph_mode: None):
    model = tiny.filled(config)
    images, others = tiny.images_for(config, 4), 3 * tiny.images_for(config, 4, seed=6)
    logits = logits_of(model, images)
    others[2] = images[1]
    np.testing.assert_allclose(logits_of(model, others)[:, 2], logits[:, 1], atol=1e-5)
    np.testing.assert_allclose(logits_of(model, images[::-1].copy())[:, ::-1], logits, atol=1e-5)
    assert np.abs(logits[:, 0] - logits[:, 1]).max() > 0.1


def test_graph_and_pynative_mode_agree():
    config = tiny.patch_config(grid_sizes=(2, 4))
    model, images = tiny.filled(config), tiny.images_for(config)
    results, before = [], ms.get_context("mode")
    for mode in (ms.GRAPH_MODE, ms.PYNATIVE_MODE):
        ms.set_context(mode=mode)
        results.append(logits_of(model, images))
    ms.set_context(mode=before)
    np.testing.assert_allclose(results[0], results[1], atol=1e-5)


def test_one_cell_answers_for_all_exits(pynative_mode: None):
    model = tiny.filled(tiny.patch_config())
    images = tiny.images_for(model.config)
    logits = logits_of(model, images)
    np.testing.assert_allclose(AllExits(model, probabilities=False)(Tensor(images)).asnumpy(), logits, atol=1e-6)
    powers = np.exp(logits - logits.max(axis=2, keepdims=True))
    probabilities = AllExits(model)(Tensor(images)).asnumpy()
    np.testing.assert_allclose(probabilities, powers / powers.sum(axis=2, keepdims=True), atol=1e-6)


# --------------------------------------------------------------------------------------------------- stochastic depth


def test_stochastic_depth_acts_in_training_only(graph_mode: None):
    config = tiny.patch_config(grid_sizes=(2,), depth=3, drop_path_rate=0.5)
    model = tiny.filled(config)
    images = np.repeat(tiny.images_for(config, 1), 512, axis=0)
    calm = logits_of(model, images)
    np.testing.assert_allclose(calm, np.repeat(calm[:, :1], 512, axis=1), atol=1e-5)
    model.set_train(True)
    # Attention and MLP of two blocks, each dropped or not independently of the others: 2^4 results.
    assert len(np.unique(logits_of(model, images)[0].round(3), axis=0)) == 16
    model.set_train(False)
    np.testing.assert_array_equal(logits_of(model, images), calm)


def test_stochastic_depth_rises_linearly():
    for exit_ in tiny.filled(tiny.patch_config(depth=3, drop_path_rate=0.8)).exits:
        assert exit_.stochastic_depth.rates == pytest.approx([0.0, 0.4, 0.8])


def test_training_mode_without_stochastic_depth_is_evaluation_mode(pynative_mode: None):
    config = tiny.patch_config(grid_sizes=(2, 4), drop_path_rate=0.0)
    model, images = tiny.filled(config), tiny.images_for(config)
    calm = logits_of(model, images)
    model.set_train(True)
    np.testing.assert_allclose(logits_of(model, images), calm, atol=1e-6)


# ------------------------------------------------------------------------------------------------------ initialisation


def test_initialisation():
    config = tiny.t2t_config(embed_dim=128, num_heads=4, mlp_hidden=256, depth=2, qkv_bias=True)
    weights = seeded(config)
    dense = []
    for name, value in weights.items():
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "gamma":
            assert (value == 1).all(), name
        elif leaf == "beta":
            assert (value == 0).all(), name
        elif ".relation_reuse." in name:
            continue
        elif leaf == "bias":
            assert (value == 0).all(), name
        elif leaf == "weight" or leaf == "cls_token":
            dense.append(value.ravel())
            spread = 0.02 / np.sqrt(2 * value.size)  # of the standard deviation of so many numbers
            assert abs(value.std() - 0.02) < 5 * spread, name
            assert abs(value.mean()) < 5 * 0.02 / np.sqrt(value.size), name
    everything = np.concatenate(dense)
    assert abs(everything.std() - 0.02) < 2e-4
    assert 0.06 < np.abs(everything).max() < 0.16


@pytest.mark.parametrize(
    ("config", "name", "fan_in"),
    [
        (tiny.patch_config(embed_dim=64), "exits.1.tokens.proj", 3 * 8 * 8),
        (tiny.t2t_config(depth=4), "exits.1.relation_reuse.fc1", 8),
        (tiny.t2t_config(depth=4), "exits.2.relation_reuse.fc2", 24),
    ],
)
def test_convolutions_are_uniform(config: ModelConfig, name: str, fan_in: int):
    weights, bound = seeded(config), fan_in**-0.5
    for leaf in ("weight", "bias"):
        value = weights[f"{name}.{leaf}"]
        assert np.abs(value).max() <= bound
        assert np.abs(value).max() > 0.7 * bound
    weight = weights[f"{name}.weight"]
    assert weight.std() == pytest.approx(bound / np.sqrt(3), rel=0.15)


def test_learned_positions_are_truncated_normal():
    positions = seeded(tiny.patch_config(embed_dim=128, num_heads=4))["exits.2.pos_embed"]
    assert positions.std() == pytest.approx(0.02, rel=0.1)


def test_weights_that_are_loaded_next_are_not_drawn():
    config = tiny.t2t_config()
    model = build_from_config(config, initialised=False)
    assert model.config == config
    weights = {name: value.asnumpy() for name, value in model.parameters_dict().items()}
    assert {name: value.shape for name, value in weights.items()} == {n: v.shape for n, v in seeded(config).items()}
    assert not any(
        weights[f"exits.1.{name}"].any() for name in ("cls_token", "head.weight", "blocks.0.attn.qkv.weight")
    )


def test_another_spread_of_the_initial_weights():
    narrow, wide = (seeded(tiny.patch_config(embed_dim=128, num_heads=4, init_std=std)) for std in (0.02, 0.06))
    for name in ("exits.0.head.weight", "exits.1.blocks.0.attn.qkv.weight", "exits.2.pos_embed"):
        assert wide[name].std() == pytest.approx(3 * narrow[name].std(), rel=0.15), name
    np.testing.assert_array_equal(wide["exits.0.norm.gamma"], 1)


def test_random_features_are_orthogonal():
    weights = seeded(tiny.t2t_config())
    features = [value for name, value in weights.items() if name.endswith("random_features")]
    assert len(features) == 6
    for value in features:
        assert value.shape == (32, 64)
        np.testing.assert_allclose(value @ value.T, 32 * np.eye(32), atol=1e-3)


def test_each_performer_has_its_own_random_features():
    weights = seeded(tiny.t2t_config())
    features = [value for name, value in weights.items() if name.endswith("random_features")]
    assert all(np.abs(a - b).max() > 0.1 for i, a in enumerate(features) for b in features[:i])


@pytest.mark.parametrize("make", [tiny.patch_config, tiny.t2t_config])
def test_the_seed_fixes_the_weights(make):
    first, again, other = seeded(make()), seeded(make()), seeded(make(), seed=4)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["exits.0.cls_token"], other["exits.0.cls_token"])
    if "exits.0.tokens.performer1.random_features" in first:
        name = "exits.0.tokens.performer1.random_features"
        assert not np.array_equal(first[name], other[name])


# ---------------------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    "config",
    [
        tiny.patch_config(),
        tiny.patch_config(feature_reuse=False, relation_reuse=False, in_channels=1),
        tiny.t2t_config(relation_reuse=False),
        ONE_T2T,
    ],
)
def test_parameters_are_those_that_are_counted(config: ModelConfig):
    model = build_from_config(config)
    assert sum(parameter.size for parameter in model.get_parameters()) == parameter_count(config)
    names = [parameter.name for parameter in model.get_parameters()]
    assert len(names) == len(set(names))


def test_the_public_names():
    sizes = {key: value for key, value in tiny.SIZES.items() if key != "num_classes"}
    model = dvt.build_model("dvt_deit_small", num_classes=5, **tiny.PATCH, **sizes)
    assert model.config.num_classes == 5
    assert len(model.exits) == 3
    assert dvt.list_models() == ["dvt_t2t_vit_12", "dvt_t2t_vit_14", "dvt_deit_small", "dvt_deit_tiny"]
    with pytest.raises(ConfigError, match="did you mean 'dvt_deit_small'"):
        dvt.build_model("dvt_deit_smal")
