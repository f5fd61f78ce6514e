"""`dvt train` and train.py."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dvt.cli import dry_run
from dvt.cli.support import HIDDEN, Parser, given_keys, print_if_asked, set_up_logging
from dvt.config.files import config_from_dict
from dvt.config.sections import RunConfig
from dvt.errors import ConfigError
from dvt.value_checks import expanded


def run(argv: Sequence[str], prog: str) -> int | None:
    """The command."""
    given, config = options_and_config(argv, prog)
    print_if_asked(given, config)
    set_up_logging(given["log_level"])
    if given["dry_run"] or "MS_SIMULATION_LEVEL" in os.environ:  # MindSpore's own way to ask for one
        return dry_run.run(config, os.environ, largest=given["largest_batch"])
    from dvt.training.run import train

    train(config)


def parse(argv: Sequence[str], prog: str = "dvt train") -> RunConfig:
    """The configuration that the arguments ask for."""
    return options_and_config(argv, prog)[1]


def options_and_config(argv: Sequence[str], prog: str) -> tuple[dict[str, Any], RunConfig]:
    """The options that the arguments give, and the configuration that they ask for."""
    parser = Parser(prog, "Train a DVT and save its checkpoints.", usage=f"{prog} [--config YAML] [--KEY VALUE ...]")
    parser.add_config(shown=vars(RunConfig()))
    text = "Train nothing: compile the step for simulated Ascend cards, RANK_SIZE of them (1), and say what it needs."
    parser.add_argument("--dry_run", action="store_true", help=text)
    text = "With --dry_run: also look for the largest batch that fits into the memory of a card."
    parser.add_argument("--largest_batch", action="store_true", help=text)
    parser.add_argument("words", nargs="*", help=HIDDEN)
    given = parser.parse(argv)
    if given["words"]:
        raise ConfigError(
            f"{prog} does not know what {given['words'][0]} is for: --config takes configuration files, --data_path "
            "the images, --output the folder of the run; --resume takes no file and goes on with the run in --output"
        )
    if given.get("resume") and "output" in given and not given["config"]:
        saved = Path(expanded(given["output"], "output")) / "config.yaml"
        if saved.exists():
            given["config"] = [saved]
    return given, config_from_dict(given_keys(given))
