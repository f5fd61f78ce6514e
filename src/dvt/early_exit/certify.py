"""Thresholds with a guarantee: on the population, they lose no more than asked, with a stated confidence.

Candidates are found and ordered, from dear to cheap, on the first part of the calibration images; each is tested on the
second part, at the full level; the first that fails ends the sequence and the last that passed is taken.
`docs/certified.md` says why that holds and where it ends. Source: Angelopoulos et al., "Learn then Test",
arXiv 2110.01052. Plain NumPy. Axis letters: K exits, n images, P candidates. Limits and bounds are points of 100.
"""

from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from dvt.early_exit import bounds
from dvt.early_exit.candidates import FIRST_SHARE, CalibrationSet, Candidates, Risk, find_candidates, parts
from dvt.early_exit.decisions import assign_exits
from dvt.errors import ConfigError, DataError
from dvt.value_checks import bounds as numbers
from dvt.value_checks import check_value, from_plain

METHOD = "fixed-sequence testing, exact binomial or paired test"
LEAST_IMAGES = 20
COUNTED = {
    "accuracy_drop": "points of accuracy lost",
    "regressions": "% of answers made wrong",
    "changes": "% of answers changed",
}
"""What the losses of each risk are, after their number."""
POINTS = numbers(0, 100)
CONFIDENCE = numbers(above=0, below=1)


@dataclass(frozen=True)
class Certificate:
    """What is guaranteed of thresholds; limit, change bound and cost bound hold with the confidence each alone."""

    thresholds: tuple[float, ...]  # (K,) unrounded
    risk: Risk
    limit: float = field(metadata=POINTS)  # the guarantee
    confidence: float = field(metadata=CONFIDENCE)  # that the guarantee holds
    images: int = field(metadata=numbers(LEAST_IMAGES))  # calibration images in all
    tested: int = field(metadata=numbers(1))  # of them, those that the candidates were tested on
    method: str
    loss: float = field(metadata=numbers(-100, 100))  # on the tested images
    bound: float = field(metadata=numbers(-100, 100))  # upper one for these thresholds by themselves, at most the limit
    change_bound: float = field(metadata=POINTS)  # upper one of the share of all images whose answer changes
    cost: float = field(metadata=numbers(0))  # average per image on the tested images, in the unit of the costs
    cost_bound: float = field(metadata=numbers(0))  # upper one of that average in the population
    seed: int  # of the split into two parts
    exif: bool | None = None  # whether the orientation in image files was honoured; None where it is not known
    answers: int = field(default=1, metadata=numbers(1))  # certificates that hold together, this one among them

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Certificate":
        """The inverse of `to_json`. Raises ConfigError, naming what is missing or not as it must be."""
        return from_plain(cls, stored, "certificate")

    def is_of(self, thresholds: np.ndarray) -> bool:
        """Whether these (K,) are the thresholds that it is about, as float32."""
        return np.array_equal(np.float32(self.thresholds), np.float32(thresholds))

    def promise(self) -> str:
        """The guarantee in a sentence."""
        points = f"{self.limit:g} point{'s' * (self.limit != 1)}"
        what = {
            "accuracy_drop": f"lose at most {points} of accuracy against the last exit",
            "regressions": f"have at most {self.limit:g} in 100 answers wrong that the last exit has right",
            "changes": f"have at most {self.limit:g} in 100 answers that differ from those of the last exit",
        }[self.risk]
        together = "" if self.answers == 1 else f", together with {self.answers - 1} other settings"
        return f"certified: with a confidence of {100 * self.confidence:g} %, images of this kind {what}{together}"

    def evidence(self) -> str:
        """What it rests on, and what else is bounded."""
        lost = f"{self.loss:.2f} {COUNTED[self.risk]} on the {self.tested:,} for the test"
        more = f"at most {self.change_bound:.2f} % of all answers change, average cost at most {self.cost_bound:.4g}"
        return f"{self.images:,} calibration images ({lost}); {more}"


class NotCertifiedError(ConfigError):
    """The images certify `smallest` points at best; the wish needs about `images` of them, None if no number helps."""

    def __init__(self, message: str, smallest: float, images: int | None) -> None:
        super().__init__(message)
        self.smallest, self.images = smallest, images


def certify(
    calibration: CalibrationSet, risk: Risk, limit: float, confidence: float = 0.95, seed: int = 0
) -> Certificate:
    """The cheapest thresholds of which the images prove that the risk is at most `limit` points.

    With probability `confidence` over the draw of the calibration images, the population that they come from loses at
    most that. Each call holds by itself: m calls that shall hold together need the confidence 1 - (1 - confidence) / m.

    Raises:
        NotCertifiedError: These images cannot certify it; says what they can, and how many images it needs.
        ConfigError: A limit outside 0..100, a confidence outside 0..1, an unknown risk, or one without its labels.
        DataError: Fewer than 20 images.
    """
    check_value("the limit, in points,", limit, float, POINTS["bounds"])
    check_value("the confidence", confidence, float, CONFIDENCE["bounds"])
    images, level = np.shape(calibration.scores)[1], 1 - confidence
    if images < LEAST_IMAGES:
        raise DataError(f"there are {images} calibration images; a certificate needs {LEAST_IMAGES} or more")
    tried = try_candidates(calibration, risk, limit, level, seed)
    if tried.passed == 0:
        raise _not_certified(tried, risk, limit, confidence, images)

    # Which candidate is taken depends on the images tested; bounds that hold for all of them hold for that one.
    second, row, shared = tried.second, tried.candidates.thresholds[tried.passed - 1], level / len(tried.worse)
    worse, better = int(tried.worse[tried.passed - 1]), int(tried.better[tried.passed - 1])
    taken, costs = assign_exits(second.scores, row), np.asarray(calibration.costs, np.float64)
    n, leaving = len(taken), np.bincount(taken, minlength=len(costs))
    changed = int(second.lost("changes", row).sum())
    return Certificate(
        thresholds=tuple(float(value) for value in row),
        risk=risk,
        limit=float(limit),
        confidence=confidence,
        images=images,
        tested=n,
        method=METHOD,
        loss=100 * (worse - better) / n,
        bound=min(100 * _bound(worse, better, n, level, risk), float(limit)),
        change_bound=float(limit) if risk == "changes" else 100 * bounds.share_upper(changed, n, shared),
        cost=float(leaving @ costs / n),
        cost_bound=bounds.cost_upper(leaving, costs, shared),
        seed=seed,
    )


def joint_confidence(confidence: float, answers: int) -> float:
    """The confidence that each of several answers needs so that all hold together with `confidence`."""
    return 1 - (1 - confidence) / answers


class Tried(NamedTuple):
    """A sequence of P candidates and what the second part says of them; the first `passed` hold the limit."""

    candidates: Candidates
    second: CalibrationSet
    worse: np.ndarray  # (P,) number of its images
    better: np.ndarray  # (P,)
    passed: int


def try_candidates(calibration: CalibrationSet, risk: Risk, limit: float, level: float, seed: int = 0) -> Tried:
    """Finds candidates on the first part and tests them on the second; limit in points, level the chance to err."""
    first, second = (calibration.at(places) for places in parts(np.shape(calibration.scores)[1], seed))
    n = np.shape(second.scores)[1]
    candidates = find_candidates(first, risk, limit / 100, n)
    loss = np.stack([second.lost(risk, row) for row in candidates.thresholds])  # (P, n)
    worse, better = (loss > 0).sum(axis=1), (loss < 0).sum(axis=1)
    passed = 0
    while passed < len(loss) and _holds(int(worse[passed]), int(better[passed]), n, limit / 100, level, risk):
        passed += 1
    return Tried(candidates, second, worse, better, passed)


def cost_bound(images: CalibrationSet, thresholds: np.ndarray, confidence: float = 0.95) -> float:
    """Upper bound of the average cost in the population, for thresholds (K,) that were chosen without these images."""
    leaving = np.bincount(assign_exits(images.scores, thresholds), minlength=len(images.costs))
    return bounds.cost_upper(leaving, np.asarray(images.costs, np.float64), 1 - confidence)


@dataclass(frozen=True)
class ClassDrop:
    """Accuracy of one class in percent, and what it loses against the last exit, in points of its images."""

    label: int
    images: int
    accuracy: float
    drop: float
    low: float
    high: float


def class_drops(images: CalibrationSet, thresholds: np.ndarray, confidence: float = 0.95) -> list[ClassDrop]:
    """The accuracy drop of every class with an interval, the largest first, on images that chose nothing.

    Each interval holds by itself: the certificate is about the average alone.
    """
    loss, rows = images.lost("accuracy_drop", thresholds), []
    for label in np.unique(images.labels):
        members = images.labels == label
        n, worse, better = int(members.sum()), int((loss[members] > 0).sum()), int((loss[members] < 0).sum())
        drop, at_last = 100 * (worse - better) / n, 100 * float((images.predicted[-1][members] == label).mean())
        low = -bounds.net_loss_upper(better, worse, n, (1 - confidence) / 2)
        high = bounds.net_loss_upper(worse, better, n, (1 - confidence) / 2)
        rows.append(ClassDrop(int(label), n, at_last - drop, drop, 100 * low, 100 * high))
    return sorted(rows, key=lambda row: -row.drop)


def _holds(worse: int, better: int, n: int, limit: float, level: float, risk: Risk) -> bool:
    if risk == "accuracy_drop":
        return bounds.net_loss_below(worse, better, n, limit, level)
    return bounds.share_at_most(worse, n, limit) <= level


def _bound(worse: int, better: int, n: int, level: float, risk: Risk) -> float:
    if risk == "accuracy_drop":
        return bounds.net_loss_upper(worse, better, n, level)
    return bounds.share_upper(worse, n, level)


def _not_certified(tried: Tried, risk: Risk, limit: float, confidence: float, images: int) -> NotCertifiedError:
    """The smallest limit is the bound of the first candidate, with which the sequence begins whatever the limit."""
    tested = np.shape(tried.second.scores)[1]
    bound = _bound(int(tried.worse[0]), int(tried.better[0]), tested, 1 - confidence, risk)
    smallest = float(np.ceil(1e4 * bound) / 100)
    needed = _images_needed(tried.candidates, limit / 100, 1 - confidence, images)
    advice = "no number of images is likely to do so" if needed is None else f"it needs about {needed:,} images"
    return NotCertifiedError(
        f"{images:,} calibration images cannot certify a limit of {limit:g} {COUNTED[risk]} at a confidence of "
        f"{100 * confidence:g} %; {advice}. The smallest limit that these images can certify is {smallest:g}",
        smallest,
        needed,
    )


def _images_needed(found: Candidates, limit: float, level: float, images: int) -> int | None:
    """About how many calibration images certify one of the candidates in four of five draws; None if no number does.

    By the normal approximation, and enough images that none of them worse would prove the limit.
    """
    gap = limit - (found.worse - found.better)
    if limit <= 0 or not (gap > 0).any():
        return None
    z = NormalDist().inv_cdf(1 - level) + NormalDist().inv_cdf(0.8)
    tested = z**2 * (found.worse + found.better + limit / 2)[gap > 0] / gap[gap > 0] ** 2
    tested = max(tested.min(), np.log(level) / np.log1p(-min(limit, 0.999)))
    needed = max(tested / (1 - FIRST_SHARE), 1.25 * images)
    unit = 10 ** max(int(np.log10(needed)) - 1, 0)
    return int(np.ceil(needed / unit)) * unit
