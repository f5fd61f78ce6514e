"""The table of variants and the checks of a model's configuration: every refusal names the key and what to do."""

import dataclasses
import json
from typing import Any

import pytest

from dvt.errors import ConfigError
from dvt.models.variants import (
    VARIANTS,
    ModelConfig,
    list_models,
    model_config,
    patch_geometry,
    split_sides,
)

PATCH, T2T = "dvt_deit_small", "dvt_t2t_vit_12"
SPLITS = [[6, 4, 1], [5, 3, 1], [3, 2, 1]]  # 32 pixels to grids of 2, 3 and 4

# The published sizes of models and backbones: width, layers, heads, MLP, bias, epsilon.
TABLE = {
    "dvt_t2t_vit_12": (256, 12, 4, 512, False, 1e-5),
    "dvt_t2t_vit_14": (384, 14, 6, 1152, False, 1e-5),
    "dvt_deit_small": (384, 12, 6, 1536, True, 1e-6),
    "dvt_deit_tiny": (192, 12, 3, 768, True, 1e-6),
}


@pytest.mark.parametrize("name", TABLE)
def test_published_sizes(name: str):
    config = model_config(name)
    keys = ("embed_dim", "depth", "num_heads", "mlp_hidden", "qkv_bias", "norm_eps")
    assert tuple(getattr(config, key) for key in keys) == TABLE[name]
    assert (config.num_classes, config.image_size, config.in_channels, config.drop_path_rate) == (1000, 224, 3, 0.1)
    assert (config.grid_sizes, config.resize_sides) == ((7, 10, 14), (14, 20))
    assert config.feature_reuse and config.relation_reuse
    assert [config.num_tokens(k) for k in range(3)] == [50, 101, 197]
    assert [config.resize_side(k) for k in (1, 2)] == [14, 20]


def test_all_variants_are_listed():
    assert list_models() == list(TABLE) == list(VARIANTS)


def test_published_tokens():
    config = model_config(T2T)
    assert [config.soft_splits[k] for k in range(3)] == [(14, 8, 3), (11, 6, 5), (7, 4, 2)]
    assert [split_sides(224, split)[0] for split in config.soft_splits] == [28, 38, 56]
    assert [split_sides(224, split)[-1] for split in config.soft_splits] == [7, 10, 14]
    assert [patch_geometry(224, grid) for grid in (7, 10, 14)] == [(32, 0), (23, 3), (16, 0)]


def test_the_resize_of_other_pairs():
    assert model_config(PATCH, grid_sizes=(7, 14)).resize_sides == (20,)
    assert model_config(PATCH, image_size=54, grid_sizes=(3, 6, 9)).resize_sides == (6, 12)
    assert model_config(PATCH, grid_sizes=(14,)).resize_sides == ()
    assert model_config(PATCH, grid_sizes=[7, 14], resize_sides=[28]).resize_sides == (28,)


def test_none_means_as_in_the_table():
    assert model_config(T2T, embed_dim=None, grid_sizes=None, soft_splits=None) == model_config(T2T)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        *((name, {}) for name in TABLE),
        (T2T, {"image_size": 32, "grid_sizes": (2, 3, 4), "soft_splits": SPLITS}),
        (PATCH, {"image_size": 54, "grid_sizes": [3, 6, 9], "in_channels": 1, "relation_reuse": False}),
        (PATCH, {"grid_sizes": (14,), "drop_path_rate": 0.0}),
        (T2T, {"grid_sizes": (7, 14), "resize_sides": (28,), "feature_reuse": False}),
    ],
)
def test_a_configuration_survives_json(name: str, overrides: dict[str, Any]):
    config = model_config(name, **overrides)
    values = config.to_dict()
    again = ModelConfig.from_dict(json.loads(json.dumps(values)))
    assert again == config and hash(again) == hash(config)
    assert again.to_dict() == values
    assert set(values) == {field.name for field in dataclasses.fields(ModelConfig)}


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        model_config(PATCH).depth = 3


REFUSED = [
    # Names and keys.
    ("dvt_deit_smal", {}, r"unknown model 'dvt_deit_smal'; did you mean 'dvt_deit_small'\?"),
    (
        "resnet",
        {},
        r"unknown model 'resnet'; known models: dvt_t2t_vit_12, dvt_t2t_vit_14, dvt_deit_small, dvt_deit_tiny",
    ),
    (PATCH, {"embed_dims": 4}, r"unknown model key 'embed_dims'; did you mean 'embed_dim'\?"),
    (PATCH, {"grid_size": (7,)}, r"unknown model key 'grid_size'; did you mean 'grid_sizes'\?"),
    (PATCH, {"zzz": 1}, r"unknown model key 'zzz'; known keys: .*depth.*resize_sides"),
    (PATCH, {"tokenizer": "conv"}, r"model\.tokenizer is 'conv'; it must be one of patch, t2t"),
    # Numbers.
    *(
        (PATCH, {key: value}, rf"model\.{key} is {value!r}; it must be a whole number of at least 1")
        for key, value in [
            ("embed_dim", 0),
            ("depth", -1),
            ("depth", 2.5),
            ("num_heads", True),
            ("mlp_hidden", "64"),
            ("num_classes", 0),
            ("image_size", 0),
            ("in_channels", 0),
        ]
    ),
    (PATCH, {"num_heads": 5}, r"model\.embed_dim 384 is not a multiple of model\.num_heads 5"),
    (T2T, {"embed_dim": 15, "num_heads": 5}, r"model\.embed_dim 15 must be even"),
    (
        PATCH,
        {"drop_path_rate": 1.0},
        r"model\.drop_path_rate is 1\.0; it must be a number of at least 0 and at most 0\.999",
    ),
    (PATCH, {"drop_path_rate": -0.1}, r"model\.drop_path_rate is -0\.1"),
    (PATCH, {"drop_path_rate": float("nan")}, r"model\.drop_path_rate is nan"),
    (PATCH, {"norm_eps": 0.0}, r"model\.norm_eps is 0\.0; it must be a number of at least 1e-12"),
    (PATCH, {"init_std": 0.0}, r"model\.init_std is 0\.0; it must be a number above 0"),
    (PATCH, {"norm_eps": float("nan")}, r"model\.norm_eps is nan"),
    # Grids.
    (PATCH, {"grid_sizes": ()}, r"model\.grid_sizes is \(\); it must be a list .* such as \[7, 10, 14\]"),
    (PATCH, {"grid_sizes": (7, 7)}, r"model\.grid_sizes \[7, 7\] must rise from exit to exit: \[7, 10, 14\]"),
    (PATCH, {"grid_sizes": (14, 7)}, r"model\.grid_sizes \[14, 7\] must rise"),
    (PATCH, {"grid_sizes": 7}, r"model\.grid_sizes is 7; it must be a list of whole numbers"),
    (PATCH, {"grid_sizes": (7, 10.5)}, r"model\.grid_sizes is \(7, 10\.5\); it must be a list of whole numbers"),
    (
        PATCH,
        {"grid_sizes": (0, 7)},
        r"model\.grid_sizes is \(0, 7\); it must be a list of whole numbers, each of at least 1",
    ),
    (PATCH, {"grid_sizes": (-7, 7)}, r"model\.grid_sizes is \(-7, 7\)"),
    (
        PATCH,
        {"image_size": 225},
        r"10x10 grid cannot be cut from image_size 225.*image_size such as 230 or another grid",
    ),
    (PATCH, {"image_size": 6}, r"7x7 grid needs an image_size of at least 7"),
    # The resize.
    (PATCH, {"resize_sides": (14,)}, r"model\.resize_sides is \[14\]; 3 exits need 2 sides, one per hand-over"),
    (PATCH, {"resize_sides": (14, 9)}, r"model\.resize_sides is \[14, 9\]; .* at least as large as .*, \[7, 10\]"),
    (PATCH, {"resize_sides": "ab"}, r"model\.resize_sides is 'ab'; it must be a list of whole numbers"),
    # Soft splits.
    (
        T2T,
        {"image_size": 192},
        r"model\.soft_splits is needed for image_size 192.*one \[kernel, stride, padding\] per exit",
    ),
    (T2T, {"grid_sizes": (7, 12)}, r"model\.soft_splits is needed for image_size 224 with grid_sizes \[7, 12\]"),
    (PATCH, {"soft_splits": SPLITS}, r"model\.soft_splits is for T2T models"),
    (T2T, {"soft_splits": SPLITS[:2]}, r"model\.soft_splits is .* 3 triples \[kernel, stride, padding\]"),
    (T2T, {"soft_splits": [[14, 8], [11, 6], [7, 4]]}, r"3 triples"),
    (T2T, {"soft_splits": 3}, r"model\.soft_splits is 3; it must be a list of lists of whole numbers"),
    (T2T, {"soft_splits": [[14, 0, 3], [11, 6, 5], [7, 4, 2]]}, r"model\.soft_splits is \[\[14, 0, 3\], .*stride >= 1"),
    (T2T, {"soft_splits": [[3, 8, 3], [11, 6, 5], [7, 4, 2]]}, r"soft_splits is \[\[3, 8, 3\], .*kernel > padding"),
    (
        T2T,
        {"soft_splits": [[14, 8, 3], [11, 6, 5], [7, 5, 2]]},
        r"model\.soft_splits \[7, 5, 2\] turns image_size 224 into a \d+x\d+ grid, not the 14x14 of model\.grid_sizes",
    ),
]


@pytest.mark.parametrize(("name", "overrides", "message"), REFUSED)
def test_refusals(name: str, overrides: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        model_config(name, **overrides)


def test_a_suggested_image_size_works():
    with pytest.raises(ConfigError, match="such as 230"):
        patch_geometry(225, 10)
    assert patch_geometry(230, 10) == (23, 0)


def test_from_dict_is_strict():
    values = model_config(PATCH).to_dict()
    with pytest.raises(ConfigError, match="did you mean 'depth'"):
        ModelConfig.from_dict({**values, "dept": 3})
    with pytest.raises(ConfigError, match="lacks tokenizer, depth"):
        ModelConfig.from_dict({key: value for key, value in values.items() if key not in ("depth", "tokenizer")})
