"""What an evaluation finds: `Results`, which `results.json` keeps and the report shows. No MindSpore.

Accuracy is in percent, a fraction between 0 and 1, a cost in GMACs per image. GMACs are computed from the model's
shapes; images/s were measured, unless the name says "expected". Axis letters: K exits, P points of a curve.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dvt.early_exit.budgets import FrontierCurve, Recommended
from dvt.errors import DataError
from dvt.value_checks import from_plain


@dataclass(frozen=True)
class SweepCurve:
    """The published sweep of thresholds."""

    thresholds: list[list[float]]  # (P, K)
    accuracy: list[float]  # (P,)
    expected_gmacs: list[float]  # (P,)
    exit_fractions: list[list[float]]  # (P, K) share of the images that leave at each exit


@dataclass(frozen=True)
class PublishedCurve:
    """Published accuracy against average cost, cheapest first."""

    label: str
    source: str
    gmacs: Sequence[float]
    accuracy: Sequence[float]


@dataclass(frozen=True)
class Group:
    """The images with one value of an attribute, at the recommended thresholds."""

    count: int
    accuracy: float
    exit_fractions: list[float]  # (K,)


@dataclass(frozen=True)
class ClassesPresent:
    """Where the images show only some of the model's classes: top-1 with the outputs restricted to these."""

    count: int
    anytime_accuracy: list[float]  # (K,) of each exit on every image
    recommended_accuracy: float | None  # at the recommended thresholds


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Measured speed of all exits on every image, and of leaving early with the recommended thresholds. Images/s are
    medians of the rounds, ranges the slowest and the fastest round."""

    batch_size: int
    num_images: int
    rounds: int
    device: str
    all_exits_images_per_second: float
    all_exits_range: list[float]
    adaptive_images_per_second: float
    images_per_second_range: list[float]
    speed_up: float  # against all exits on every image, median of the rounds
    gmac_ratio: float  # the same by GMACs, on the images that were timed


@dataclass(frozen=True, kw_only=True)
class Results:
    """What an evaluation of one checkpoint on one data set finds.

    Raises DataError where cost and accuracy are about different numbers of exits.
    """

    model: dict[str, Any]  # `ModelConfig.to_dict()`
    checkpoint: str  # path
    mode: int  # 1: thresholds stored in the checkpoint, 2: found on calibration images
    dataset: str
    num_images: int
    images_left_out: dict[str, int] = field(default_factory=dict)  # by split, those that could not be read
    class_names: list[str]  # in the order of the labels
    date: str  # YYYY-MM-DD
    machine: dict[str, Any]  # `dvt.device.describe_machine()`
    config: dict[str, Any] | None = None  # of the evaluation
    cumulative_gmacs: list[float]  # (K,) cost of each exit, earlier ones included
    cumulative_seconds: list[float] | None = None  # (K,) the same as measured time of an image
    anytime_accuracy: list[float]  # (K,) of each exit on every image
    classes_present: ClassesPresent | None = None  # None: all classes, which is what the accuracies elsewhere are over
    sweep: SweepCurve
    frontier: FrontierCurve | None = None  # optimised thresholds; None without calibration images
    published: PublishedCurve | None = None
    recommended: Recommended | None = None  # None without thresholds
    groups: dict[str, dict[str, Group]] = field(default_factory=dict)  # attribute -> value -> its images
    throughput: Throughput | None = None

    def __post_init__(self) -> None:
        parts = {"model.grid_sizes": self.model.get("grid_sizes", ()), "anytime_accuracy": self.anytime_accuracy}
        for name, values in parts.items():
            if len(values) != self.num_exits:
                raise DataError(f"the results have {self.num_exits} exits in cumulative_gmacs, {len(values)} in {name}")

    @property
    def num_exits(self) -> int:
        """K exits."""
        return len(self.cumulative_gmacs)

    @property
    def exits(self) -> list[tuple[int, float, float]]:
        """Per exit: grid side, cumulative GMACs, accuracy over all images."""
        return list(zip(self.model["grid_sizes"], self.cumulative_gmacs, self.anytime_accuracy, strict=True))

    def to_json(self) -> str:
        """The content of `results.json`."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Results":
        """The inverse of `to_json`. Raises DataError, naming what is missing or not as it must be."""
        try:
            return from_plain(cls, json.loads(text), "results")
        except ValueError as error:
            raise DataError(f"this is not what an evaluation writes: {error}; run the evaluation again") from error
