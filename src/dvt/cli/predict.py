"""`dvt predict`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dvt.cli.support import Parser, shipped_checkpoint
from dvt.config.sections import DeviceTarget
from dvt.value_checks import PATH, bounds, check_fields


@dataclass
class PredictOptions:
    """What to classify.

    Args:
        checkpoint: Checkpoint of a trained or converted model; in a checkout, by default the small one shipped with it.
        thresholds: Confidence from which an image leaves, one per exit; null takes those stored in the checkpoint.
        top: How many classes to name.
        json: Print one JSON object per line.
        device_target: Device to run on; auto takes the best one that is there.
    """

    checkpoint: str | None = field(default=None, metadata=PATH)
    thresholds: list[float] | None = None
    top: int = field(default=5, metadata=bounds(1))
    json: bool = False
    device_target: DeviceTarget = "auto"

    def __post_init__(self) -> None:
        check_fields(self, "")
        self.checkpoint = self.checkpoint or shipped_checkpoint()


def run(argv: Sequence[str], prog: str) -> int:
    """The command."""
    images, options = parse(argv, prog)
    from dvt.evaluation.predict import predict_files

    return predict_files(
        images, options.checkpoint, options.thresholds, options.top, options.json, options.device_target
    )


def parse(argv: Sequence[str], prog: str = "dvt predict") -> tuple[list[str], PredictOptions]:
    """Images or folders, and how to classify them."""
    parser = Parser(
        prog,
        "Classify images, each with as much work as it needs: classes, exit taken, GMACs, milliseconds.",
        usage=f"{prog} IMAGE_OR_FOLDER... [--checkpoint FILE] [--KEY VALUE ...]",
        epilog="Exit code 0: all done; 1: some files could not be classified; 2: nothing was done.",
    )
    parser.add_log_level()
    text = "image files, or folders of them; - reads an image from standard input"
    parser.add_path("images", text, nargs="+", metavar="IMAGE_OR_FOLDER")
    parser.add_keys(PredictOptions)
    given = parser.parse(argv)
    return given["images"], parser.options(PredictOptions, given)
