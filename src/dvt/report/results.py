"""What an evaluation finds: `Results`, which `results.json` keeps and the report shows. No MindSpore.

Accuracy is in percent, a fraction between 0 and 1, a cost in GMACs per image. GMACs are computed from the model's
shapes; images/s were measured, unless the name says "expected". Axis letters: K exits, P points of a curve.
"""

import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from dvt.early_exit.budgets import FrontierCurve, Recommended, RuleComparison, SearchComparison
from dvt.errors import DataError


@dataclass(frozen=True)
class SweepCurve:
    """The published sweep: thresholds (P, K), accuracy (P,), cost (P,), and the share of images per exit (P, K)."""

    thresholds: list[list[float]]
    accuracy: list[float]
    expected_gmacs: list[float]
    exit_fractions: list[list[float]]


@dataclass(frozen=True)
class PublishedCurve:
    """Published accuracy against average cost, cheapest first, with what it is called and where it was published."""

    label: str
    source: str
    gmacs: Sequence[float]
    accuracy: Sequence[float]


@dataclass(frozen=True)
class Group:
    """The images of one class, or of one value of an attribute, with the recommended thresholds."""

    count: int
    accuracy: float
    exit_fractions: list[float]


@dataclass(frozen=True)
class ExitReliability:
    """How far the confidence of one exit can be believed.

    Attributes:
        counts: Images in each bin of confidence.
        confidence: Their mean confidence, 0 to 1; None for an empty bin.
        accuracy: The share of them that is right; None for an empty bin.
        expected_calibration_error: The gap between both, averaged over the images.
        temperature: The one fitted to this exit; None if none was asked for.
        scaled_expected_calibration_error: The error at that temperature.
    """

    counts: list[int]
    confidence: list[float | None]
    accuracy: list[float | None]
    expected_calibration_error: float
    temperature: float | None = None
    scaled_expected_calibration_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class TimedSetting:
    """One threshold vector, on all images and timed on some.

    Attributes:
        thresholds, accuracy, expected_gmacs, cost_fraction, expected_images_per_second: As in `Setting`, on all images.
        images_per_second: Median of the rounds.
        images_per_second_range: Slowest and fastest round.
        moving_fraction: Share of the time that went into gathering and scattering images between exits.
        speed_up: Against all exits on every image, median of the rounds.
        gmac_ratio: The same by GMACs, on the images that were timed.
    """

    thresholds: list[float]
    accuracy: float
    expected_gmacs: float
    cost_fraction: float
    expected_images_per_second: float | None
    images_per_second: float
    images_per_second_range: list[float]
    moving_fraction: float
    speed_up: float
    gmac_ratio: float


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Measured speed, of all exits on every image and of leaving early.

    Attributes:
        batch_size: Images of a batch.
        num_images: Images that were timed.
        rounds: How often.
        device: Where.
        all_exits_images_per_second, all_exits_range: Median, and slowest and fastest round, of running all exits.
        settings: The recommended setting first, if there is one.
        adaptive_images_per_second, images_per_second_range, moving_fraction, speed_up, gmac_ratio: Those of the first.
    """

    batch_size: int
    num_images: int
    rounds: int
    device: str
    all_exits_images_per_second: float
    all_exits_range: list[float]
    settings: list[TimedSetting]
    adaptive_images_per_second: float
    images_per_second_range: list[float]
    moving_fraction: float
    speed_up: float
    gmac_ratio: float


@dataclass(frozen=True, kw_only=True)
class Results:
    """What an evaluation of one checkpoint on one data set finds.

    Attributes:
        model: `ModelConfig.to_dict()`.
        checkpoint: Path of the file.
        mode: 1 for thresholds stored in the checkpoint, 2 for thresholds found on calibration images.
        dataset: Kind of the data set.
        num_images: Images evaluated; `images_left_out` of a split could not be read.
        class_names: In the order of the labels.
        date: Day of the evaluation, as YYYY-MM-DD.
        machine: `dvt.device.describe_machine()`.
        config: The configuration of the evaluation; None if it is not known.
        cumulative_gmacs: (K,) cost of each exit, earlier ones included.
        cumulative_seconds: (K,) the same as measured time per image.
        anytime_accuracy: (K,) of each exit on every image.
        sweep: The published sweep of thresholds.
        frontier: The optimised thresholds; None where there are no calibration images.
        published: What was published of this model; None if nothing was.
        recommended: The setting for the budget; None without thresholds.
        groups: Attribute -> value -> images that have it.
        per_class: Class name -> its images.
        reliability: Of each exit.
        rules, searches: Comparisons within the same budgets.
        throughput: Measured speed.

    Raises:
        DataError: Parts are about different numbers of exits.
    """

    model: dict[str, Any]
    checkpoint: str
    mode: int
    dataset: str
    num_images: int
    images_left_out: dict[str, int] = field(default_factory=dict)
    class_names: list[str]
    date: str
    machine: dict[str, Any]
    config: dict[str, Any] | None = None
    cumulative_gmacs: list[float]
    cumulative_seconds: list[float] | None = None
    anytime_accuracy: list[float]
    sweep: SweepCurve
    frontier: FrontierCurve | None = None
    published: PublishedCurve | None = None
    recommended: Recommended | None = None
    groups: dict[str, dict[str, Group]] = field(default_factory=dict)
    per_class: dict[str, Group] = field(default_factory=dict)
    reliability: list[ExitReliability] = field(default_factory=list)
    rules: list[RuleComparison] = field(default_factory=list)
    searches: list[SearchComparison] = field(default_factory=list)
    throughput: Throughput | None = None

    def __post_init__(self) -> None:
        parts = {"model.grid_sizes": self.model.get("grid_sizes", ()), "anytime_accuracy": self.anytime_accuracy}
        rows = {"per_class": self.per_class, **self.groups}
        parts |= {f"{name}.{value}": row.exit_fractions for name, of in rows.items() for value, row in of.items()}
        if self.recommended is not None:
            parts["recommended.exit_fractions"] = self.recommended.exit_fractions
        for name, values in parts.items():
            if len(values) != self.num_exits:
                raise DataError(f"the results have {self.num_exits} exits in cumulative_gmacs, {len(values)} in {name}")

    @property
    def num_exits(self) -> int:
        """K."""
        return len(self.cumulative_gmacs)

    @property
    def exits(self) -> list[tuple[int, float, float]]:
        """Per exit: grid side, cumulative GMACs, accuracy over all images."""
        return list(zip(self.model["grid_sizes"], self.cumulative_gmacs, self.anytime_accuracy, strict=True))

    def to_json(self) -> str:
        """The content of `results.json`."""
        values = asdict(self)
        for row in values["reliability"]:
            if row["temperature"] is None:
                del row["temperature"], row["scaled_expected_calibration_error"]
        return json.dumps(values, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Results":
        """The inverse of `to_json`. Raises DataError, naming what is missing or not as it must be."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise DataError(f"the results are not JSON: {error}; run the evaluation again") from error
        return _from_plain(cls, values, "results")


def _from_plain(kind: Any, value: Any, name: str) -> Any:
    """A value read from JSON as what the type `kind` of a field says; `name` is its place, for messages."""
    of = get_args(kind)
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise DataError(f"{name} is {type(value).__name__}; it must have the keys of {kind.__name__}")
        types, known = get_type_hints(kind), {}
        for each in fields(kind):
            if each.name in value:
                known[each.name] = _from_plain(types[each.name], value[each.name], f"{name}.{each.name}")
            elif each.default is MISSING and each.default_factory is MISSING:
                raise DataError(f"the results lack {name}.{each.name}; run the evaluation again")
        return kind(**known)
    if value is None or not of:
        return value
    if get_origin(kind) is UnionType:  # `X | None`
        return _from_plain(of[0], value, name)
    if get_origin(kind) is list:
        return [_from_plain(of[0], item, f"{name}[{place}]") for place, item in enumerate(value)]
    if get_origin(kind) is dict:
        return {key: _from_plain(of[1], item, f"{name}.{key}") for key, item in value.items()}
    return value
