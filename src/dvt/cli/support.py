"""What the commands share: the parser of their options, how a command ends, logging."""

import argparse
import atexit
import contextlib
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
from dvt.value_checks import check_fields, describe_type, expanded

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
    "confidence": "eval.confidence",
    "risk": "eval.risk",
    "on_uncertified": "eval.on_uncertified",
    "exit_rule": "eval.exit_rule",
}

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
SOME_FAILED = "Exit code 0: all done; 1: some or all files could not be classified; 2: refused before the start."
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
    "No space left on device|quota exceeded": "a file cannot be written; free some space, then run this again",
}
"""Pattern of an error that says that a limit of the system was reached -> what to tell the user."""


class Parser(argparse.ArgumentParser):
    """The options of one command: the fields of the dataclass `options`, with the texts of its docstring.

    A field without a default, or one of `words`, may also be given as a word without its name; a list takes many words.
    Options may be written with dashes or underscores, and `ALIASES` stand for longer names. `log_level` is the default
    of that option. Refusals are ConfigErrors.
    """

    def __init__(
        self, prog: str, options: type, words: Collection[str] = (), log_level: str = "warning", **more: Any
    ) -> None:
        about = " ".join(inspect.getdoc(options).partition("\n\nArgs:")[0].split())
        super().__init__(prog=prog, description=about, allow_abbrev=False, **more)
        self.cls = options
        self.needed = [each.name for each in fields(options) if each.default is each.default_factory is MISSING]
        self.words = [*self.needed, *words]
        self.stray_words = f"`{prog} --help` shows how to call it"
        self.keys: dict[str, Any] = {}  # with their types
        self.why_not_others: str | None = None  # why this command takes no other keys of RunConfig
        self.usage = self.usage or " ".join(["%(prog)s", *map(str.upper, self.words), "[--KEY VALUE ...]"])
        self.add_argument("words", nargs="*", help=HIDDEN)
        self.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
        text = f"Least important messages to show (default: {log_level})."
        self.add_argument("--log_level", choices=LOG_LEVELS, default=log_level, help=text)
        self._add_keys(options)

    def _add_keys(self, cls: type, skip: Collection[str] = ()) -> None:
        groups: dict[str, argparse._ArgumentGroup] = {}
        for key, hint, text in _described(cls):
            section, _, leaf = key.rpartition(".")
            if key not in self.keys and section not in skip and key not in skip:
                group = groups.setdefault(section, self.add_argument_group(f"{section} keys".strip()))
                shown = "true|false" if hint in (bool, bool | None) else leaf.upper()
                group.add_argument(f"--{key}", default=HIDDEN, metavar=shown, help=text)
                self.keys[key] = hint

    def add_config(self, shown: Collection[str], reason: str = "") -> None:
        """Adds --config, --print_config, and the sections and keys of `RunConfig` that are in `shown`.

        A YAML file may always hold every section, so that one file serves all commands. `reason` says why the other
        keys are no options of this command.
        """
        text = "Configuration file; given again, later ones go over earlier."
        self.add_argument("--config", action="append", default=[], metavar="YAML", help=text)
        text = "Print the resolved configuration as YAML, and do nothing else."
        self.add_argument("--print_config", action="store_true", help=text)
        self._add_keys(RunConfig, vars(RunConfig()).keys() - shown)
        self.why_not_others = reason
        aliases = [f"--{alias} stands for --{key}." for alias, key in ALIASES.items() if key in self.keys]
        self.epilog = " ".join(["A key on the command line goes over the YAML file.", *aliases])

    def parse(self, argv: Sequence[str]) -> tuple[Any, dict[str, Any]]:
        """The dataclass of the options, and the values of all that were given by name. Sets up logging."""
        given = vars(self.parse_intermixed_args(self._normalised(argv)))
        words = given.pop("words")
        for name in self.words:
            if words and name not in given:
                many = list[str] in (self.keys[name], *get_args(self.keys[name]))
                given[name], words = (words, []) if many else (words[0], words[1:])
        if words:
            raise ConfigError(f"{self.prog} does not know what {words[0]} is for: {self.stray_words}")
        for name in given.keys() & self.keys.keys():
            optional = given[name] == "null" and type(None) in get_args(self.keys[name])
            given[name] = None if optional else typed_value(name, given[name], self.keys[name])
        if missing := [name for name in self.needed if name not in given]:
            self.error(f"{', '.join(missing)} must be given")
        set_up_logging(given["log_level"])
        options = build(self.cls, given)
        check_fields(options, "")
        return options, given

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{' '.join(message.split())}; `{self.prog} --help` shows how to call it") from None

    def _normalised(self, argv: Sequence[str]) -> list[str]:
        """The same arguments with one spelling: --long_name=value. Raises ConfigError for unknown options."""
        words: list[str] = []
        rest = deque(argv)
        while rest and rest[0] != "--":
            word = rest.popleft()
            if not word.startswith("--"):
                words.append(word)
                continue
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            name = ALIASES.get(name, name)
            option = self._option_string_actions.get(f"--{name}") or self._refuse(name)
            hint = self.keys.get(name)
            if not equals and hint in (bool, bool | None):  # a file may follow a switch
                equals, value = "=", rest.popleft() if rest and rest[0].lower() in SWITCHES else "true"
            elif not equals and option.nargs is None and rest and not rest[0].startswith("--"):
                equals, value = "=", rest.popleft()
                numbers = name == "thresholds" or {list[float], list[int]} & {hint, *get_args(hint)}
                while numbers and rest and NUMBER.fullmatch(rest[0]):
                    value += f",{rest.popleft()}"  # 0.5 0.5 0
            words.append(f"--{name}{equals}{value}")
        return [*words, *rest]

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
        value = "required" if default is MISSING else f"default: {json.dumps(default, default=str).strip(chr(34))}"
        about = value if str in (hint, *get_args(hint)) else f"{describe_type(hint)}; {value}"
        text = f"{' '.join(said[each.name].split())} ({about})"
        yield prefix + each.name, hint, text.replace("%", "%%")


def given_keys(given: dict[str, Any]) -> dict[str, Any]:
    """The keys of `RunConfig` in the YAML files and options that `Parser.parse` found; options go over files."""
    keys: dict[str, Any] = {}
    for path in given["config"]:
        keys |= read_yaml(expanded(path, "config"))
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
    for a bug, each with a message and, with --debug, the traceback before it; 130 after a signal that asks to stop, 141
    if the reader of the output went away, else what `command` returned.
    """
    argv = list(argv)
    _prepare_process()
    try:
        code = 0
        with contextlib.suppress(SystemExit):  # --help, --print_config
            code = command(argv) or 0
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
    if isinstance(error, OSError) and error.filename is not None:
        remedy = "give another path, or change its permissions"
        return f"error: {error.filename} cannot be used: {error.strerror}; {remedy}", 2
    where = "the traceback is above" if traceback_shown else "run the same command with --debug for the traceback"
    about = f"This is a bug in dvt, not a mistake of yours: {where}."
    return f"internal error: {text}\n{about} Please report it with the command and that traceback.", 1


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
