"""`dvt eval` with eval.py, and `dvt report`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dvt.cli.support import Parser, given_keys, print_if_asked, shipped_checkpoint
from dvt.config.files import config_from_dict, flattened
from dvt.config.sections import RunConfig
from dvt.value_checks import PATH

SHOWN = ("data", "eval", "device_target", "seed", "output")


@dataclass
class EvalOptions:
    """Evaluate a checkpoint: accuracy of every exit, accuracy and cost with early exits, measured images/s. Data and
    evaluation keys start from those of the training run, if the checkpoint holds them.

    Args:
        checkpoint: Checkpoint of a trained or converted model.
        mode: 0 prints the results stored in the checkpoint; 1 evaluates with the thresholds stored in it; 2 finds
            thresholds on the training set, then evaluates.
        output: Folder for the results; null for that of the checkpoint.
    """

    checkpoint: str = field(metadata=PATH)
    mode: Literal[0, 1, 2] = 2
    output: str | None = field(default=None, metadata=PATH)


@dataclass
class ReportOptions(EvalOptions):
    __doc__ = EvalOptions.__doc__

    checkpoint: str | None = field(default=None, metadata=PATH)
    output: str | None = field(default="runs/report", metadata=PATH)


def run(argv: Sequence[str], prog: str, options: type[EvalOptions] = EvalOptions) -> None:
    """The command `dvt eval`."""
    asked, given = parse(argv, prog, options)
    checkpoint = asked.checkpoint or shipped_checkpoint()
    keys = given_keys(given)  # before MindSpore is loaded, so that mistakes are refused at once
    keys["output"] = asked.output or str(Path(checkpoint).parent)
    from dvt.checkpoint.native import read_checkpoint

    loaded = read_checkpoint(checkpoint)
    stored = loaded.metadata.get("config")
    if stored is not None:
        config_from_dict(stored, f"the configuration stored in {checkpoint}")
    config = configuration(keys, stored)
    print_if_asked(given, config)
    from dvt.evaluation import evaluate_checkpoint

    evaluate_checkpoint(checkpoint, asked.mode, config, config.output, loaded)


def report(argv: Sequence[str], prog: str) -> None:
    """The command `dvt report`: the same into another folder, and by default for the checkpoint of a checkout."""
    run(argv, prog, ReportOptions)


def parse(
    argv: Sequence[str], prog: str = "dvt eval", options: type[EvalOptions] = EvalOptions
) -> tuple[EvalOptions, dict[str, Any]]:
    """What to evaluate, and all the options that were given."""
    words = [] if options is EvalOptions else ["checkpoint"]
    parser = Parser(prog, options, words, log_level="info")
    parser.add_config(SHOWN, reason="; the model and its training are fixed by the checkpoint")
    return parser.parse(argv)


def configuration(keys: dict[str, Any], stored: dict[str, Any] | None) -> RunConfig:
    """`keys` over the configuration that the training run has stored in the checkpoint.

    The device is not taken from there, because the evaluation may run elsewhere, nor over how many images speed is
    measured: 0.1.0 stored its default of 2,048, which can take longer than the evaluation.
    """
    here = {"device_target": RunConfig.device_target, "eval.throughput_images": None}
    return config_from_dict(flattened(stored or {}) | here | keys)
