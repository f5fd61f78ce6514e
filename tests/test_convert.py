"""Names and shapes of the released PyTorch checkpoints, both ways. None of this needs PyTorch."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dvt import convert
from dvt.convert import (
    from_reference,
    load_reference_state_dict,
    parameter_shapes,
    recognise,
    reference_shapes,
    to_reference,
    to_reference_state_dict,
)
from dvt.errors import CheckpointError, ConfigError
from dvt.models.cascade import build_model
from dvt.models.variants import VARIANTS, model_config

with gzip.open(Path(__file__).parent / "reference" / "released_tensors.json.gz") as packed:
    RELEASED = {model: {name: tuple(shape) for name, shape in tensors} for model, tensors in json.load(packed).items()}

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_hidden": 64, "num_classes": 10}


def arrays(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def assert_same(left, right):
    assert list(left) == list(right)
    for name in left:
        assert left[name].dtype == right[name].dtype
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


# --------------------------------------------------------------------------------------------------- names and shapes


@pytest.mark.parametrize("model", RELEASED)
def test_names_and_shapes_are_the_released_ones_in_order(model):
    assert list(reference_shapes(model_config(model)).items()) == list(RELEASED[model].items())


@pytest.mark.parametrize("model", ["dvt_t2t_vit_12", "dvt_deit_small"])
@pytest.mark.parametrize(("features", "relations"), [(False, True), (True, False), (False, False)])
def test_reuses_switched_off(model, features, relations):
    expected = {}
    for name, shape in RELEASED[model].items():
        if (".feature_resuse_mlp." in name and not features) or (".relation_reuse_conv." in name and not relations):
            continue
        narrower = ".blocks." in name and (".norm2." in name or ".mlp.fc1.weight" in name)
        if narrower and not features and not name.startswith("less_less"):
            shape = (*shape[:-1], shape[-1] - 48)
        expected[name] = shape
    config = model_config(model, feature_reuse=features, relation_reuse=relations)
    assert list(reference_shapes(config).items()) == list(expected.items())


def test_fewer_exits_take_the_last_names():
    two = reference_shapes(model_config("dvt_t2t_vit_12", grid_sizes=(7, 14)))
    assert {name.split(".")[0] for name in two} == {"less_token", "normal_token"}
    assert not any(name.startswith("less_token.relation") for name in two)
    one = reference_shapes(model_config("dvt_deit_small", grid_sizes=(14,)))
    assert {name.split(".")[0] for name in one} == {"normal_token"}
    with pytest.raises(CheckpointError, match="at most 3 exits, not 4"):
        reference_shapes(model_config("dvt_deit_small", grid_sizes=(2, 4, 7, 14)))


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("dvt_t2t_vit_12", {}),
        ("dvt_deit_small", {}),
        ("dvt_deit_small", {"feature_reuse": False, "relation_reuse": False, "in_channels": 1}),
        ("dvt_t2t_vit_12", {"grid_sizes": (7, 14), "feature_reuse": False}),
        ("dvt_deit_small", {"grid_sizes": (2, 4), "image_size": 56}),
    ],
)
def test_our_names_and_shapes_are_those_of_the_built_model(name, overrides):
    model = build_model(name, **{**SMALL, **overrides})
    assert parameter_shapes(model.config) == {
        key: tuple(parameter.shape) for key, parameter in model.parameters_dict().items()
    }


@pytest.mark.parametrize(
    ("model", "ours", "theirs"),
    [
        ("dvt_deit_small", "exits.0.tokens.proj.weight", "less_less_token.patch_embed.proj.weight"),
        ("dvt_deit_small", "exits.1.blocks.1.attn.qkv.bias", "less_token.blocks.1.attn.qkv.bias"),
        ("dvt_deit_small", "exits.2.norm.gamma", "normal_token.norm.weight"),
        ("dvt_deit_small", "exits.2.blocks.0.norm1.beta", "normal_token.blocks.0.norm1.bias"),
        ("dvt_t2t_vit_12", "exits.0.tokens.performer1.random_features", "less_less_token.tokens_to_token.attention1.w"),
        (
            "dvt_t2t_vit_12",
            "exits.1.tokens.performer2.fc1.weight",
            "less_token.tokens_to_token.attention2.mlp.0.weight",
        ),
        ("dvt_t2t_vit_12", "exits.1.tokens.performer2.fc2.bias", "less_token.tokens_to_token.attention2.mlp.2.bias"),
        ("dvt_t2t_vit_12", "exits.2.tokens.project.weight", "normal_token.tokens_to_token.project.weight"),
        (
            "dvt_t2t_vit_12",
            "exits.1.blocks.0.feature_reuse.norm.gamma",
            "less_token.blocks.0.feature_resuse_mlp.0.weight",
        ),
        (
            "dvt_t2t_vit_12",
            "exits.2.blocks.1.feature_reuse.fc2.bias",
            "normal_token.blocks.1.feature_resuse_mlp.1.fc2.bias",
        ),
        ("dvt_t2t_vit_12", "exits.1.relation_reuse.fc1.weight", "less_token.relation_reuse_conv.0.weight"),
        ("dvt_t2t_vit_12", "exits.2.relation_reuse.fc2.bias", "normal_token.relation_reuse_conv.2.bias"),
    ],
)
def test_which_tensor_goes_where(model, ours, theirs):
    config = model_config(model, **SMALL)
    state_dict = arrays(reference_shapes(config))
    weights = from_reference(config, state_dict)
    np.testing.assert_array_equal(weights[ours].ravel(), state_dict[theirs].ravel())
    assert weights[ours].ndim <= 3


@pytest.mark.parametrize("model", ["dvt_t2t_vit_12", "dvt_deit_small"])
def test_there_and_back_is_exact(model):
    config = model_config(model, **SMALL)
    state_dict = arrays(reference_shapes(config))
    weights = from_reference(config, state_dict)
    assert {name: value.shape for name, value in weights.items()} == parameter_shapes(config)
    assert_same(to_reference(config, weights), state_dict)
    wrapped = {f"module.{name}": value for name, value in reversed(state_dict.items())}
    assert_same(from_reference(config, wrapped), weights)


def test_half_precision_is_widened():
    config = model_config("dvt_deit_small", **SMALL)
    state_dict = {name: value.astype(np.float16) for name, value in arrays(reference_shapes(config)).items()}
    weights = from_reference(config, state_dict)
    assert all(value.dtype == np.float32 for value in weights.values())
    np.testing.assert_array_equal(weights["exits.2.head.bias"], state_dict["normal_token.head.bias"])


# ------------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("name", ["dvt_t2t_vit_12", "dvt_deit_small"])
def test_filling_a_model(name):
    model = build_model(name, **SMALL)
    state_dict = arrays(reference_shapes(model.config))
    load_reference_state_dict(model, {f"module.{key}": value for key, value in state_dict.items()})
    assert_same(to_reference_state_dict(model), state_dict)
    np.testing.assert_array_equal(model.exits[1].norm.gamma.asnumpy(), state_dict["less_token.norm.weight"])


HEAD = "normal_token.head.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop(HEAD), r"1 missing \(normal_token\.head\.weight\)"),
        (lambda d: d.update(extra=d[HEAD]), r"1 unexpected \(extra\)"),
        (lambda d: d.update({HEAD: d[HEAD][:9]}), r"1 of another shape \(.*is \(9, 32\), needed \(10, 32\)\)"),
        (lambda d: d.update({HEAD: d[HEAD].T}), r"1 of another shape"),
        (lambda d: d.update({HEAD: d[HEAD] * np.nan}), r"1 with NaN"),
        (lambda d: d.update({HEAD: d[HEAD].astype(int)}), r"1 not floating-point"),
        (lambda d: d.update({f"module.{HEAD}": d[HEAD]}), r"twice"),
        (lambda d: d.clear(), r"\d+ missing \(\S+, \S+, \S+ and \d+ more\)"),
    ],
)
def test_a_state_dict_that_does_not_fit_changes_nothing(change, message):
    model = build_model("dvt_deit_small", **{**SMALL, "depth": 1})
    before = to_reference_state_dict(model)
    state_dict = arrays(reference_shapes(model.config))
    change(state_dict)
    with pytest.raises(CheckpointError, match=message):
        load_reference_state_dict(model, state_dict)
    assert_same(to_reference_state_dict(model), before)


# -------------------------------------------------------------------------------------------------- which model is it


@pytest.mark.parametrize("model", VARIANTS)
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"num_classes": 10},
        {"grid_sizes": (7, 14)},
        {"grid_sizes": (14,), "num_classes": 100},
        {"feature_reuse": False},
        {"relation_reuse": False, "feature_reuse": False},
        {"in_channels": 1},
    ],
)
def test_models_are_recognised(model, overrides):
    config = model_config(model, **overrides)
    assert recognise(reference_shapes(config)) == config
    assert recognise(reference_shapes(config), name=model) == config


def test_another_image_size_is_recognised():
    config = model_config("dvt_deit_small", image_size=384, grid_sizes=(12, 24))
    assert recognise(reference_shapes(config)) == config


@pytest.mark.parametrize(
    ("shapes", "name", "error", "message"),
    [
        (RELEASED["dvt_deit_small"], "dvt_deit_smal", ConfigError, "did you mean 'dvt_deit_small'"),
        (RELEASED["dvt_deit_small"], "dvt_t2t_vit_12", CheckpointError, "not hold dvt_t2t_vit_12, but dvt_deit_small"),
        (RELEASED["dvt_t2t_vit_14"], "dvt_t2t_vit_12", CheckpointError, "not hold dvt_t2t_vit_12, but dvt_t2t_vit_14"),
        (
            {"cls_token": (1, 1, 384), "blocks.0.norm1.weight": (384,)},
            None,
            CheckpointError,
            "another network.*init_checkpoint",
        ),
        ({"less_token.cls_token": (1, 1, 384)}, None, CheckpointError, "another network"),
        ({"normal_token.cls_token": (1, 1, 384)}, None, CheckpointError, "missing or misshapen.*pos_embed"),
        (
            reference_shapes(model_config("dvt_deit_small", **SMALL)),
            None,
            CheckpointError,
            "no known variant.*embed_dim 32",
        ),
        (
            {**RELEASED["dvt_t2t_vit_12"], "normal_token.pos_embed": (1, 257, 256)},
            None,
            CheckpointError,
            "cannot be built",
        ),
    ],
)
def test_what_is_not_recognised(shapes, name, error, message):
    with pytest.raises(error, match=message):
        recognise(shapes, "FILE", name)


def test_the_mapping_imports_no_framework():
    code = (
        "import sys, dvt.convert as c, dvt.models.variants as v; c.reference_shapes(v.model_config('dvt_deit_small'));"
        "sys.exit('mindspore' in sys.modules or 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(convert.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
