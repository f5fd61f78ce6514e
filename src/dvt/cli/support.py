"""What the commands share: the parser of their options, how a command ends, logging."""

import argparse
import atexit
import errno
import inspect
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

from tqdm import tqdm

from dvt.config.files import build, config_to_yaml, key_hints, read_yaml, typed_value
from dvt.config.sections import RunConfig
from dvt.errors import ConfigError, DVTError, did_you_mean, listing
from dvt.signals import INTERRUPTED, stop_done, stop_was_asked
from dvt.value_checks import describe_type, expanded

HIDDEN = argparse.SUPPRESS  # as help or default: not shown
LOG_LEVELS = ("debug", "info", "warning", "error")

# Short or customary names of options; the epilog of --help lists them. data_url and train_url are those of ModelArts.
ALIASES = {
    "data_path": "data.path",
    "data_url": "data.path",
    "train_url": "output",
    "budget_gmacs": "eval.budget_gmacs",
    "budget_images_per_second": "eval.budget_images_per_second",
    "max_accuracy_drop": "eval.max_accuracy_drop",
    "exit_rule": "eval.exit_rule",
}

SWITCHES = ("true", "false", "yes", "no", "on", "off", "null")  # values of a key that is true or false

LIMITS = {
    "MemoryError|std::bad_alloc|Cannot allocate memory|failed to map segment|emory (not|isn't) enough": (
        "not enough memory; close other programs, raise the limit (`ulimit -v`, that of the container or job), or "
        "lower the batch size and data.workers"
    ),
    "Resource temporarily unavailable|can't start new thread": (
        "no more processes or threads may be started; raise the limit (`ulimit -u`, --pids-limit of the container) or "
        "lower data.workers"
    ),
    "Too many open files": "too many open files; raise the limit (`ulimit -n`)",
}
"""Pattern of an error that says that a limit of the system was reached -> what to tell the user."""


class Parser(argparse.ArgumentParser):
    """The options of one command. Every refusal is a ConfigError that names the option, the value and what is needed.

    Options may be written with dashes or underscores, `ALIASES` stand for longer names, and the keys of dataclasses
    become options with the help texts of their docstrings.
    """

    def __init__(self, prog: str, description: str, **more: Any) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False, **more)
        self.keys: dict[str, Any] = {}  # of dataclasses, with their types
        self.paths: set[str] = set()  # other options and words that name files
        self.why_not_others: str | None = None  # why this command takes no other keys of RunConfig
        self.add_argument("--debug", action="store_true", help="Show the traceback of an error.")

    def add_path(self, name: str, text: str, **more: Any) -> None:
        """An option or a word that names a file or folder, or several."""
        self.paths.add(name.lstrip("-"))
        self.add_argument(name, help=text, **more)

    def add_log_level(self) -> None:
        """For commands that log."""
        self.add_argument("--log_level", choices=LOG_LEVELS, default="info", help="Least important messages to show.")

    def add_keys(self, cls: type, hidden: Collection[str] = (), skip: Collection[str] = (), word: str = "") -> None:
        """Adds the keys of dataclass `cls` as options: not those in `skip`, and those in `hidden` without help.

        The key `word` may also be given as a word, without its option.
        """
        groups: dict[str, argparse._ArgumentGroup] = {}
        for key, hint, text in _described(cls):
            section, _, leaf = key.rpartition(".")
            if section not in skip and key not in skip:
                group = groups.setdefault(section, self.add_argument_group(f"{section} keys".strip()))
                shown = "true|false" if hint in (bool, bool | None) else leaf.upper()
                group.add_argument(f"--{key}", default=HIDDEN, metavar=shown, help=HIDDEN if key in hidden else text)
                self.keys[key] = hint
        if word:
            self.add_argument(f"{word} ", nargs="?", metavar=word.upper(), help=f"The same as --{word}.")

    def add_config(self, shown: Collection[str], reason: str = "") -> None:
        """Adds --config, --print_config, --log_level, and the sections and keys of `RunConfig` that are in `shown`.

        A YAML file may always hold every section, so that one file serves all commands. `reason` says why the other
        keys are no options of this command.
        """
        text = "Configuration file; given again, later ones go over earlier."
        self.add_path("--config", text, action="append", default=[], metavar="YAML")
        self.add_argument(
            "--print_config", action="store_true", help="Print the resolved configuration as YAML, and do nothing else."
        )
        self.add_log_level()
        self.add_keys(RunConfig, skip=vars(RunConfig()).keys() - shown)
        self.why_not_others = reason
        self.epilog = " ".join(
            [
                "Every key may be written with dashes or underscores.",
                "A key on the command line goes over the YAML file.",
                *(f"--{alias} stands for --{key}." for alias, key in ALIASES.items() if key in self.keys),
            ]
        )

    def set_help(self, name: str, text: str) -> None:
        """Gives the option `name` another help text."""
        self._option_string_actions[f"--{name}"].help = text

    def parse(self, argv: Sequence[str]) -> dict[str, Any]:
        """The values of all options by name; of the keys of dataclasses, those that were given."""
        given = vars(self.parse_intermixed_args(self._normalised(argv)))
        for name in [name for name in given if name.endswith(" ")]:  # words that stand for a key
            word = given.pop(name)
            if word is not None:
                given.setdefault(name.strip(), word)
        for name, value in given.items():
            if name in self.keys:
                optional = value == "null" and type(None) in get_args(self.keys[name])
                given[name] = None if optional else typed_value(name, value, self.keys[name])
            elif name in self.paths and value is not None:
                many = isinstance(value, list)
                given[name] = [expanded(each, name) for each in value] if many else expanded(value, name)
        return given

    def options(self, cls: type, given: dict[str, Any]) -> Any:
        """The dataclass `cls`, whose keys were added as options, from the values that `parse` found."""
        for each in fields(cls):
            if each.default is MISSING and each.default_factory is MISSING and each.name not in given:
                self.error(f"--{each.name} is needed")
        return build(cls, given)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{' '.join(message.split())}; `{self.prog} --help` shows how to call it") from None

    def _normalised(self, argv: Sequence[str]) -> list[str]:
        """The same arguments with one spelling: --long_name=value. Raises ConfigError for unknown options."""
        words: list[str] = []
        rest = deque(argv)
        while rest:
            word = rest.popleft()
            if word == "--":
                return [*words, word, *rest]
            if not word.startswith("--"):
                words.append(word)
                continue
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            name = ALIASES.get(name, name)
            option = self._option_string_actions.get(f"--{name}")
            if option is None:
                self._refuse(name)
            hint = self.keys.get(name)
            if not equals and hint in (bool, bool | None):  # a file may follow a switch
                value = rest.popleft() if rest and rest[0].lower() in SWITCHES else "true"
                equals = "="
            elif not equals and option.nargs is None and rest and not rest[0].startswith("--"):
                equals, value = "=", rest.popleft()
                numbers = name == "thresholds" or hint in (list[float], list[float] | None)
                while numbers and rest and _is_number(rest[0]):
                    value += f",{rest.popleft()}"  # 0.5 0.5 0
            words.append(f"--{name}{equals}{value}")
        return words

    def _refuse(self, name: str) -> NoReturn:
        keys = [f"--{key}" for key in self.keys if key.startswith(f"{name}.")]
        if keys:
            raise ConfigError(f"--{name} is a section of keys; give one of them: {listing(keys)}")
        if self.why_not_others is not None and name in key_hints(RunConfig):
            raise ConfigError(f"{self.prog} takes no --{name}{self.why_not_others}")
        options = [option[2:] for option in self._option_string_actions if option[2:]]
        raise ConfigError(f"unknown option --{name}{did_you_mean(name, options, '--')}")


def _described(cls: type, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Dotted key, type and help text of every leaf of a dataclass, whose docstring says what its fields mean."""
    said = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", inspect.getdoc(cls), re.MULTILINE))
    hints = get_type_hints(cls)
    for each in fields(cls):
        hint = hints[each.name]
        if is_dataclass(hint):
            yield from _described(hint, f"{prefix}{each.name}.")
            continue
        default = each.default if each.default_factory is MISSING else each.default_factory()
        value = "required" if default is MISSING else f"default: {json.dumps(default).strip(chr(34))}"
        about = value if str in (hint, *get_args(hint)) else f"{describe_type(hint)}; {value}"
        text = f"{' '.join(said[each.name].split())} ({about})"
        yield prefix + each.name, hint, text.replace("%", "%%")


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text, re.IGNORECASE) is not None


def given_keys(given: dict[str, Any]) -> dict[str, Any]:
    """The keys of `RunConfig` in the YAML files and options that `Parser.parse` found, the options laid over the files.

    Raises ConfigError, naming the file, for files that are not fit to be read.
    """
    keys: dict[str, Any] = {}
    for path in given["config"]:
        keys |= read_yaml(path)
    return keys | {key: given[key] for key in key_hints(RunConfig) if key in given}


def print_if_asked(given: dict[str, Any], config: RunConfig) -> None:
    """With --print_config, prints `config` as YAML and raises SystemExit(0)."""
    if given["print_config"]:
        print(config_to_yaml(config), end="")
        raise SystemExit(0)


def shipped_checkpoint() -> str:
    """The small checkpoint of the quick start. Raises ConfigError where this is no checkout."""
    path = Path(__file__).parents[3] / "checkpoints" / "quickstart.ckpt"
    if not path.is_file():
        raise ConfigError("--checkpoint is required: this installation has no checkpoint of its own")
    return str(path)


def run_command(command: Callable[[list[str]], int | None], argv: Sequence[str]) -> int:
    """Runs `command` on `argv` and returns the exit code: the one place where errors become messages.

    2 for what is refused before any work (a user's mistake), 1 for a failure on the way (`dvt.errors.work_begun`) and
    for a bug, each with a message on standard error and, if --debug is in `argv`, the traceback before it; 130 after a
    signal that asks to stop, 141 if the reader of the output went away, else what `command` returned.
    """
    argv = list(argv)
    _prepare_process()
    try:
        try:
            code = command(argv) or 0
        except SystemExit as done:  # --help, --version and --print_config
            code = done.code if isinstance(done.code, int) else 0
        print(end="", flush=True)  # here, where a reader that went away is noticed
        return code
    except KeyboardInterrupt:
        _tell("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if "--debug" in argv:
            traceback.print_exc()
        if stop_was_asked():  # the error is what became of KeyboardInterrupt
            _tell("interrupted")
            return INTERRUPTED
        message, code = _outcome(error, "--debug" in argv)
        _tell(message)
        return 1 if hasattr(error, "after_work_begun") else code
    finally:
        stop_done()


def _prepare_process() -> None:
    for stream in filter(None, (sys.stdout, sys.stderr)):  # file names and class names may hold any text
        stream.reconfigure(errors="backslashreplace")
    if os.path.expanduser("~") == "~":  # as in a container whose user is only a number: libraries fail without caches
        caches = tempfile.mkdtemp(prefix="dvt-")
        atexit.register(shutil.rmtree, caches, ignore_errors=True)
        for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
            os.environ.setdefault(name, caches)


def _tell(message: str) -> None:
    """Prints a message on standard error, if there still is one."""
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:  # the terminal was closed; what is left in the buffer must not fail again when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _outcome(error: Exception, traceback_shown: bool) -> tuple[str, int]:
    """The message of an error and the exit code of a command that it ends before any work is done."""
    if isinstance(error, DVTError):
        return f"error: {error}", 2
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "mindspore":
        return "error: this command needs MindSpore: pip install 'dvt-mindspore[train]'", 2
    text = f"{type(error).__name__}: {error}"
    for line in f"{text}\n{type(error.__cause__).__name__}: {error.__cause__}".splitlines():
        for pattern, message in LIMITS.items():
            if re.search(pattern, line):
                return f"error: {message}. The system said: {line[:200]}", 1
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        name, reason = error.filename or "a file", error.strerror
        return f"error: {name} cannot be written: {reason}; free some space, then run this again", 1
    if isinstance(error, OSError) and error.filename is not None:
        remedy = "give another path, or change its permissions"
        return f"error: {error.filename} cannot be used: {error.strerror}; {remedy}", 2
    where = "the traceback is above" if traceback_shown else "run the same command with --debug for the traceback"
    return (
        f"internal error: {text}\nThis is a bug in dvt, not a mistake of yours: {where}. "
        "Please report it with the command and that traceback."
    ), 1


class _ProgressSafeHandler(logging.StreamHandler):
    """Writes to standard error without tearing a progress bar that is being drawn there."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


def set_up_logging(level: str = "info") -> None:
    """One line per message on standard error: this package's from `level` up, other packages' warnings."""
    handler = _ProgressSafeHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("dvt").setLevel(level.upper())
