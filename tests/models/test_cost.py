"""Costs and parameter counts against the published tables, and against counting by hand for small models."""

import subprocess
import sys
from pathlib import Path

import pytest

from dvt.cost import (
    cumulative_gmacs,
    describe_all,
    describe_model,
    exit_macs,
    exit_parameters,
    parameter_count,
)
from dvt.errors import ConfigError
from dvt.models.variants import list_models, model_config

NO_REUSE = {"feature_reuse": False, "relation_reuse": False}

# Cumulative GMACs per exit at 224x224 with 1000 classes: with both reuses, without any.
PUBLISHED = {
    "dvt_t2t_vit_12": ([0.4725, 1.4622, 3.4968], [0.4725, 1.3707, 3.1454]),
    "dvt_t2t_vit_14": ([1.207, 3.840, 9.327], [1.207, 3.611, 8.411]),
    "dvt_deit_small": ([1.145, 3.656, 8.843], [1.145, 3.450, 8.058]),
}
PARAMETERS = {"dvt_t2t_vit_12": 22.46, "dvt_t2t_vit_14": 67.88, "dvt_deit_small": 70.44}  # millions


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_costs(name: str):
    with_reuse, without = PUBLISHED[name]
    assert cumulative_gmacs(name) == pytest.approx(with_reuse, rel=1e-3)
    assert cumulative_gmacs(name, **NO_REUSE) == pytest.approx(without, rel=1e-3)


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_parameter_counts(name: str):
    assert round(parameter_count(name) / 1e6, 2) == PARAMETERS[name]


def test_every_model_is_in_the_tables_or_counted_by_hand():
    assert set(PUBLISHED) == set(PARAMETERS) == set(list_models()) - {"dvt_deit_tiny"}


def test_deit_tiny_is_the_published_backbone():
    alone = model_config("dvt_deit_tiny", grid_sizes=(14,))
    assert parameter_count(alone) == 5_717_416  # of the released DeiT-Ti weights
    assert cumulative_gmacs(alone) == pytest.approx([1.26], abs=0.005)


def test_deit_tiny_by_hand():
    """Width 192, 12 layers with 3 heads, MLP 768: every weight and product of the three exits written out."""
    layers, maps, pixels = 12, 12 * 3, {7: 32 * 32 * 3, 10: 23 * 23 * 3, 14: 16 * 16 * 3}
    # Grid, its tokens, those of the exit before, side of the grid in between.
    rows = [(7, 50, 0, 0), (10, 101, 50, 14), (14, 197, 101, 20)]
    weights, macs = [], []
    for grid, n, before, side in rows:
        joined = 192 + 48 if before else 192
        block = 2 * 192 + (192 + 1) * 576 + (192 + 1) * 192  # norm, qkv, projection
        block += 2 * joined + (joined + 1) * 768 + (768 + 1) * 192  # norm, MLP
        work = 5 * n * 192 + n * 192 * 576 + 2 * 3 * n * n * 64 + n * 192 * 192
        work += 5 * n * joined + n * joined * 768 + n * 768 * 192
        count = (pixels[grid] + 1) * 192 + (1 + n) * 192 + 2 * 192 + (192 + 1) * 1000
        total = grid**2 * pixels[grid] * 192 + 5 * n * 192 + 192 * 1000
        if before:
            block += 2 * 192 + (192 + 1) * 128 + (128 + 1) * 48
            work += 5 * before * 192 + before * 192 * 128 + before * 128 * 48 + 2 * 48 * side**2
            count += (36 + 1) * 108 + (108 + 1) * 36
            total += before**2 * (36 * 108 + 108 * 36) + 2 * maps * side**2 * (before + n)
        weights.append(count + layers * block)
        macs.append(total + layers * work)
    config = model_config("dvt_deit_tiny")
    assert exit_parameters(config) == weights and sum(weights) == parameter_count(config) == 19_358_808
    assert [sum(exit_macs(config, k).values()) for k in range(3)] == macs
    assert cumulative_gmacs(config) == pytest.approx([0.307, 1.009, 2.482], abs=5e-4)


@pytest.mark.parametrize("name", list_models())
def test_each_reuse_costs_its_share(name: str):
    both, none = cumulative_gmacs(name), cumulative_gmacs(name, **NO_REUSE)
    features = cumulative_gmacs(name, relation_reuse=False)
    relations = cumulative_gmacs(name, feature_reuse=False)
    assert both[0] == none[0] == features[0] == relations[0]
    for k in (1, 2):
        assert none[k] < min(features[k], relations[k])
        assert features[k] + relations[k] - none[k] == pytest.approx(both[k])


@pytest.mark.parametrize("name", list_models())
def test_fewer_exits(name: str):
    three = model_config(name, **NO_REUSE)
    alone = [cumulative_gmacs(name, grid_sizes=(grid,)) for grid in (7, 10, 14)]
    assert all(len(costs) == 1 for costs in alone)
    steps = [sum(exit_macs(three, k).values()) / 1e9 for k in range(3)]
    assert [costs[0] for costs in alone] == pytest.approx(steps)
    two = cumulative_gmacs(name, grid_sizes=(7, 14), **NO_REUSE)
    assert two == pytest.approx([steps[0], steps[0] + steps[2]])
    # The finer the grid before, the dearer its relations are to mix; the resize goes by way of 20x20 both times.
    from_7 = exit_macs(model_config(name, grid_sizes=(7, 14)), 1)
    from_10 = exit_macs(model_config(name, grid_sizes=(10, 14)), 1)
    assert from_7["relation_reuse"] < from_10["relation_reuse"]
    assert from_7["tokens"] == from_10["tokens"] and from_7["attention"] == from_10["attention"]


def test_a_small_patch_model_by_hand():
    config = model_config(
        "dvt_deit_small",
        image_size=8,
        in_channels=1,
        grid_sizes=(2, 4),
        embed_dim=4,
        depth=1,
        num_heads=2,
        mlp_hidden=6,
        num_classes=3,
        resize_sides=(5,),
    )
    first = {
        "tokens": 4 * 16 * 4,  # 4 patches of 16 pixels to width 4
        "attention": 5 * 5 * 4 + 5 * 4 * 12 + 2 * 5 * 5 * 4 + 5 * 4 * 4,  # norm, qkv, q k^T and a v, projection
        "mlp": 5 * 5 * 4 + 5 * 4 * 6 + 5 * 6 * 4,
        "feature_reuse": 0,
        "relation_reuse": 0,
        "head": 5 * 5 * 4 + 4 * 3,  # the norm of all tokens, the head of one
    }
    assert exit_macs(config, 0) == first
    second = exit_macs(config, 1)
    assert second["mlp"] == 5 * 17 * 52 + 17 * 52 * 6 + 17 * 6 * 4
    assert second["feature_reuse"] == 5 * 5 * 4 + 5 * 4 * 128 + 5 * 128 * 48 + 2 * 48 * 25
    # 5x5 relations of 2 heads: 2 -> 6 -> 2; rows resized at 5 columns, then columns at 17 rows.
    assert second["relation_reuse"] == 25 * (2 * 6 + 6 * 2) + 2 * 2 * 25 * (5 + 17)
    assert cumulative_gmacs(config) == pytest.approx(
        [sum(first.values()) / 1e9, (sum(first.values()) + sum(second.values())) / 1e9]
    )


def test_costs_grow_with_every_size():
    base = cumulative_gmacs("dvt_t2t_vit_12")[-1]
    for key, value in {"embed_dim": 512, "depth": 13, "mlp_hidden": 513, "num_classes": 1001, "in_channels": 4}.items():
        assert cumulative_gmacs("dvt_t2t_vit_12", **{key: value})[-1] > base, key
        assert parameter_count("dvt_t2t_vit_12", **{key: value}) > parameter_count("dvt_t2t_vit_12"), key


def test_a_config_and_a_name_say_the_same():
    config = model_config("dvt_t2t_vit_14", num_classes=10)
    assert cumulative_gmacs(config) == cumulative_gmacs("dvt_t2t_vit_14", num_classes=10)
    assert parameter_count(config) == parameter_count("dvt_t2t_vit_14", num_classes=10)


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="did you mean 'dvt_t2t_vit_14'"):
        cumulative_gmacs("dvt_t2t_vit14")
    with pytest.raises(ConfigError, match="did you mean 'num_classes'"):
        parameter_count("dvt_t2t_vit_14", num_class=3)


def test_no_framework_is_needed():
    code = "import sys, dvt.cost as c; c.cumulative_gmacs('dvt_t2t_vit_12'); sys.exit('mindspore' in sys.modules)"
    source = Path(__file__).parents[2] / "src"
    assert subprocess.run([sys.executable, "-c", code], cwd=source, check=False).returncode == 0


def test_parameters_of_the_exits_add_up():
    for name in list_models():
        assert sum(exit_parameters(model_config(name))) == parameter_count(name)


def test_descriptions_name_every_part():
    text = describe_model(model_config("dvt_t2t_vit_12"))
    assert all(part.replace("_", " ") in text for part in exit_macs(model_config("dvt_t2t_vit_12"), 0))
    assert all(name in describe_all() for name in list_models())
