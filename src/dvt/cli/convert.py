"""`dvt convert` and scripts/convert_checkpoint.py: released PyTorch checkpoints to `.ckpt`, and back."""

from collections.abc import Sequence

from dvt.checkpoint.pytorch import convert_from_pytorch, convert_to_pytorch
from dvt.cli.support import Parser
from dvt.errors import ConfigError
from dvt.models.variants import list_models


def run(argv: Sequence[str], prog: str) -> None:
    """The command."""
    parser = Parser(
        prog,
        "Converts a released PyTorch checkpoint of DVT to MindSpore, or back, with the results stored in it. The "
        "PyTorch file is only read, never executed. PyTorch comes from requirements-torch.txt.",
    )
    parser.add_path("input", "file to convert: .pth.tar, or .ckpt with --to-pytorch")
    parser.add_path("output", "file to write: .ckpt, or .pth.tar with --to-pytorch")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help=f"refuse the file unless it holds this variant ({', '.join(list_models())}); null recognises it",
    )
    parser.add_argument(
        "--weights",
        metavar="KEY",
        help="which weights to take where the file has several, such as state_dict_ema; null takes "
        "model_state_dict, else a moving average, else what there is",
    )
    parser.add_argument("--to_pytorch", action="store_true", help="from .ckpt to the released layout")
    parser.add_argument("--force", action="store_true", help="replace the file to write if it exists")
    given = parser.parse(argv)
    paths = given["input"], given["output"]
    if not given["to_pytorch"]:
        report = convert_from_pytorch(*paths, given["model"], given["weights"], given["force"])
    elif given["weights"]:
        raise ConfigError("--weights is for PyTorch files; a .ckpt has one set of weights")
    else:
        report = convert_to_pytorch(*paths, given["model"], given["force"])
    print("\n".join(report))
