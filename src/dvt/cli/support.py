"""What the commands share: option names, the parser of a run configuration, how they end, logging."""

import argparse
import errno
import logging
import os
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from dvt.config.files import ConfigParser, config_to_yaml, did_you_mean, key_hints, read_yaml, reworded
from dvt.config.sections import RunConfig
from dvt.errors import ConfigError, DVTError
from dvt.signals import INTERRUPTED

HIDDEN = argparse.SUPPRESS

LOG_LEVELS = ("debug", "info", "warning", "error")

# Short or customary names of options; the epilog of --help lists them.
ALIASES = {
    "data_path": "data.path",
    "data_url": "data.path",
    "train_url": "output",
    "budget_gmacs": "eval.budget_gmacs",
    "budget_images_per_second": "eval.budget_images_per_second",
    "max_accuracy_drop": "eval.max_accuracy_drop",
    "exit_rule": "eval.exit_rule",
}  # the latter two as in ModelArts jobs

# What someone most likely means by an option that is really a section.
MAIN_KEYS = {
    "model": "model.name",
    "data": "data.path",
    "train": "train.epochs",
    "eval": "eval.batch_size",
    "augment": "augment.policy",
}

_FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk, or the user's share of it

_DEVICES = {name.lower(): name for name in ("auto", "CPU", "GPU", "Ascend")}


def normalise(argv: Sequence[str], switches: Iterable[str] = ()) -> list[str]:
    """The same arguments with one spelling: underscores in option names, aliases resolved, device names in their case,
    a bare --resume as --resume=true (so for every yes-or-no key, and for `switches`), and every --config in front, so
    that a key given on the command line wins wherever it stands.
    """
    configs, rest = [], []
    switches = {*switches} | {key for key, hint in key_hints(RunConfig).items() if hint in (bool, bool | None)}
    words = deque(argv)
    while words:
        word = words.popleft()
        if not word.startswith("--") or word == "--":
            rest.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        name = ALIASES.get(name, name)
        value_follows = bool(words) and not words[0].startswith("--")
        if name in ("config", "device_target") and not equals and value_follows:
            equals, value = "=", words.popleft()
        elif name in switches and not equals and not value_follows:
            equals, value = "=", "true"
        if name == "device_target":
            value = _DEVICES.get(value.lower(), value)
        (configs if name == "config" else rest).append(f"--{name}{equals}{value}")
    return configs + rest


def peek(argv: Sequence[str], *names: str) -> dict[str, list[str]]:
    """The values given to some options of normalised `argv`, before the parser proper is built."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in names:
        parser.add_argument(f"--{name}", action="append", default=[])
    try:
        return vars(parser.parse_known_args(list(argv))[0])
    except argparse.ArgumentError:  # an option without its value: the parser proper will say so
        return {name: [] for name in names}


def resumed(argv: list[str]) -> list[str]:
    """Normalised `argv`, with the configuration saved in the run folder first if a run is to be resumed."""
    asked = peek(argv, "resume", "output", "config")
    if asked["resume"][-1:] == ["true"] and asked["output"] and not asked["config"]:
        saved = Path(asked["output"][-1]) / "config.yaml"
        if saved.exists():
            return [f"--config={saved}", *argv]
    return argv


def run_config_parser(prog: str, description: str, shown: Iterable[str], options: type | None = None) -> ConfigParser:
    """A parser with --config, the keys of `options` and those of `RunConfig`.

    A YAML file may always hold every section, so that one file serves all commands; `shown` are the sections and
    top-level keys of `RunConfig` that this command also takes as options and lists in its help.
    """
    shown = set(shown)
    parser = ConfigParser(
        prog=prog,
        print_config=None,
        usage=f"{prog} [--config YAML] [--KEY VALUE ...]",
        description=description,
        epilog="Every key may be written with dashes or underscores. A key on the command line goes over the YAML file."
        + "".join(f" --{alias} stands for --{key}." for alias, key in ALIASES.items() if key.split(".")[0] in shown),
    )
    parser.add_argument(
        "--config", action="config", metavar="YAML", help="Configuration file; given again, later ones go over earlier."
    )
    parser.add_argument(
        "--print_config", action="store_true", help="Print the resolved configuration as YAML, and do nothing else."
    )
    add_common_options(parser)
    if options is not None:
        parser.add_dataclass(options)
    parser.add_dataclass(RunConfig)
    known = {key.split(".")[0] for key in parser.hints} - shown
    for action in parser._actions:
        root, _, leaf = action.dest.partition(".")
        if (root in MAIN_KEYS and not leaf) or (root in known and root in vars(RunConfig())):
            action.help = HIDDEN
    return parser


def set_help(parser: argparse.ArgumentParser, key: str, text: str) -> None:
    """Give option `key` another help text; HIDDEN leaves it out of --help."""
    next(action for action in parser._actions if action.dest == key).help = text


def print_if_asked(argv: Sequence[str], config: RunConfig) -> None:
    """Print `config` as YAML and raise SystemExit(0) if --print_config is among the arguments."""
    if "--print_config" in normalise(argv):
        print(config_to_yaml(config), end="")
        raise SystemExit(0)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """The options that every command with a `ConfigParser` has."""
    parser.add_argument("--log_level", choices=LOG_LEVELS, default="info", help="Least important messages to show.")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")


def parse(parser: ConfigParser, argv: Sequence[str], shown: Iterable[str], reason: str = "") -> dict[str, Any]:
    """Parse normalised `argv`; the nested values of all keys. Raises ConfigError, naming option or file."""
    shown = set(shown)
    for argument in argv:
        name = argument[2:].partition("=")[0] if argument.startswith("--") else ""
        root = name.partition(".")[0]
        if name in MAIN_KEYS:
            raise ConfigError(f"--{name} is a section of keys; did you mean --{MAIN_KEYS[name]}?")
        if root in vars(RunConfig()) and root not in shown and name in parser.hints:
            raise ConfigError(f"{parser.prog} takes no --{name}{reason}")
    for path in peek(argv, "config")["config"]:
        read_yaml(path)  # refuses with the file's name; the parser reads it again
    return parser.parse_args(list(argv)).as_dict()


def unknown_command(name: str, commands: Iterable[str]) -> ConfigError:
    commands = list(commands)
    return ConfigError(f"unknown command {name!r}{did_you_mean(name, commands)}; commands: {', '.join(commands)}")


class PlainParser(argparse.ArgumentParser):
    """An argparse parser with --debug, whose refusals are ConfigErrors; for commands without a run configuration."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, allow_abbrev=False)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        raise ConfigError(reworded(message, self)) from None


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
        message = _of_user(error)
        _tell(f"error: {message}" if message else _of_bug(error, "--debug" in argv))
        return 2 if message else 1


def _tell(message: str) -> None:
    """Prints a message on standard error, if there still is one."""
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:  # the terminal was closed; what is left in the buffer must not fail again when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _of_user(error: Exception) -> str | None:
    """The message of an error that a user can mend; None for a bug."""
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
