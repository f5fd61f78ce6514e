"""Reading and writing run configurations: YAML files, plain dictionaries, `RunConfig`. Imports no framework.

Unknown keys are refused with the nearest valid one, values of the wrong type with what is needed; both name the key.
Types, merging and help texts are jsonargparse's work; this module words its refusals.
"""

import argparse
import difflib
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser

from dvt.config.sections import RunConfig
from dvt.errors import ConfigError


class ConfigParser(ArgumentParser):
    """A jsonargparse parser whose refusals are ConfigErrors that name the key, the value and what is needed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)
        self.hints: dict[str, Any] = {}

    def add_dataclass(self, cls: type) -> None:
        """Every key of dataclass `cls` as an option, with the help text of its docstring."""
        self.add_class_arguments(cls)
        self.hints.update(key_hints(cls))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigError(reworded(message, self, self.hints)) from None


def load_config(path: str | Path | Iterable[str | Path], overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The configuration in a YAML file, or in several, later ones laid over earlier ones.

    Args:
        path: One file or several.
        overrides: Laid over the files: nested like them, or with dotted keys such as {"train.epochs": 3}.

    Raises:
        ConfigError: a file is missing or not YAML; a key is unknown; a value has the wrong type or does not fit.
    """
    paths = [path] if isinstance(path, str | Path) else list(path)
    merged: dict[str, Any] = {}
    for each in paths:
        merge(merged, read_yaml(each))
    merge(merged, nested(overrides or {}))
    return config_from_dict(merged)


def save_config(config: RunConfig, path: str | Path) -> None:
    """Write every key of `config` as YAML; `load_config` reads it back equal."""
    Path(path).write_text(config_to_yaml(config), encoding="utf-8")


def config_to_yaml(config: RunConfig) -> str:
    """The text that `save_config` writes."""
    return yaml.dump(config_to_dict(config), Dumper=_Dumper, sort_keys=False, width=100)


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    """Plain nested values, for YAML and JSON."""
    return asdict(config)


def config_from_dict(values: Mapping[str, Any], source: str = "the configuration") -> RunConfig:
    """Inverse of `config_to_dict`; keys that are left out take their defaults. Raises ConfigError, naming `source`."""
    return build_config(_typed(values, source))


def build_config(values: Mapping[str, Any]) -> RunConfig:
    """`RunConfig` from complete and typed values; keys of no field are left aside."""
    return _build(RunConfig, values)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, its keys and types checked against `RunConfig`. Raises ConfigError."""
    path = Path(path)
    _check_is_file(path)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        said = [getattr(error, "context", None), getattr(error, "problem", None)]
        reason = ", ".join(filter(None, said)) or str(error).splitlines()[0]
        raise ConfigError(f"{path}{where} is not valid YAML: {reason}") from None
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration file {path}: {error.strerror}; give another, or change its permissions"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"cannot read the configuration file {path}: it is no text in UTF-8; save it as such"
        ) from None
    except (ValueError, RecursionError) as error:  # such as a date of a 13th month, or a thousand brackets
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if values is None:
        raise ConfigError(
            f"the configuration file {path} is empty; it must hold keys with values, such as `seed: 0` (for the default"
            " of every key, give no file)"
        )
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {_short(values)}; it must hold keys with values, such as `seed: 0`")
    _typed(values, str(path))  # only to be refused here, where the file can be named
    return values


def _check_is_file(path: Path) -> None:
    if path.is_file():
        return
    beside = sorted(each.name for each in path.parent.glob("*.yaml") if each.is_file()) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, 1)
    hint = f"; did you mean {path.parent / near[0]}?" if near else ""
    if path.is_dir():
        inside = sorted(str(each) for each in path.glob("*.yaml"))[:3]
        hint = f" (such as {', '.join(inside)})" if inside else ""
        raise ConfigError(f"{path} is a folder; give a configuration file in YAML{hint}")
    if path.is_symlink():
        raise ConfigError(f"the configuration file {path} is a link to {os.readlink(path)}, which does not exist{hint}")
    if path.exists():
        raise ConfigError(f"{path} is a pipe or a device, but a configuration is read twice; write it to a file first")
    raise ConfigError(f"there is no configuration file {path}{hint}")


def key_hints(cls: type, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> type of every leaf of a nested dataclass, in order."""
    hints: dict[str, Any] = {}
    types_of = typing.get_type_hints(cls)
    for field in fields(cls):
        hint = types_of[field.name]
        if is_dataclass(hint):
            hints.update(key_hints(hint, f"{prefix}{field.name}."))
        else:
            hints[prefix + field.name] = hint
    return hints


def check_keys(values: Mapping[str, Any], hints: Mapping[str, Any], source: str) -> None:
    """Raise ConfigError for a dotted key that is not in `hints`, a section without keys, a null that is not allowed."""
    known = list(hints)
    sections = {key.rpartition(".")[0] for key in known} - {""}

    def walk(mapping: Mapping[Any, Any], prefix: str) -> None:
        for name, value in mapping.items():
            key = f"{prefix}{name}"
            if key in sections:
                if not isinstance(value, Mapping):
                    raise ConfigError(
                        f"in {source}: {key} is {_short(value)}; it is a section and needs keys of its own, such as "
                        f"{next(k for k in known if k.startswith(key + '.'))}"
                    )
                walk(value, f"{key}.")
            elif key not in known:
                raise ConfigError(f"in {source}: unknown key {key!r}{did_you_mean(key, [*known, *sections])}")
            elif value is None:
                _refuse_null(key, hints[key], f"in {source}: ")

    walk(values, "")


def did_you_mean(key: str, known: Iterable[str], mark: str = "") -> str:
    """ "; did you mean 'train.epochs'?" with `mark` before each key, or the empty string if nothing is near."""
    known = list(known)
    last = key.rpartition(".")[2]
    near = [each for each in known if each.rpartition(".")[2] == last]
    near = near or difflib.get_close_matches(key, known, 1)
    if not near:
        leaves = difflib.get_close_matches(last, [each.rpartition(".")[2] for each in known], 1)
        near = [each for each in known if each.rpartition(".")[2] in leaves]
    return f"; did you mean {' or '.join(repr(mark + each) for each in near)}?" if near else ""


def merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Lay nested `over` over nested `base`, in place."""
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            merge(base[key], value)
        else:
            base[key] = dict(value) if isinstance(value, Mapping) else value


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested mappings: {"train.epochs": 3} -> {"train": {"epochs": 3}}."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        section, _, rest = key.partition(".")
        merge(result, {section: nested({rest: value})} if rest else {section: value})
    return result


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Inverse of `nested`: {"train": {"epochs": 3}} -> {"train.epochs": 3}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value})
    return flat


def describe_type(hint: Any) -> str:
    """A type in words: "a whole number or null", "one of step, epoch"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        words = [describe_type(each) for each in arguments if each is not type(None)]
        return " or ".join([*words, "null"] if type(None) in arguments else words)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if hint == list[list[int]]:
        return "a list of lists of whole numbers, such as [[14, 8, 3], [7, 4, 2]]"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text (in YAML: in quotes)"}
    if origin is list:
        example = "[7, 10, 14]" if arguments == (int,) else "[0.5, 0.5, 0.5]"
        return f"a list of {names.get(arguments[0], 'value').removeprefix('a ')}s, such as {example}"
    return names.get(hint, str(hint))


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
    """`values` with their types checked and defaults filled in, but not yet checked for fitting together."""
    check_keys(values, key_hints(RunConfig), source)
    parser = ConfigParser()
    parser.add_dataclass(RunConfig)
    try:
        return parser.parse_object(dict(values)).as_dict()
    except ConfigError as error:
        raise ConfigError(f"in {source}: {error}") from None


def _build(cls: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    hints = typing.get_type_hints(cls)
    given = {}
    for field in fields(cls):
        value, hint = values[field.name], hints[field.name]
        if is_dataclass(hint):
            value = _build(hint, value, f"{prefix}{field.name}.")
        elif value is None:
            _refuse_null(prefix + field.name, hint)
        elif hint is float:
            value = float(value)  # 20 is a fine value for a float key; one type keeps saved files stable
        given[field.name] = value
    return cls(**given)


def _refuse_null(key: str, hint: Any, source: str = "") -> None:
    if type(None) not in typing.get_args(hint):
        raise ConfigError(f"{source}{key} is null; it must be {describe_type(hint)}")


def reworded(message: str, parser: argparse.ArgumentParser, hints: Mapping[str, Any] | None = None) -> str:
    """What `parser` says of a wrong argument, as one sentence; `hints` are the types of its dataclass keys."""
    hints = hints or {}
    options = {option.lstrip("-") for action in parser._actions for option in action.option_strings}
    positional = {action.dest: action.metavar or action.dest for action in parser._actions if not action.option_strings}
    key = re.search(r'Parser key "([^"]+)"', message)
    value = re.search(r"Given value: (.*)", message) or re.search(r"Got value: (.*)", message)
    if key and value and key[1] in hints:
        return f"{key[1]} is {_quoted(value[1].strip())}; it must be {describe_type(hints[key[1]])}"
    unknown = re.match(r"unrecognized arguments: (\S+)", message)
    if unknown and unknown[1].startswith("-"):
        option = unknown[1].lstrip("-").partition("=")[0]
        return f"unknown option --{option}{did_you_mean(option, hints or sorted(options), '--')}"
    if unknown:
        return f"unexpected argument {unknown[1]!r}; options begin with --"
    missing = re.search(r'Key "([^"]+)" is required', message) or re.search(r"arguments are required: (.+)", message)
    if missing:
        names = [positional.get(name, name) for name in missing[1].split(", ")]
        names = [name if name in positional.values() or name.startswith("-") else f"--{name}" for name in names]
        verb = "is" if len(names) == 1 else "are"
        return f"{' and '.join(names)} {verb} required; `{parser.prog} --help` shows how to call it"
    return " ".join(message.split())


def _quoted(text: str) -> str:
    if text == "None":
        return "null"
    plain = re.fullmatch(r"-?[\d.]+(e-?\d+)?|True|False|None|[\[{].*", text)
    return text if plain else repr(text)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
