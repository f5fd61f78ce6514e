"""`dvt export` and export.py."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dvt.cli.support import Parser
from dvt.config.sections import DeviceTarget
from dvt.deploy.manifest import FORMATS, LARGEST_BATCH
from dvt.early_exit.loop import DEFAULT_BATCH_SIZES
from dvt.errors import ConfigError
from dvt.value_checks import PATH, bounds


@dataclass
class ExportOptions:
    """Write a trained model as files that run without this package, and check them by loading them again.

    Args:
        checkpoint: Checkpoint of a trained or converted model.
        output: Folder for the bundle; null for the folder "export" beside the checkpoint.
        format: One or more of MINDIR, ONNX, ONNX_INT8 and ONNX_BF16, with commas in between.
        precision: Type of weights and arithmetic; images and probabilities stay float32.
        batch_size: Fixed number of images per call of the MindIR files; null leaves it open.
        batch_sizes: Numbers of images that MindSpore Lite is prepared for.
        device_target: Device on which the MindIR files are checked; auto takes the best one that is there.
        calibration_path: Where the data set of the training run lies now, for its calibration images;
            null where it lay then.
        calibration_images: Images to measure the thresholds of ONNX_INT8 and ONNX_BF16 with, at most all there are.
        replace: Write over a bundle of other weights; without it formats are added to a bundle of the same weights.
    """

    checkpoint: str = field(metadata=PATH)
    output: str | None = field(default=None, metadata=PATH)
    format: str = "MINDIR"
    precision: Literal["float32", "float16"] = "float32"
    batch_size: int | None = field(default=None, metadata=bounds(1, LARGEST_BATCH))
    batch_sizes: list[int] = field(default_factory=lambda: list(DEFAULT_BATCH_SIZES), metadata=bounds(1, LARGEST_BATCH))
    device_target: DeviceTarget = "auto"
    calibration_path: str | None = field(default=None, metadata=PATH)
    calibration_images: int = field(default=500, metadata=bounds(1))
    replace: bool = False


def run(argv: Sequence[str], prog: str) -> None:
    """The command."""
    asked = vars(parse(argv, prog))
    asked["formats"] = asked.pop("format").split(",")
    asked["output"] = asked["output"] or str(Path(asked["checkpoint"]).parent / "export")
    from dvt.deploy.bundle import export_checkpoint

    export_checkpoint(**asked)


def parse(argv: Sequence[str], prog: str = "dvt export") -> ExportOptions:
    """What the arguments ask for."""
    options, _ = Parser(prog, ExportOptions, log_level="info").parse(argv)
    names = [name.strip().upper() for name in options.format.split(",") if name.strip()] or [options.format]
    for name in names:
        if name not in FORMATS:
            raise ConfigError(f"unknown format {name!r}; choose from {', '.join(FORMATS)}")
    options.format = ",".join(names)
    return options
