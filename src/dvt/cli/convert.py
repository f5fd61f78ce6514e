"""`dvt convert` and scripts/convert_checkpoint.py: released PyTorch checkpoints to `.ckpt`, and back."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dvt.checkpoint.pytorch import convert_from_pytorch, convert_to_pytorch
from dvt.cli.support import Parser
from dvt.errors import ConfigError
from dvt.value_checks import PATH


@dataclass
class ConvertOptions:
    """Convert a released PyTorch checkpoint of DVT to MindSpore, or back, with the results stored in it. The PyTorch
    file is only read, never executed. PyTorch comes from requirements-torch.txt.

    Args:
        input: File to convert: .pth.tar, or .ckpt with --to_pytorch.
        output: File to write: .ckpt, or .pth.tar with --to_pytorch.
        model: Refuse the file unless it holds this variant, one of those that `dvt info` lists; null recognises it.
        weights: Which weights to take where the file has several, such as state_dict_ema; null takes
            model_state_dict, else a moving average, else what there is.
        to_pytorch: From .ckpt to the released layout.
        force: Replace the file to write if it exists.
    """

    input: str = field(metadata=PATH)
    output: str = field(metadata=PATH)
    model: str | None = None
    weights: str | None = None
    to_pytorch: bool = False
    force: bool = False


def run(argv: Sequence[str], prog: str) -> None:
    """The command."""
    asked, _ = Parser(prog, ConvertOptions).parse(argv)
    if not asked.to_pytorch:
        report = convert_from_pytorch(asked.input, asked.output, asked.model, asked.weights, asked.force)
    elif asked.weights:
        raise ConfigError("--weights is for PyTorch files; a .ckpt has one set of weights")
    else:
        report = convert_to_pytorch(asked.input, asked.output, asked.model, asked.force)
    print("\n".join(report))
