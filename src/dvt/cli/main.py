"""The command line: `dvt COMMAND ...`, and `train.py`, `eval.py`, `export.py` of a checkout.

Each command has a module beside this one, imported when the command is asked for; MindSpore is imported only where a
model runs, so that help and refusals come at once. `dvt.cli.support.run_command` says what becomes of errors.
"""

import pkgutil
import sys
from collections.abc import Sequence

import dvt
from dvt.cli.support import run_command
from dvt.errors import ConfigError, did_you_mean
from dvt.signals import interrupt_on_signals

COMMANDS = {
    "train": ("dvt.cli.train:run", "train a model"),
    "eval": ("dvt.cli.evaluate:run", "evaluate a checkpoint, with early exits"),
    "report": ("dvt.cli.evaluate:report", "evaluate and write the report; by default that of the small model here"),
    "thresholds": ("dvt.cli.evaluate:thresholds", "choose thresholds for a budget from stored predictions"),
    "predict": ("dvt.cli.predict:run", "classify images, one at a time"),
    "export": ("dvt.cli.export:run", "write a trained model as a bundle of MindIR or ONNX files"),
    "infer": ("dvt.cli.predict:infer", "classify images with an exported bundle"),
    "convert": ("dvt.cli.convert:run", "convert checkpoints: released PyTorch files, MindSpore, safetensors"),
    "card": ("dvt.cli.convert:card", "print the model card of a checkpoint"),
    "records": ("dvt.cli.convert:records", "make MindRecord files of an image folder"),
    "lite": ("dvt.cli.convert:lite", "register files that were converted for MindSpore Lite"),
    "info": ("dvt.cli.info:run", "list the models, their parameters and costs"),
    "doctor": ("dvt.cli.doctor:run", "look at this machine and say what to do"),
}
"""Name of a command -> its function, which takes arguments and name of the program, and its summary."""

OVERVIEW = """\
usage: dvt COMMAND [options]

Dynamic Vision Transformer for MindSpore: vision transformers that stop early on easy images.

commands:
{commands}

`dvt COMMAND --help` lists the options of a command; `dvt --version` prints the version."""


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Runs one command, by default that of the process, and returns the exit code.

    `prog` is the name of an entry script that stands for one command, for messages.
    """
    interrupt_on_signals()  # entry points have done so; `main` may be called by others too
    return run_command(lambda words: _dispatch(words, prog), sys.argv[1:] if argv is None else argv)


def _dispatch(argv: list[str], prog: str | None) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        commands = "\n".join(f"  {name:<10} {summary}" for name, (_, summary) in COMMANDS.items())
        print(OVERVIEW.format(commands=commands))
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(f"dvt-mindspore {dvt.__version__}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}{did_you_mean(name, COMMANDS)}; commands: {', '.join(COMMANDS)}")
    return pkgutil.resolve_name(COMMANDS[name][0])(rest, prog or f"dvt {name}") or 0
