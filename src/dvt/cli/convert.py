"""Files made of other files: `dvt convert` (scripts/convert_checkpoint.py), `dvt card`, `dvt records`
(scripts/make_mindrecord.py), and `dvt lite`, the last step of scripts/run_lite_convert.sh."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dvt.cli.support import Parser
from dvt.config.sections import DataSection
from dvt.errors import ConfigError
from dvt.value_checks import PATH, bounds


@dataclass
class ConvertOptions:
    """Convert a checkpoint of DVT, with the results stored in it: released PyTorch files to MindSpore or back, either
    to safetensors. Nothing in a file is executed. PyTorch, for its files, comes from requirements-torch.txt.

    Args:
        input: Checkpoint to convert: a PyTorch file, a .ckpt, a .safetensors, or a folder with one.
        output: What to write: .ckpt; .safetensors; without an ending a folder of config.json, model.safetensors and
            README.md; with --to-pytorch .pth.tar.
        model: Refuse the file unless it holds this variant, one of those that `dvt info` lists; null recognises it.
        weights: Which weights to take where the file has several, such as state_dict_ema; null takes
            model_state_dict, else a moving average, else what there is.
        to_pytorch: Write the released layout.
        naming: Names of the tensors in safetensors: dvt, or published, those of the released checkpoints.
        force: Replace the file to write if it exists.
    """

    input: str = field(metadata=PATH)
    output: str = field(metadata=PATH)
    model: str | None = None
    weights: str | None = None
    to_pytorch: bool = False
    naming: Literal["dvt", "published"] = "dvt"
    force: bool = False


def run(argv: Sequence[str], prog: str) -> None:
    """The command `dvt convert`."""
    asked, _ = Parser(prog, ConvertOptions).parse(argv)
    from dvt.checkpoint.pytorch import convert_from_pytorch, convert_to_pytorch

    if not asked.to_pytorch:
        given = (asked.input, asked.output, asked.model, asked.weights, asked.force)
        report = convert_from_pytorch(*given, naming=asked.naming)
    elif asked.weights:
        raise ConfigError("--weights is for PyTorch files; a .ckpt has one set of weights")
    else:
        report = convert_to_pytorch(asked.input, asked.output, asked.model, asked.force)
    print("\n".join(report))


@dataclass
class CardOptions:
    """Print the model card of a checkpoint: model, accuracy per exit, thresholds, certificate, measured speed, data, as
    far as it knows them.

    Args:
        checkpoint: Checkpoint or folder.
    """

    checkpoint: Path = field(metadata=PATH)


def card(argv: Sequence[str], prog: str) -> None:
    """The command `dvt card`."""
    asked, _ = Parser(prog, CardOptions).parse(argv)
    from dvt.checkpoint.card import card
    from dvt.checkpoint.native import read_checkpoint

    checkpoint = read_checkpoint(asked.checkpoint)
    print(card(checkpoint.model, checkpoint.metadata, asked.checkpoint), end="")


@dataclass
class RecordOptions:
    """Make MindRecord files of an image folder, to be given as data.path in its place.

    Args:
        data_path: Folder that holds train/CLASS/* and val/CLASS/*.
        output: Folder for the record files; made if need be.
        shards: Files per part.
        part: Parts to write, with commas in between.
        on_bad_image: What an image that cannot be read does: fail ends the work; skip names it and leaves it out.
        max_bad_images: With skip, the most bad images of a part: below 1 a share, from 1 up a number.
    """

    data_path: Path = field(metadata=PATH)
    output: Path = field(metadata=PATH)
    shards: int = field(default=8, metadata=bounds(1, 1000))
    part: str = "train,val"
    on_bad_image: Literal["fail", "skip"] = DataSection.on_bad_image
    max_bad_images: float = field(default=DataSection.max_bad_images, metadata=bounds(above=0))


def records(argv: Sequence[str], prog: str) -> None:
    """The command `dvt records`."""
    asked, _ = Parser(prog, RecordOptions, log_level="info").parse(argv)
    data = DataSection(on_bad_image=asked.on_bad_image, max_bad_images=asked.max_bad_images)
    from dvt.data.sources.record_writer import write_records

    counts = write_records(asked.data_path, asked.output, asked.shards, asked.part.split(","), data)
    for part, count in counts.items():
        print(f"{part}: {count:,} images in {asked.output}")


@dataclass
class LiteOptions:
    """Register files converted for MindSpore Lite.

    Args:
        bundle: Folder that export.py wrote.
        target: What they were converted for.
    """

    bundle: str = field(metadata=PATH)
    target: Literal["cpu", "ascend"]


def lite(argv: Sequence[str], prog: str) -> None:
    """The command `dvt lite`."""
    asked, _ = Parser(prog, LiteOptions).parse(argv)
    from dvt.deploy.lite import register

    converted = register(asked.bundle, asked.target)
    print(f"registered {', '.join(entry.file for entry in converted.exits)} in {asked.bundle}")
