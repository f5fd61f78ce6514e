"""Reading and writing run configurations: YAML files, plain dictionaries, `RunConfig`. Imports no framework.

Unknown keys are refused with the nearest valid one, values of the wrong type with what is needed; both name the key.
"""

import contextlib
import difflib
import functools
import logging
import os
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from dvt.config.sections import RunConfig
from dvt.errors import ConfigError, did_you_mean, listing
from dvt.safe_files import content_of, replacing
from dvt.value_checks import check_value

RETIRED = {"jit_level": {"O2": "auto"}}
"""Choices of earlier versions, and what they mean now."""

_warn_once = functools.cache(logging.getLogger(__name__).warning)  # however often a file is read

SECTIONS = {name: hint for name, hint in typing.get_type_hints(RunConfig).items() if is_dataclass(hint)}


def load_config(path: str | Path | Iterable[str | Path], overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The configuration in one YAML file or several, later ones laid over earlier ones.

    Over them come the `overrides`: nested like the files, or with dotted keys such as {"train.epochs": 3}. Raises
    ConfigError for a missing file, one that is not YAML, an unknown key, and a value that does not fit.
    """
    merged: dict[str, Any] = {}
    for each in [path] if isinstance(path, str | Path) else path:
        merged |= read_yaml(each)
    return config_from_dict(merged | flattened(overrides or {}))


def save_config(config: RunConfig, path: str | Path) -> None:
    """Write every key of `config` as YAML; `load_config` reads it back equal."""
    with replacing(Path(path)) as written:
        written.write_text(config_to_yaml(config), encoding="utf-8")


def config_to_yaml(config: RunConfig) -> str:
    """The text that `save_config` writes."""
    return yaml.dump(config_to_dict(config), Dumper=_Dumper, sort_keys=False, width=100)


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    """Plain nested values, for YAML and JSON."""
    return asdict(config)


def config_from_dict(values: Mapping[str, Any], source: str = "the configuration") -> RunConfig:
    """Inverse of `config_to_dict`; keys may be dotted, and those that are left out take their defaults.

    Raises ConfigError, naming `source`.
    """
    return build(RunConfig, _typed(flattened(values), source))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Dotted keys and values of a YAML file, checked for unknown keys and types. Raises ConfigError."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(_why_no_file(path))
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration file {path}: {error.strerror}; give another, or change its permissions"
        ) from None
    except UnicodeDecodeError:
        what = content_of(path)[1]
        remedy = f" but {what}; give another file" if what else "; save it as UTF-8"
        raise ConfigError(f"the configuration file {path} is not UTF-8 text{remedy}") from None
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
        reason = ", ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(f"{path}, {where} is not valid YAML: {reason}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # such as a date of a 13th month, or 1000 brackets
        raise ConfigError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"holds {values!r:.60}"
        raise ConfigError(
            f"{path} {found}; it must hold keys with values, such as `seed: 0` (for the default of every key, give no "
            "file)"
        )
    values = flattened(values)
    _typed(values, str(path))  # only to be refused here, where the file can be named
    return values


def _why_no_file(path: Path) -> str:
    if path.is_dir():
        inside = listing(sorted(map(str, path.glob("*.yaml"))))
        return f"{path} is a folder; give a configuration file in YAML{f' (such as {inside})' if inside else ''}"
    if path.exists():
        return f"{path} is a pipe or a device; write the configuration to a file first"
    target = f", a link to {os.readlink(path)}" if path.is_symlink() else ""
    near = difflib.get_close_matches(path.name, [each.name for each in path.parent.glob("*.yaml") if each.exists()], 1)
    hint = f"; did you mean {path.parent / near[0]}?" if near else ""
    return f"there is no configuration file {path}{target}{hint}"


def key_hints(cls: type, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> type of every leaf of a nested dataclass, in order."""
    hints: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(cls).items():
        hints |= key_hints(hint, f"{prefix}{name}.") if is_dataclass(hint) else {prefix + name: hint}
    return hints


def flattened(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys for nested ones: {"train": {"epochs": 3}} -> {"train.epochs": 3}; dotted ones stay as they are."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key in SECTIONS and isinstance(value, Mapping):
            flat |= {f"{key}.{name}": each for name, each in value.items()}
        else:
            flat[str(key)] = value
    return flat


def build(cls: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """The nested dataclass with the values of dotted keys; other keys are left to others."""
    parts = {}
    for name, hint in typing.get_type_hints(cls).items():
        key = prefix + name
        if is_dataclass(hint):
            parts[name] = build(hint, values, f"{key}.")
        elif key in values:
            parts[name] = values[key]
    return cls(**parts)


def typed_value(key: str, value: Any, hint: Any) -> Any:
    """`value` with the type `hint`. Raises ConfigError, naming `key`.

    Text may stand for what is not text: "3", "true", "0.5,0.5,0" for a list; choices may be written in any case.
    """
    wanted = (hint, *typing.get_args(hint))
    name, given = key.rpartition(" ")[2], str(value).upper()
    if given in RETIRED.get(name, {}):
        value = RETIRED[name][given]
        _warn_once("%s %s is no longer offered, since MindSpore gives it up; %s is taken", name, given, value)
    if isinstance(value, str) and str not in wanted and Path not in wanted:
        value = _value_of_text(value, wanted)
    check_value(key, value, hint)
    if float in wanted and isinstance(value, int):
        return float(value)  # 20 is a fine value for a float key; one type keeps saved files stable
    if list[float] in wanted and value is not None:
        return [float(each) for each in value]
    return value


def _value_of_text(text: str, wanted: Sequence[Any]) -> Any:
    choices = {each.lower(): each for each in wanted if isinstance(each, str)}
    is_list = any(typing.get_origin(each) is list for each in wanted)
    for spelling in (text, f"[{text}]") if is_list else (text,):
        with contextlib.suppress(yaml.YAMLError, ValueError, RecursionError):
            value = yaml.load(spelling, Loader=_Loader)
            if value is None or isinstance(value, list) or not is_list:
                return choices.get(text.lower(), value)
    return text


class _Loader(yaml.SafeLoader):
    """Plain values only; 5e-4 is a number, and a key given twice is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for (key, _), value in zip(node.value, keys, strict=True):
            if keys.count(value) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{value!r} is given twice", key.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Sections as blocks, lists on one line."""


for _each in (_Loader, _Dumper):  # the writer must quote what the reader would take for a number
    _each.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )
_Dumper.add_representer(
    list, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)
)


def _typed(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Values by dotted key with the types of `RunConfig`; whether they fit together is not checked."""
    hints, typed = key_hints(RunConfig), {}
    for key, value in values.items():
        if key in hints:
            typed[key] = typed_value(f"in {source}: {key}", value, hints[key])
        elif key in SECTIONS:
            raise ConfigError(
                f"in {source}: {key} is {value!r:.60}; it is a section and needs keys of its own, such as "
                f"{listing(key_hints(SECTIONS[key], f'{key}.'))}"
            )
        else:
            raise ConfigError(f"in {source}: unknown key {key!r}{did_you_mean(key, [*hints, *SECTIONS])}")
    return typed
