"""Types and bounds of dataclass fields: what is refused, and that the message names key, value and what is needed."""

import re
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from dvt.checkpoint import read_checkpoint
from dvt.config import ModelSection, RunConfig
from dvt.config.files import config_from_dict, config_to_dict, flattened
from dvt.deploy import Cascade
from dvt.errors import ConfigError, DVTError
from dvt.models.variants import ModelConfig
from dvt.value_checks import bounds, check_fields, describe_type, expanded, fits


@dataclass
class Example:
    count: int | None = field(default=3, metadata=bounds(1, 9))
    share: float = field(default=0.5, metadata=bounds(0, below=1))
    budget: float | None = field(default=None, metadata=bounds(above=0))
    sizes: list[int] | None = field(default=None, metadata=bounds(2))
    choice: Literal["a", 1] = "a"
    name: str = "x"
    on: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "example.")


@pytest.mark.parametrize(
    "values",
    [{"count": None}, {"count": np.int64(9)}, {"share": 0}, {"budget": 1e-30}, {"sizes": [2, 3]}, {"choice": 1}],
)
def test_what_fits_is_accepted(values: dict[str, Any]):
    Example(**values)


@pytest.mark.parametrize(
    ("key", "value", "needed"),
    [
        ("count", 0, "a whole number of at least 1 and at most 9, or null"),
        ("count", True, "a whole number"),
        ("count", 2.0, "a whole number"),
        ("share", 1.0, "a number of at least 0 and below 1"),
        ("share", None, "a number"),
        ("budget", 0.0, "a number above 0"),
        ("budget", float("nan"), "a number above 0"),
        ("budget", 1e300, "at most 3e+38"),
        ("sizes", [], "a list of whole numbers"),
        ("sizes", [2, 1], "each of at least 2"),
        ("sizes", 2, "such as [7, 10, 14]"),
        ("choice", True, "one of a, 1"),
        ("name", " ", "text"),
        ("name", "\ud800", "text"),
        ("on", 1, "true or false"),
    ],
)
def test_what_does_not_fit_is_refused(key: str, value: Any, needed: str):
    with pytest.raises(ConfigError) as refused:
        Example(**{key: value})
    shown = "null" if value is None else repr(value)
    assert str(refused.value).startswith(f"example.{key} is {shown}; it must be ")
    assert needed in str(refused.value)


def path_keys(cls: type, prefix: str = "") -> list[str]:
    """Dotted keys of a nested dataclass whose type is a path, by their metadata."""
    found = []
    for each in fields(cls):
        found += path_keys(each.type, f"{prefix}{each.name}.") if is_dataclass(each.type) else []
        found += [prefix + each.name] if "path" in each.metadata else []
    return found


@pytest.mark.parametrize("key", path_keys(RunConfig))
def test_paths_of_a_configuration_follow_one_rule(key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "here")
    monkeypatch.delenv("NOWHERE", raising=False)
    for text, path in (
        ("~/a", f"{tmp_path}/a"),
        ("~", str(tmp_path)),
        ("$PLACE/${PLACE}s", "here/heres"),
        ("a~/$", "a~/$"),
        ("below/it", "below/it"),
    ):
        assert flattened(config_to_dict(config_from_dict({key: text})))[key] == path
    for text in ("$NOWHERE/a", "a/${NOWHERE}", "~nobody-of-that-name/a"):
        with pytest.raises(ConfigError, match=re.escape(f"{key} is {text!r}, but ")):
            config_from_dict({key: text})


def test_paths_given_in_python_follow_it_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Also a file whose name holds a $."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Path("cost$NOWHERE.png").touch()
    assert expanded("cost$NOWHERE.png") == "cost$NOWHERE.png"
    for reader in (read_checkpoint, Cascade):
        with pytest.raises(DVTError, match=re.escape(str(tmp_path / "a.ckpt"))):
            reader("~/a.ckpt")


def test_types_alone_may_be_asked_for():
    assert fits(10**30, int) and not fits("3", int) and not fits([], list[int])
    assert describe_type(int | None) == "a whole number, or null"
    assert describe_type(list[float]) == "a list of numbers, such as [0.5, 0.5, 0.5]"
    assert describe_type(list[list[int]] | None).startswith("a list of lists of whole numbers")


def test_every_key_of_a_model_section_is_one_of_the_model():
    """The section takes its bounds from there."""
    assert {each.name for each in fields(ModelSection)} <= {each.name for each in fields(ModelConfig)}
