"""What the commands of `dvt.cli` share: option names, the parser of a run configuration, logging."""

import argparse
import logging
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dvt.config import RunConfig
from dvt.config_io import ConfigParser, config_to_yaml, did_you_mean, key_hints, read_yaml
from dvt.errors import ConfigError

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
    add_log_level(parser)
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


def add_log_level(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log_level", choices=LOG_LEVELS, default="info", help="Least important messages to show.")


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
