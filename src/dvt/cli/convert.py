"""`dvt convert` and scripts/convert_checkpoint.py: released PyTorch checkpoints to `.ckpt`, and back."""

import argparse
import sys
from collections.abc import Sequence

from dvt.checkpoint.pytorch import convert_from_pytorch, convert_to_pytorch
from dvt.cli.support import PlainParser, run_command
from dvt.models.variants import list_models


def main(arguments: Sequence[str] | None = None, prog: str = "convert_checkpoint.py") -> int:
    """The command; returns its exit code, 0 when the file is written."""
    return run_command(lambda words: _run(words, prog), sys.argv[1:] if arguments is None else arguments)


def _run(arguments: list[str], prog: str) -> None:
    options = _parse(arguments, prog)
    if options.to_pytorch:
        report = convert_to_pytorch(options.input, options.output, options.model, options.force)
    else:
        report = convert_from_pytorch(options.input, options.output, options.model, options.weights, options.force)
    print("\n".join(report))


def _parse(arguments: Sequence[str], prog: str) -> argparse.Namespace:
    parser = PlainParser(
        prog=prog,
        description="Converts a released PyTorch checkpoint of DVT to MindSpore, or back, with the results stored in "
        "it. The PyTorch file is only read, never executed. PyTorch comes from requirements-torch.txt.",
    )
    parser.add_argument("input", metavar="IN", help="file to convert: .pth.tar, or .ckpt with --to-pytorch")
    parser.add_argument("output", metavar="OUT", help="file to write: .ckpt, or .pth.tar with --to-pytorch")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help=f"refuse the file unless it holds this variant ({', '.join(list_models())}); default: recognise it",
    )
    parser.add_argument(
        "--weights",
        metavar="KEY",
        help="which weights to take where the file has several, such as state_dict_ema; default: model_state_dict, "
        "else a moving average, else what there is",
    )
    parser.add_argument("--to-pytorch", "--to_pytorch", action="store_true", help="from .ckpt to the released layout")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    options = parser.parse_args(arguments)
    if options.to_pytorch and options.weights:
        parser.error("--weights is for PyTorch files; a .ckpt has one set of weights")
    return options
