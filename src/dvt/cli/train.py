"""`dvt train` and train.py."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dvt.cli import dry_run
from dvt.cli.support import Parser, given_keys, print_if_asked
from dvt.config.files import config_from_dict
from dvt.config.sections import RunConfig
from dvt.value_checks import expanded


@dataclass
class TrainOptions:
    """Train a DVT and save its checkpoints.

    Args:
        dry_run: Train nothing: compile the step for simulated Ascend cards, RANK_SIZE of them (1), and say what it
            needs.
        largest_batch: With --dry_run: also look for the largest batch that fits into the memory of a card.
    """

    dry_run: bool = False
    largest_batch: bool = False


def run(argv: Sequence[str], prog: str) -> int | None:
    """The command."""
    options, config = parse(argv, prog)
    if options.dry_run or "MS_SIMULATION_LEVEL" in os.environ:  # MindSpore's own way to ask for one
        return dry_run.run(config, os.environ, largest=options.largest_batch)
    from dvt.training.run import train

    train(config)


def parse(argv: Sequence[str], prog: str = "dvt train") -> tuple[TrainOptions, RunConfig]:
    """What to do, and the configuration that the arguments ask for."""
    parser = Parser(prog, TrainOptions, log_level="info")
    parser.add_config(shown=vars(RunConfig()))
    parser.stray_words = (
        "--config takes configuration files, --data_path the images, --output the folder of the run; --resume takes no "
        "file and goes on with the run in --output"
    )
    options, given = parser.parse(argv)
    if given.get("resume") and "output" in given and not given["config"]:
        saved = Path(expanded(given["output"], "output")) / "config.yaml"
        if saved.exists():
            given["config"] = [saved]
    config = config_from_dict(given_keys(given))
    print_if_asked(given, config)
    return options, config
