"""`dvt eval` with eval.py, and `dvt report`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dvt.cli.support import Parser, given_keys, print_if_asked, set_up_logging, shipped_checkpoint
from dvt.config.files import config_from_dict, merge
from dvt.config.sections import RunConfig

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

    checkpoint: str
    mode: Literal[0, 1, 2] = 2


def run(argv: Sequence[str], prog: str, output: str | None = None) -> None:
    """The command `dvt eval`; `output` is the folder for the results if the arguments name none."""
    options, given = parse(argv, prog)
    keys = given_keys(given)  # before MindSpore is loaded, so that mistakes are refused at once
    keys["output"] = given.get("output") or output or str(Path(options.checkpoint).parent)
    from dvt.checkpoint.native import read_checkpoint

    stored = read_checkpoint(options.checkpoint).metadata.get("config")
    if stored is not None:
        config_from_dict(stored, f"the configuration stored in {options.checkpoint}")
    config = configuration(keys, stored)
    print_if_asked(given, config)
    set_up_logging(given.get("log_level", "info"))
    from dvt.evaluation import evaluate_checkpoint

    evaluate_checkpoint(options.checkpoint, options.mode, config, config.output)


def report(argv: Sequence[str], prog: str) -> None:
    """The command `dvt report`: the same into another folder, and by default for the checkpoint of a checkout."""
    words = list(argv)
    if words and not words[0].startswith("-"):
        words[0] = f"--checkpoint={words[0]}"
    elif not any(word.startswith("--checkpoint") or word in ("-h", "--help") for word in words):
        words.append(f"--checkpoint={shipped_checkpoint()}")
    run(words, prog, REPORT_FOLDER)


def parse(argv: Sequence[str], prog: str = "dvt eval") -> tuple[EvalOptions, dict[str, Any]]:
    """What to evaluate, and all the options that were given."""
    parser = Parser(
        prog,
        "Evaluate a checkpoint: accuracy of every exit, accuracy and cost with early exits, measured images/s. "
        "Data and evaluation keys start from those of the training run, if the checkpoint holds them.",
        usage=f"{prog} [--config YAML] [--KEY VALUE ...]",
    )
    parser.add_keys(EvalOptions)
    parser.add_config(SHOWN, reason="; the model and its training are fixed by the checkpoint")
    parser.set_help("output", "Folder for the results; by default that of the checkpoint.")
    given = parser.parse(argv, defaults=False)
    return parser.options(EvalOptions, given), given


def configuration(keys: dict[str, Any], stored: dict[str, Any] | None) -> RunConfig:
    """`keys` over the configuration that the training run has stored in the checkpoint.

    The device is not taken from there, because the evaluation may run elsewhere.
    """
    values: dict[str, Any] = {}
    for layer in (stored or {}, {"device_target": RunConfig.device_target}, keys):
        merge(values, layer)
    return config_from_dict(values)
