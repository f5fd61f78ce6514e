"""`dvt eval` with eval.py, and `dvt report`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dvt.cli.support import Parser, given_keys, print_if_asked, set_up_logging, shipped_checkpoint
from dvt.config.files import config_from_dict, flattened
from dvt.config.sections import RunConfig
from dvt.value_checks import PATH, check_fields

SHOWN = ("data", "eval", "device_target", "seed", "output")
REPORT_FOLDER = "runs/report"


@dataclass
class EvalOptions:
    """What to evaluate.

    Args:
        checkpoint: Checkpoint of a trained or converted model.
        mode: 0 prints the results stored in the checkpoint; 1 evaluates with the thresholds stored in it; 2 finds
            thresholds on the training set, then evaluates.
    """

    checkpoint: str = field(metadata=PATH)
    mode: Literal[0, 1, 2] = 2

    def __post_init__(self) -> None:
        check_fields(self, "")


def run(argv: Sequence[str], prog: str, output: str | None = None, checkpoint: Callable[[], str] | None = None) -> None:
    """The command `dvt eval`; `output` and `checkpoint` say what to take if the arguments name none."""
    options, given = parse(argv, prog, checkpoint)
    keys = given_keys(given)  # before MindSpore is loaded, so that mistakes are refused at once
    keys["output"] = given.get("output") or output or str(Path(options.checkpoint).parent)
    from dvt.checkpoint.native import read_checkpoint

    loaded = read_checkpoint(options.checkpoint)
    stored = loaded.metadata.get("config")
    if stored is not None:
        config_from_dict(stored, f"the configuration stored in {options.checkpoint}")
    config = configuration(keys, stored)
    print_if_asked(given, config)
    set_up_logging(given["log_level"])
    from dvt.evaluation import evaluate_checkpoint

    evaluate_checkpoint(options.checkpoint, options.mode, config, config.output, loaded)


def report(argv: Sequence[str], prog: str) -> None:
    """The command `dvt report`: the same into another folder, and by default for the checkpoint of a checkout."""
    run(argv, prog, REPORT_FOLDER, shipped_checkpoint)


def parse(
    argv: Sequence[str], prog: str = "dvt eval", checkpoint: Callable[[], str] | None = None
) -> tuple[EvalOptions, dict[str, Any]]:
    """What to evaluate, and all the options that were given."""
    parser = Parser(
        prog,
        "Evaluate a checkpoint: accuracy of every exit, accuracy and cost with early exits, measured images/s. "
        "Data and evaluation keys start from those of the training run, if the checkpoint holds them.",
        usage=f"{prog} CHECKPOINT [--config YAML] [--KEY VALUE ...]",
    )
    parser.add_keys(EvalOptions, word="checkpoint")
    parser.add_config(SHOWN, reason="; the model and its training are fixed by the checkpoint")
    parser.set_help("output", "Folder for the results (default: that of the checkpoint).")
    given = parser.parse(argv)
    if checkpoint is not None and "checkpoint" not in given:
        given["checkpoint"] = checkpoint()
    return parser.options(EvalOptions, given), given


def configuration(keys: dict[str, Any], stored: dict[str, Any] | None) -> RunConfig:
    """`keys` over the configuration that the training run has stored in the checkpoint.

    The device is not taken from there, because the evaluation may run elsewhere, nor over how many images speed is
    measured: 0.1.0 stored its default of 2,048, which can take longer than the evaluation.
    """
    here = {"device_target": RunConfig.device_target, "eval.throughput_images": None}
    return config_from_dict(flattened(stored or {}) | here | keys)
