"""`dvt predict`, which classifies with a checkpoint, and `dvt infer`, which does with an exported bundle."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from dvt.cli.support import SOME_FAILED, Parser, shipped_checkpoint
from dvt.config.sections import DeviceTarget
from dvt.value_checks import PATH, bounds


@dataclass
class PredictOptions:
    """Classify images, each with as much work as it needs: classes, exit taken, GMACs, milliseconds.

    Args:
        images: Image files, or folders of them; - reads an image from standard input.
        checkpoint: Checkpoint of a trained or converted model; in a checkout, by default the small one shipped with it.
        thresholds: Confidence from which an image leaves, one per exit; null takes those stored in the checkpoint.
        exif: honour turns images as their EXIF orientation says; ignore takes them as stored, as ImageNet recipes do.
        top: How many classes to name.
        json: Print one JSON object per line.
        device_target: Device to run on; auto takes the best one that is there.
    """

    images: list[str] = field(metadata=PATH)
    checkpoint: str | None = field(default=None, metadata=PATH)
    thresholds: list[float] | None = field(default=None, metadata=bounds(0))
    exif: Literal["honour", "ignore"] = "honour"
    top: int = field(default=5, metadata=bounds(1))
    json: bool = False
    device_target: DeviceTarget = "auto"


def run(argv: Sequence[str], prog: str) -> int:
    """The command `dvt predict`."""
    options = parse(argv, prog)
    from dvt.evaluation.predict import Predictor, find_images, predict_files

    files = find_images(options.images)
    predictor = Predictor(options.checkpoint, options.thresholds, options.device_target, options.exif)
    return predict_files(files, predictor, options.top, options.json)


def parse(argv: Sequence[str], prog: str = "dvt predict") -> PredictOptions:
    """What the arguments ask for."""
    options, _ = Parser(prog, PredictOptions, epilog=SOME_FAILED).parse(argv)
    options.checkpoint = options.checkpoint or shipped_checkpoint()
    return options


def infer(argv: Sequence[str], prog: str) -> int:
    """The command `dvt infer`; 1 if images could not be classified. Imports neither MindSpore nor the training."""
    from dvt.deploy.infer import InferRequest, infer

    request, _ = Parser(prog, InferRequest, epilog=SOME_FAILED).parse(argv)
    return 1 if infer(request) else 0
