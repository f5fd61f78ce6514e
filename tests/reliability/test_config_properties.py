"""Any configuration is a model that trains or a ConfigError that names a key: "Configurations" in docs/reliability.md.

The values are drawn for the fields of the dataclasses, so that new keys are covered.
"""

import types
import typing
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mindspore import Tensor

from dvt.config import RunConfig
from dvt.config.files import config_from_dict, config_to_dict, key_hints
from dvt.cost import parameter_count
from dvt.errors import ConfigError
from dvt.models.cascade import build_from_config
from dvt.models.variants import ModelConfig
from dvt.training.loss import ExitLosses
from dvt.training.schedule import learning_rates

HINTS = key_hints(RunConfig)
LEAVES = {key.rpartition(".")[2] for key in HINTS}
SECTIONS = sorted({key.partition(".")[0] for key in HINTS if "." in key})
TINY = {"embed_dim": 8, "depth": 1, "num_heads": 2, "mlp_hidden": 8}
BASES = [
    {"name": "dvt_deit_small", "image_size": 12, "grid_sizes": [2, 3], **TINY},
    {"name": "dvt_t2t_vit_12", "image_size": 16, "grid_sizes": [1, 2], "soft_splits": [[7, 4, 0], [3, 2, 1]], **TINY},
]
MOST_PARAMETERS = 200_000  # of models that are run; larger ones are only resolved
QUICK = settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**63, 10**30, float("nan"), float("inf"), -float("inf"), 1e308, -0.0, 1e-320]),
    st.text(max_size=4),
    st.sampled_from(["", "\0", "\ud800", "\N{CAT FACE}", "1e3", "null"]),
    st.lists(st.one_of(st.integers(-2, 9), st.floats(), st.text(max_size=2)), max_size=3),
    st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), st.integers(), max_size=2),
)


def plausible(hint: Any) -> st.SearchStrategy:
    """Values of the right type, most of them small."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([plausible(each) for each in arguments])
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is list:
        return st.lists(plausible(arguments[0]), max_size=4)
    return {
        int: st.one_of(st.integers(0, 16), st.sampled_from([-3, 64, 10**6, 2**40])),
        float: st.one_of(st.floats(0, 1), st.floats(), st.sampled_from([1e-30, 1e30, 5.0])),
        bool: st.booleans(),
        str: st.text(max_size=5),
        type(None): st.none(),
    }[hint]


def value_of(key: str) -> st.SearchStrategy:
    return st.tuples(st.just(key), st.one_of(plausible(HINTS[key]), plausible(HINTS[key]), ODD))


MODEL_KEYS = [key for key in HINTS if key.startswith("model.")]
ANY = st.lists(st.sampled_from(list(HINTS)).flatmap(value_of), min_size=1, max_size=4)
MODEL = st.lists(st.sampled_from(MODEL_KEYS).flatmap(value_of), min_size=0, max_size=2)


def names_a_key(error: ConfigError) -> bool:
    """Not always the one that was changed: what no longer fits it may be named instead."""
    return any(key in str(error) for key in HINTS) or str(error).startswith("unknown model ")


def parsed(base: dict[str, Any], changes: list[tuple[str, Any]]) -> RunConfig | None:
    """The configuration, or None if it was refused as it should be."""
    values = {"model": dict(base), "train": {"epochs": 30}}
    for key, value in changes:
        section, _, leaf = key.rpartition(".")
        (values.setdefault(section, {}) if section else values)[leaf] = value
    try:
        config = config_from_dict(values)
        config.model.check()
    except ConfigError as error:
        assert names_a_key(error), (error, changes)
        return None
    return config


def check_it_trains(config: ModelConfig) -> None:
    """Forward and backward in training mode: losses and all gradients are finite."""
    ms.set_seed(0)
    model = build_from_config(config).set_train(True)
    losses = ExitLosses(model)
    gradients = ms.value_and_grad(lambda images, labels: losses(images, labels).sum(), None, model.trainable_params())
    rng = np.random.default_rng(0)
    shape = (2, config.in_channels, config.image_size, config.image_size)
    images = Tensor(rng.standard_normal(shape, dtype=np.float32))
    loss, found = gradients(images, Tensor(rng.integers(0, config.num_classes, 2), ms.int32))
    assert np.isfinite(loss.asnumpy()), config
    for parameter, gradient in zip(model.trainable_params(), found, strict=True):
        assert np.isfinite(gradient.asnumpy()).all(), (parameter.name, config)


def check_model(base: dict[str, Any], changes: list[tuple[str, Any]]) -> None:
    config = parsed(base, changes)
    if config is not None:
        try:
            model = config.model.resolve(config.model.num_classes or 5, config.model.in_channels or 3)
        except ConfigError as error:
            assert names_a_key(error), (error, changes)
            return
        if parameter_count(model) <= MOST_PARAMETERS:
            check_it_trains(model)


@QUICK
@given(changes=ANY, base=st.sampled_from(BASES))
def test_any_values_are_refused_by_name_or_survive_a_round_trip(changes: list, base: dict):
    config = parsed(base, changes)
    if config is not None:
        assert config_from_dict(config_to_dict(config)) == config
        if config.train.epochs + config.train.cooldown_epochs <= 1000:
            assert np.isfinite(learning_rates(config.train, 2)).all()


@settings(QUICK, max_examples=25)
@given(changes=MODEL, base=st.sampled_from(BASES))
def test_any_model_trains_or_is_refused_by_name(changes: list, base: dict, pynative_mode: None):
    check_model(base, changes)


@pytest.mark.soak
@settings(QUICK, max_examples=400)
@given(changes=MODEL, base=st.sampled_from(BASES))
def test_any_model_trains_or_is_refused_by_name_at_length(changes: list, base: dict, pynative_mode: None):
    check_model(base, changes)


@settings(QUICK, max_examples=60)
@given(
    section=st.sampled_from(["", *SECTIONS]),
    key=st.text(min_size=1, max_size=12).filter(lambda key: "." not in key and key not in {*LEAVES, *SECTIONS}),
    value=ODD,
)
def test_unknown_keys_are_refused_by_name(section: str, key: str, value: Any):
    dotted = f"{section}.{key}" if section else key
    with pytest.raises(ConfigError) as refused:
        config_from_dict({section: {key: value}} if section else {key: value})
    assert repr(dotted) in str(refused.value)


@settings(QUICK, max_examples=40)
@given(section=st.sampled_from(SECTIONS), value=ODD.filter(lambda value: not isinstance(value, dict)))
def test_a_section_that_is_none_is_refused_by_name(section: str, value: Any):
    with pytest.raises(ConfigError, match=f"{section} is .*it is a section and needs keys of its own"):
        config_from_dict({section: value})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", -1, "seed is -1; it must be a whole number of at least 0"),
        ("output", "", "output is ''; it must be text"),
        ("data.path", "a\0b", "data.path is 'a.x00b'; it must be text"),
        ("data.item_sizes", [], "data.item_sizes is ..; it must be a list"),
        ("data.item_sizes", [0], "data.item_sizes is .0.; .* each of at least 1"),
        ("data.mean", [float("nan")], "data.mean is .nan.; .* at most 3e.38"),
        ("data.std", [1e-30], "data.std is .1e-30.; .* each of at least 1e-06"),
        ("train.learning_rate", 1e308, "train.learning_rate is 1e.308; .* at most 3e.38"),
        ("train.epochs", 10**9, "train.epochs is 1000000000; .* at most 100000"),
        ("eval.max_accuracy_drop", float("inf"), "eval.max_accuracy_drop is inf; .* at most 3e.38"),
        ("data.canvas_size", 56, "data.canvas_size is set, but has no effect on data.dataset image_folder"),
        ("model.embed_dim", 10**9, "model.embed_dim is 1000000000; .* at most 16384"),
        ("model.drop_path_rate", 0.9999999, "model.drop_path_rate is 0.9999999; .* at most 0.999"),
        ("model.init_std", float("inf"), "model.init_std is inf; .* at most 10"),
        ("model.depth", 512, "model.depth 512, model.mlp_hidden 65536 make .* weights; at most"),
        ("model.grid_sizes", [255, 256], "attention logits per image; at most .* lower one of them"),
    ],
)
def test_values_of_the_right_type_that_no_run_survives(key: str, value: Any, message: str):
    values = {"train.warmup_epochs": 0, key: value}
    if key == "model.depth":
        values |= {"model.embed_dim": 16384, "model.mlp_hidden": 65536}
    with pytest.raises(ConfigError, match=message):
        config_from_dict(values).model.check()
