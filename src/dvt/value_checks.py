"""What the value of a key may be: the type of its dataclass field, and the bounds in the metadata.

    epochs: int = field(default=300, metadata=bounds(1, 100_000))

`check_fields` checks all fields of a dataclass, so that a new key is covered by naming its type. Imports no framework.
"""

import math
import os
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from dvt.errors import ConfigError

LARGEST_FLOAT = 3e38  # models compute in float32
LARGEST_INT = 2**31 - 1  # sizes and counters are int32 on the devices

NUMBERS = {int: ("a whole number", "whole numbers", LARGEST_INT), float: ("a number", "numbers", LARGEST_FLOAT)}
NAMES = {
    bool: "true or false",
    str: "text (in YAML: in quotes), not empty and without NUL",
    Path: "a path",
    type(None): "null",
}
EXAMPLES = {int: "[7, 10, 14]", float: "[0.5, 0.5, 0.5]", str: "[a, b]"}  # of a list


@dataclass(frozen=True)
class Bounds:
    """Between which a number, or each entry of a list, must lie. `above` and `below` exclude the bound itself."""

    least: float | None = None
    most: float | None = None
    above: float = -math.inf
    below: float = math.inf
    may_be_empty: bool = False

    def ends(self, largest: float) -> tuple[float, float]:
        """The least and the most, which are those of the type, up to `largest`, where none are given."""
        return -largest if self.least is None else self.least, largest if self.most is None else self.most

    def admit(self, number: Any) -> bool:
        """False for NaN too, and for what float32 or int32 cannot hold where no bound says otherwise."""
        least, most = self.ends(LARGEST_INT if isinstance(number, Integral) else LARGEST_FLOAT)
        return least <= number <= most and self.above < number < self.below

    def words(self, largest: float) -> str:
        """ "of at least 1 and at most 512", where `largest` is the bound of the type."""
        least, most = self.ends(largest)
        low = f"of at least {least}" if self.above == -math.inf else f"above {self.above}"
        return f"{low} and {f'at most {most}' if self.below == math.inf else f'below {self.below}'}"


def bounds(*least_and_most: float, **more: Any) -> dict[str, Bounds]:
    """The metadata of a field that has the `Bounds` with these arguments."""
    return {"bounds": Bounds(*least_and_most, **more)}


PATH = {"path": True}
"""The metadata of a field that holds a path, which `check_fields` expands."""


def check_fields(values: Any, prefix: str, bounds_from: type | None = None) -> None:
    """Raises ConfigError, naming `prefix` and the field, for one of dataclass `values` that has another type, or lies
    outside of its bounds, those of the same name in `bounds_from` if given. Fields that are dataclasses check
    themselves. Paths are expanded in place."""
    limits = {field.name: field.metadata.get("bounds", Bounds()) for field in fields(bounds_from or values)}
    paths = {field.name for field in fields(values) if "path" in field.metadata}
    for name, hint in typing.get_type_hints(type(values)).items():
        value = getattr(values, name)
        if not is_dataclass(hint):
            check_value(f"{prefix}{name}", value, hint, limits.get(name, Bounds()))
        if name in paths and value is not None:
            kind = Path if Path in (hint, *typing.get_args(hint)) else str
            many = [kind(expanded(each, f"{prefix}{name}")) for each in (value if isinstance(value, list) else [value])]
            object.__setattr__(values, name, many if isinstance(value, list) else many[0])


def expanded(path: str | os.PathLike, key: str = "the path") -> str:
    """`path` with the home folder for a leading ~ and the values of $NAME or ${NAME}; a file whose name holds a $ is
    found under that name. Raises ConfigError, naming `key`, where there is no such home folder or variable."""
    text = os.path.expanduser(path)
    if os.path.lexists(text):
        return text
    text = os.path.expanduser(os.path.expandvars(text))
    if missing := re.search(r"\$\w+|\$\{\w*\}", text):
        raise ConfigError(f"{key} is {str(path)!r}, but the environment has no variable {missing[0]}; set it")
    if text.startswith("~"):
        raise ConfigError(f"{key} is {str(path)!r}, but no home folder is known for it; write the path in full")
    return text


def check_value(key: str, value: Any, hint: Any, limits: Bounds | None = None) -> None:
    """Raises ConfigError, naming `key`, for a value of another type than `hint` or outside of `limits`."""
    if not fits(value, hint, limits):
        given = "null" if value is None else repr(value)
        raise ConfigError(f"{key} is {given}; it must be {describe_type(hint, limits)}")


def from_plain(hint: Any, value: Any, key: str, limits: Bounds | None = None) -> Any:
    """A `value` read from JSON as what the type `hint` says, dataclasses with all that they hold; keys that these do
    not know are left out. Raises ConfigError, naming the place below `key`, for types or numbers out of bounds."""
    kind, of = typing.get_origin(hint) or hint, typing.get_args(hint)
    if hint is Any:
        return value
    if kind is types.UnionType:  # X | None
        return None if value is None else from_plain(of[0], value, key, limits)
    if kind is dict or is_dataclass(kind):
        if not isinstance(value, dict):
            raise ConfigError(f"{key} is {value!r:.100}; it must be an object with keys")
        if kind is dict:
            return {name: from_plain(of[1], each, f"{key}.{name}") for name, each in value.items()}
        return _dataclass_from_plain(kind, value, key)
    if kind in (list, tuple, Sequence):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{key} is {value!r:.100}; it must be a list")
        made = [from_plain(of[0], each, f"{key}.{index}", limits) for index, each in enumerate(value)]
        return tuple(made) if kind is tuple else made
    if hint is not str or not isinstance(value, str):  # texts may be empty here
        check_value(key, value, hint, limits)
    return value


def _dataclass_from_plain(kind: type, values: dict[str, Any], key: str) -> Any:
    found, hints = {}, typing.get_type_hints(kind)
    for each in fields(kind):
        place = f"{key}.{each.name}".lstrip(".")
        if each.name in values:
            found[each.name] = from_plain(hints[each.name], values[each.name], place, each.metadata.get("bounds"))
        elif each.default is MISSING and each.default_factory is MISSING:
            raise ConfigError(f"{place} is missing")
    try:
        return kind(**found)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}" if key else str(error)) from error


def fits(value: Any, hint: Any, limits: Bounds | None = None) -> bool:
    """Whether `value` has the type `hint`: None, text, numbers, Literal, unions and lists of these."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, each, limits) for each in arguments)
    if origin is typing.Literal:
        return any(value == each and type(value) is type(each) for each in arguments)
    if origin in (list, tuple):
        if not value and not (limits is not None and limits.may_be_empty):
            return False
        return isinstance(value, list | tuple) and all(fits(each, arguments[0], limits) for each in value)
    if hint in NUMBERS:
        right = isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
        return right and (limits is None or limits.admit(value))
    if hint in (str, Path):
        return isinstance(value, str | Path) and _is_text(str(value))
    return isinstance(value, hint)


def describe_type(hint: Any, limits: Bounds | None = None) -> str:
    """A type in words: "a whole number, or null", "one of step, epoch"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(describe_type(each, limits) for each in arguments)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (list, tuple):
        return f"a list of {_plural(arguments[0], limits)}, such as {EXAMPLES.get(arguments[0], '[[14, 8, 3]]')}"
    if hint in NUMBERS:
        name, _, largest = NUMBERS[hint]
        return name if limits is None else f"{name} {limits.words(largest)}"
    return NAMES.get(hint, str(hint))


def _plural(hint: Any, limits: Bounds | None) -> str:
    if hint is str:
        return "texts"
    if hint not in NUMBERS:
        return f"lists of {_plural(typing.get_args(hint)[0], limits)}"
    _, name, largest = NUMBERS[hint]
    return name if limits is None else f"{name}, each {limits.words(largest)}"


def _is_text(value: str) -> bool:
    """Whether it can be the name of a file: not empty, no NUL, valid Unicode but for the bytes of odd file names."""
    return bool(value.strip()) and not re.search("[\0\ud800-\udc7f\udd00-\udfff]", value)
