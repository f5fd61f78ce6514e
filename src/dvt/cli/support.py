"""What the commands share: the parser of their options, how a command ends, logging."""

import argparse
import errno
import logging
import os
import sys
import traceback
from collections import deque
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from jsonargparse import ArgumentParser
from tqdm import tqdm

from dvt.config.files import config_to_yaml, key_hints, merge, read_yaml, value_of_text
from dvt.config.sections import DeviceTarget, RunConfig
from dvt.errors import ConfigError, DVTError, did_you_mean, listing
from dvt.signals import INTERRUPTED, stop_done, stop_was_asked
from dvt.value_checks import check_value

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

_DEVICES = {name.lower(): name for name in get_args(DeviceTarget)}
_FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk, or the user's share of it


class Parser(ArgumentParser):
    """The options of one command. Every refusal is a ConfigError that names the option, the value and what is needed.

    Options may be written with dashes or underscores, `ALIASES` stand for longer names, and the keys of dataclasses
    become options with the help texts of their docstrings.
    """

    def __init__(self, prog: str, description: str, **more: Any) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False, print_config=None, **more)
        self.keys: dict[str, Any] = {}  # of dataclasses, with their types
        self.why_not_others: str | None = None  # why this command takes no other keys of RunConfig
        self.add_argument("--debug", action="store_true", help="Show the traceback of an error.")

    def add_log_level(self) -> None:
        """For commands that log."""
        self.add_argument("--log_level", choices=LOG_LEVELS, default="info", help="Least important messages to show.")

    def add_keys(self, cls: type, hidden: Collection[str] = (), skip: Collection[str] = ()) -> None:
        """Adds the keys of dataclass `cls` as options: not those in `skip`, and those in `hidden` without help."""
        self.add_class_arguments(cls, skip=set(skip))
        self.keys |= {key: hint for key, hint in key_hints(cls).items() if key.partition(".")[0] not in skip}
        for action in self._actions:
            if action.dest in hidden or action.dest in self._sections():
                action.help = HIDDEN

    def add_config(self, shown: Collection[str], reason: str = "") -> None:
        """Adds --config, --print_config, --log_level, and the sections and keys of `RunConfig` that are in `shown`.

        A YAML file may always hold every section, so that one file serves all commands. `reason` says why the other
        keys are no options of this command.
        """
        self.add_argument(
            "--config",
            action="append",
            default=HIDDEN,
            metavar="YAML",
            help="Configuration file; given again, later ones go over earlier.",
        )
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

    def options(self, cls: type, given: dict[str, Any]) -> Any:
        """The dataclass `cls`, whose keys were added as options, from the values that `parse` found."""
        return cls(**{key: given[key] for key in key_hints(cls) if key in given})

    def parse(self, argv: Sequence[str], defaults: bool = True) -> dict[str, Any]:
        """The values of all options, nested as their names are; without `defaults`, of those that were given."""
        words = self._normalised(argv)
        try:
            return self.parse_args(words, defaults=defaults).as_dict()
        except ConfigError:
            self._check_values(words)
            raise

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
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
            if option is None or name in self._sections():
                self._refuse(name)
            if not equals and option.nargs is None:
                if rest and not rest[0].startswith("--"):
                    equals, value = "=", rest.popleft()
                elif self.keys.get(name) in (bool, bool | None):
                    equals, value = "=", "true"
            if name == "device_target":
                value = _DEVICES.get(value.lower(), value)
            words.append(f"--{name}{equals}{value}")
        return words

    def _refuse(self, name: str) -> NoReturn:
        if name in self._sections():
            keys = [f"--{key}" for key in self.keys if key.startswith(f"{name}.")]
            raise ConfigError(f"--{name} is a section of keys; give one of them: {listing(keys)}")
        if self.why_not_others is not None and name in key_hints(RunConfig):
            raise ConfigError(f"{self.prog} takes no --{name}{self.why_not_others}")
        options = [option[2:] for option in self._option_string_actions if option[2:] and not option.endswith("+")]
        raise ConfigError(f"unknown option --{name}{did_you_mean(name, options, '--')}")

    def _check_values(self, words: Sequence[str]) -> None:
        """Refuses the first value that does not fit its key; jsonargparse says so in the words of Python's types."""
        for word in words:
            name, equals, text = word.removeprefix("--").partition("=")
            if equals and name in self.keys:
                check_value(name, value_of_text(text, self.keys[name]), self.keys[name])

    def _sections(self) -> set[str]:
        return {key.partition(".")[0] for key in self.keys if "." in key}


def given_keys(given: dict[str, Any]) -> dict[str, Any]:
    """The keys of `RunConfig` in the YAML files and options that `Parser.parse` found, the options laid over the files.

    Raises ConfigError, naming the file, for files that are not fit to be read.
    """
    keys: dict[str, Any] = {}
    options = {name: given[name] for name in vars(RunConfig()) if name in given}
    for layer in (*map(read_yaml, given.get("config", ())), options):
        merge(keys, layer)
    return keys


def print_if_asked(given: dict[str, Any], config: RunConfig) -> None:
    """With --print_config, prints `config` as YAML and raises SystemExit(0)."""
    if given.get("print_config"):
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

    2 after a user's mistake and 1 after a bug, each with a message on standard error and, if --debug is in `argv`, the
    traceback before it; 130 after a signal that asks to stop, 141 if the reader of the output went away, else what
    `command` returned.
    """
    argv = list(argv)
    try:
        try:
            code = command(argv) or 0
        except SystemExit as done:  # --help, --version and --print_config
            code = done.code if isinstance(done.code, int) else 0
        sys.stdout.flush()  # here, where a reader that went away is noticed
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
        message = _of_user(error)
        _tell(f"error: {message}" if message else _of_bug(error, "--debug" in argv))
        return 2 if message else 1
    finally:
        stop_done()


def _tell(message: str) -> None:
    """Prints a message on standard error, if there still is one."""
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:  # the terminal was closed; what is left in the buffer must not fail again when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _of_user(error: Exception) -> str | None:
    """The message of an error that the user can do something about; None for a bug."""
    if isinstance(error, DVTError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "mindspore":
        return "this command needs MindSpore: pip install 'dvt-mindspore[train]'"
    if isinstance(error, OSError) and error.errno in _FULL:
        return f"{error.filename or 'a file'} cannot be written: {error.strerror}; free some space, then run this again"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be used: {error.strerror}; give another path, or change its permissions"
    return None


def _of_bug(error: Exception, traceback_shown: bool) -> str:
    where = "the traceback is above" if traceback_shown else "run the same command with --debug for the traceback"
    return (
        f"internal error: {type(error).__name__}: {error}\nThis is a bug in dvt, not a mistake of yours: {where}. "
        "Please report it with the command and that traceback."
    )


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
