"""The commands about early exits: `dvt predict`, `dvt thresholds`.

As in `dvt.cli.main`, each parses, calls, prints and returns. MindSpore is imported only where a model runs;
`dvt thresholds` does without it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dvt.cli import support
from dvt.config.files import ConfigParser, key_hints
from dvt.config.sections import DeviceTarget, EvalSection
from dvt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from dvt.early_exit.budgets import Recommended

DEFAULT_CHECKPOINT = Path(__file__).parents[3] / "checkpoints" / "quickstart.ckpt"  # of a checkout


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

    checkpoint: str | None = None
    thresholds: list[float] | None = None
    top: int = 5
    json: bool = False
    device_target: DeviceTarget = "auto"

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ConfigError(f"top is {self.top}; it must be at least 1")
        self.checkpoint = self.checkpoint or shipped_checkpoint()


@dataclass
class ThresholdOptions:
    """Which thresholds are wanted.

    Args:
        json: Print one JSON object.
        eval: What they are to achieve; keys that run a model have no effect here.
    """

    json: bool = False
    eval: EvalSection = field(default_factory=EvalSection)


def shipped_checkpoint() -> str:
    """The small checkpoint of the quick start. Raises ConfigError where this is no checkout."""
    if not DEFAULT_CHECKPOINT.is_file():
        raise ConfigError("--checkpoint is required; there is none in this installation")
    return str(DEFAULT_CHECKPOINT)


def parse_predict(argv: Sequence[str], prog: str = "dvt predict") -> tuple[list[str], PredictOptions]:
    """Images or folders, and how to classify them."""
    parser = ConfigParser(
        prog=prog,
        usage=f"{prog} IMAGE_OR_FOLDER... [--checkpoint FILE] [--KEY VALUE ...]",
        description="Classify images, each with as much work as it needs: classes, exit taken, GMACs, milliseconds.",
        epilog="Exit code 0: all done; 1: some files could not be classified; 2: nothing was done.",
    )
    support.add_common_options(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="PNG, JPEG, WebP or BMP files, or folders")
    parser.add_dataclass(PredictOptions)
    values = parser.parse_args(support.normalise(argv, switches=["json"])).as_dict()
    return values["images"], PredictOptions(**{key: values[key] for key in key_hints(PredictOptions)})


def predict(argv: list[str], prog: str) -> int:
    """`dvt predict`."""
    images, options = parse_predict(argv, prog)
    from dvt.evaluation.predict import predict_files

    return predict_files(
        images, options.checkpoint, options.thresholds, options.top, options.json, options.device_target
    )


def parse_thresholds(argv: Sequence[str], prog: str = "dvt thresholds") -> tuple[str, ThresholdOptions]:
    """The predictions file, and the budget."""
    parser = ConfigParser(
        prog=prog,
        usage=f"{prog} PREDICTIONS [--budget_gmacs G | --budget_images_per_second N | --max_accuracy_drop P]",
        description="Choose thresholds from the predictions.npz of an evaluation, without running the model again.",
        epilog="--KEY stands for --eval.KEY.",
    )
    support.add_common_options(parser)
    parser.add_argument("predictions", metavar="PREDICTIONS", help="predictions.npz, or the folder that holds it")
    parser.add_dataclass(ThresholdOptions)
    for key in ("batch_size", "throughput_images", "keep_probabilities", "store", "temperature_scaling"):
        support.set_help(parser, f"eval.{key}", support.HIDDEN)
    support.set_help(parser, "eval", support.HIDDEN)
    values = parser.parse_args(support.normalise(argv, switches=["json"])).as_dict()
    return values["predictions"], ThresholdOptions(values["json"], EvalSection(**values["eval"]))


def thresholds(argv: list[str], prog: str) -> None:
    """`dvt thresholds`."""
    path, options = parse_thresholds(argv, prog)
    from dvt.early_exit.budgets import Costs, choose_thresholds, recommend
    from dvt.early_exit.outcomes import StoredPredictions

    stored = StoredPredictions.load(path)
    if stored.calibration is None:
        raise DataError(f"{path} holds no calibration images to choose thresholds on; evaluate with --mode 2")
    if options.eval.temperature_scaling:
        raise ConfigError("temperatures are fitted by the evaluation; run it with --eval.temperature_scaling")
    costs = Costs(stored.cumulative_gmacs, stored.cumulative_seconds)
    choice = choose_thresholds(stored.calibration, costs, options.eval, stored.temperatures)
    found, last = recommend(choice, stored.calibration, stored.val, costs), stored.val.accuracy[-1]
    print(json.dumps(asdict(found) | {"last_exit_accuracy": last}) if options.json else _described(found, last))


def _described(found: "Recommended", last_exit_accuracy: float) -> str:
    budget = found.budget
    lines = [
        f"thresholds: {', '.join(f'{value:.6g}' for value in found.thresholds)}",
        f"chosen: {found.rule}",
        f"budget, {budget.unit}: asked for {budget.asked:.4g}, on the calibration images "
        f"{budget.calibration:.4g}, on held-out images {budget.held_out:.4g}",
        f"held-out images: {found.accuracy:.2f} % (last exit {last_exit_accuracy:.2f} %) at "
        f"{found.expected_gmacs:.4g} GMACs/image, {100 * found.cost_fraction:.1f} % of the last exit's cost",
        "leave at each exit: " + ", ".join(f"{100 * share:.1f} %" for share in found.exit_fractions),
    ]
    if found.expected_images_per_second is not None:
        lines.append(f"by the measured times of the exits: {found.expected_images_per_second:.4g} images/s")
    return "\n".join(lines)
