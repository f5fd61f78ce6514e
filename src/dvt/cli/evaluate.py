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


@dataclass
class EvalRequest:
    """What the arguments ask for: the options, and the keys of `RunConfig` that options and YAML files hold."""

    options: EvalOptions
    given: dict[str, Any]
    keys: dict[str, Any]
    output: str

    def config(self, stored: dict[str, Any] | None = None) -> RunConfig:
        """The configuration, with `keys` over the one that the checkpoint's run has `stored` in it.

        The device is not taken from there, because the evaluation may run elsewhere, nor is the output folder.
        """
        values: dict[str, Any] = {}
        for layer in (stored or {}, {"device_target": "auto"}, self.keys, {"output": self.output}):
            merge(values, layer)
        return config_from_dict(values)


def run(argv: Sequence[str], prog: str, output: str | None = None) -> None:
    """The command `dvt eval`; `output` is the folder for the results if the arguments name none."""
    request = parse(argv, prog, output)  # before MindSpore is loaded, so that mistakes are refused at once
    from dvt.checkpoint.native import read_checkpoint

    path = request.options.checkpoint
    stored = read_checkpoint(path).metadata.get("config")
    if stored is not None:
        config_from_dict(stored, f"the configuration stored in {path}")
    config = request.config(stored)
    print_if_asked(request.given, config)
    set_up_logging(request.given.get("log_level", "info"))
    from dvt.evaluation import evaluate_checkpoint

    evaluate_checkpoint(path, request.options.mode, config, config.output)


def report(argv: Sequence[str], prog: str) -> None:
    """The command `dvt report`: the same with another output folder, and by default the checkpoint shipped with us."""
    words = list(argv)
    if words and not words[0].startswith("-"):
        words[0] = f"--checkpoint={words[0]}"
    elif not any(word.startswith("--checkpoint") or word in ("-h", "--help") for word in words):
        words.append(f"--checkpoint={shipped_checkpoint()}")
    run(words, prog, REPORT_FOLDER)


def parse(argv: Sequence[str], prog: str = "dvt eval", output: str | None = None) -> EvalRequest:
    """What the arguments ask for. The results go to `output` or beside the checkpoint, unless --output is given."""
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
    options = EvalOptions(given["checkpoint"], given.get("mode", EvalOptions.mode))
    folder = given.get("output") or output or str(Path(options.checkpoint).parent)
    return EvalRequest(options, given, given_keys(given), folder)
