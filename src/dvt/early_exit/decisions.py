"""Exit decisions (`>=` at the threshold), the published way to thresholds, budgeted evaluation. Plain NumPy.

Axis letters: K exits, n images, C classes, P points of a sweep. Source: paper, section 3.3 ("budgeted batch
classification"), and the published evaluation code, whose numbers these functions reproduce. All raise DataError for
outputs and labels, ConfigError for shares, costs and thresholds that are NaN, out of range or of another shape.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from dvt.early_exit.scores import CONFIDENCE, ExitRule
from dvt.errors import ConfigError, DataError
from dvt.value_checks import Bounds, check_value

NEVER = 1e8  # the threshold of an exit that no image takes
ALWAYS = -1e8  # the threshold of the last exit
PUBLISHED_POINTS = range(1, 60)  # the p of the published sweep


def thresholds_text(thresholds: Sequence[float]) -> str:
    """One row (K,) as commands take it; 0 for the last exit, which takes what is left whatever its threshold."""
    return ", ".join(f"{value:.9g}" for value in (*thresholds[:-1], 0))


class Evaluation(NamedTuple):
    """Result of one threshold vector: `accuracy` in percent, `expected_cost` in the unit of the costs given."""

    accuracy: float
    expected_cost: float


class Sweep(NamedTuple):
    """Results of P threshold vectors: (P,) percent, (P,) cost, (P, K) thresholds, (P, K) share of images per exit."""

    accuracy: np.ndarray
    expected_cost: np.ndarray
    thresholds: np.ndarray
    exit_fractions: np.ndarray


def confidence(probabilities: ArrayLike) -> np.ndarray:
    """Largest softmax probability: (..., C) -> (...)."""
    return _predictions(probabilities)[1]


def budget_shares(p: float, num_exits: int) -> np.ndarray:
    """Shares (K,) of the images that exits 0..K-1 should take: proportional to (p/20)^1..(p/20)^K, sum 1.

    A smaller p favours early exits. float32, in the published order of operations, since `find_thresholds` rounds down.
    """
    if not isinstance(num_exits, int | np.integer) or num_exits < 1:
        raise ConfigError(f"num_exits is {num_exits!r}; it must be a whole number of at least 1")
    if not (np.ndim(p) == 0 and np.isfinite(p) and p > 0):
        raise ConfigError(f"p is {p!r}; it must be one number above 0 (the published sweep uses 1 to 59)")
    with np.errstate(all="ignore"):
        powers = np.exp(np.log(np.float32(p / 20)) * np.arange(1, num_exits + 1, dtype=np.float32))
        shares = powers / powers.sum()
    if not np.isfinite(shares).all():
        raise ConfigError(f"p = {p} with {num_exits} exits is beyond float32; the published sweep uses 1 to 59")
    return shares


def find_thresholds(confidence: ArrayLike, shares: ArrayLike) -> np.ndarray:
    """Thresholds (K,), of confidences (K, n) and in their precision; about n * shares[k] images leave at exit k.

    Exit by exit: T_k is the confidence of the floor(n * shares[k])-th most confident image (product in float32) among
    those that have not left before, or 1e8 if there is none; then every image with confidence >= T_k has left, ties
    beyond the count included. The last threshold is -1e8.
    """
    values = _confidence_matrix(confidence)
    num_exits, num_images = values.shape
    counts = np.floor(
        np.float32(num_images) * _per_exit("shares", shares, num_exits, nothing_below_0=True).astype(np.float32)
    )
    thresholds = np.array([NEVER] * (num_exits - 1) + [ALWAYS], dtype=values.dtype)
    left = np.zeros(num_images, dtype=bool)
    for k in range(num_exits - 1):
        here = values[k, ~left]
        if 1 <= counts[k] <= here.size:
            rank = here.size - int(counts[k])  # the counts[k]-th largest; no need to sort the others
            thresholds[k] = np.partition(here, rank)[rank]
        left |= values[k] >= thresholds[k]
    return thresholds


def leaving(
    exit_index: int, probabilities: np.ndarray, thresholds: np.ndarray, rule: ExitRule = CONFIDENCE
) -> np.ndarray:
    """(n,) bool: which images of one exit's softmax outputs (n, classes) leave there; at the last exit all."""
    scores = rule.scores(exit_index, probabilities)
    if not np.isfinite(scores).all():
        raise DataError(
            f"exit {exit_index + 1} returned probabilities that are not finite: its weights hold NaN or infinity, or "
            "its precision is too low for them"
        )
    return (scores >= thresholds[exit_index]) | (exit_index == len(thresholds) - 1)


def assign_exits(confidence: ArrayLike, thresholds: ArrayLike) -> np.ndarray:
    """`exit_index` (n,), int64: the first exit k with confidence[k] >= thresholds[k], from 0.

    The last exit takes every image that is left. Thresholds are compared in the precision of `confidence` (K, n).
    """
    values = _confidence_matrix(confidence)
    leaves = values >= check_thresholds(thresholds, len(values), values.dtype)[:, None]
    leaves[-1] = True
    return leaves.argmax(axis=0)


def check_thresholds(thresholds: ArrayLike, num_exits: int, dtype: DTypeLike = np.float32) -> np.ndarray:
    """Thresholds (num_exits,) in the precision of the confidences that they are compared with."""
    with np.errstate(over="ignore"):  # a threshold beyond float32 becomes infinite, which compares the same
        return _per_exit("thresholds", thresholds, num_exits).astype(dtype)


def read_thresholds(text: str, num_exits: int) -> np.ndarray:
    """`check_thresholds` of what a person wrote, "0.5,0.6,0". Raises ConfigError for negative and infinite ones too."""
    try:
        values = [float(part) for part in text.strip("[]").split(",")]
    except ValueError:
        raise ConfigError(f"thresholds is {text!r}; give {num_exits} numbers, with commas in between") from None
    check_value("thresholds", values, list[float], Bounds(0))
    return check_thresholds(values, num_exits)


def evaluate(
    probabilities: ArrayLike, labels: ArrayLike, cumulative_cost: ArrayLike, thresholds: ArrayLike
) -> Evaluation:
    """Accuracy in percent and expected cost per image of thresholds (K,) on softmax outputs (K, n, C) of all exits.

    `labels` (n,) are the true classes from 0, `cumulative_cost` (K,) is what leaving at exit k costs in all, in GMACs.
    """
    sweep = evaluate_many(probabilities, labels, cumulative_cost, [thresholds])
    return Evaluation(float(sweep.accuracy[0]), float(sweep.expected_cost[0]))


def evaluate_many(
    probabilities: ArrayLike, labels: ArrayLike, cumulative_cost: ArrayLike, thresholds: ArrayLike
) -> Sweep:
    """`evaluate` for each row of `thresholds` (P, K), such as the stored sweep of a checkpoint; arguments as there."""
    if np.ndim(probabilities) != 3:
        raise DataError(f"probabilities have shape {np.shape(probabilities)}; (exits, images, classes) is needed")
    predicted, values = _predictions(probabilities)  # both (K, n)
    correct = predicted == _labels(labels, *np.shape(probabilities)[1:])  # (K, n)
    return evaluate_scores(values, correct, cumulative_cost, thresholds)


def evaluate_scores(scores: ArrayLike, correct: ArrayLike, cumulative_cost: ArrayLike, thresholds: ArrayLike) -> Sweep:
    """`evaluate_many` for any exit rule: scores (K, n) that are compared with the thresholds, correct (K, n) bool."""
    values = _confidence_matrix(scores)
    correct = np.asarray(correct, bool)
    num_exits, num_images = values.shape
    if correct.shape != values.shape:
        raise DataError(f"scores have shape {values.shape}, correct {correct.shape}; they must be the same")
    cost = _per_exit("cumulative_cost", cumulative_cost, num_exits, nothing_below_0=True)
    if np.ndim(thresholds) == 0 or len(thresholds) == 0:
        raise ConfigError(f"thresholds are {thresholds!r}; at least one row of {num_exits} thresholds is needed")
    rows = np.stack([_per_exit("thresholds", row, num_exits) for row in thresholds])  # (P, K)
    hits, counts = [], []
    for row in rows:
        exit_index = assign_exits(values, row)
        hits.append(np.count_nonzero(correct[exit_index, np.arange(num_images)]))
        counts.append(np.bincount(exit_index, minlength=num_exits))
    fractions = np.array(counts) / num_images
    return Sweep(np.array(hits) * 100.0 / num_images, fractions @ cost, rows, fractions)


def find_sweep_thresholds(confidence: ArrayLike, points: Iterable[float] = PUBLISHED_POINTS) -> np.ndarray:
    """Thresholds (P, K) of a sweep: `find_thresholds` for `budget_shares(p, K)` of each p in `points`."""
    values = _confidence_matrix(confidence)
    rows = [find_thresholds(values, budget_shares(p, len(values))) for p in points]
    if not rows:
        raise ConfigError("the sweep has no points; give at least one p, such as range(1, 60)")
    return np.stack(rows)


def sweep(
    probabilities: ArrayLike,
    labels: ArrayLike,
    cumulative_cost: ArrayLike,
    calibration_confidence: ArrayLike,
    points: Iterable[float] = PUBLISHED_POINTS,
) -> Sweep:
    """`evaluate` for thresholds found on calibration images, of which `confidence` gives (K, m)."""
    return evaluate_many(probabilities, labels, cumulative_cost, find_sweep_thresholds(calibration_confidence, points))


def _predictions(probabilities: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """(..., C) -> predicted class (...), its probability (...); one pass over what may be 600 MB."""
    outputs = _floats("probabilities", probabilities)
    if outputs.ndim == 0 or outputs.size == 0:
        raise DataError(f"probabilities have shape {outputs.shape}; at least one image and one class are needed")
    predicted = outputs.argmax(axis=-1)  # finds NaN
    values = _no_nan("probabilities", np.take_along_axis(outputs, predicted[..., None], axis=-1)[..., 0])
    if values.min() <= 0 or values.max() > 1.001:
        raise DataError(
            f"the largest probability of an image lies between {values.min():.4g} and {values.max():.4g}, outside "
            "0..1; give softmax outputs, not logits"
        )
    return predicted, values


def _confidence_matrix(confidence: ArrayLike) -> np.ndarray:
    values = _floats("confidence", confidence)
    if values.ndim != 2 or values.size == 0:
        raise DataError(f"confidence has shape {values.shape}; (exits, images) with at least one of each is needed")
    return _no_nan("confidence", values)


def _no_nan(name: str, values: np.ndarray) -> np.ndarray:
    if np.isnan(values).any():
        raise DataError(f"there is NaN in {name}; the model that made it has diverged or its input was not finite")
    return values


def _floats(name: str, values: ArrayLike) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError:
        raise DataError(f"{name} must be a rectangular array of numbers") from None
    if array.dtype in (np.float32, np.float64):
        return array
    if array.dtype.kind not in "fiu":
        raise DataError(f"{name} have type {array.dtype}; floating-point numbers are needed")
    return array.astype(np.float32 if array.dtype == np.float16 else np.float64)


def _per_exit(name: str, values: ArrayLike, num_exits: int, nothing_below_0: bool = False) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        array = None
    if array is None or any(isinstance(each, bool | np.bool_ | str) for each in np.asarray(values, object).flat):
        raise ConfigError(f"{name} is {values!r}; one number per exit is needed")
    if array.shape != (num_exits,):
        raise ConfigError(f"{name} has shape {array.shape}; {num_exits} exits need shape ({num_exits},)")
    if np.isnan(array).any():
        raise ConfigError(f"{name} is {array.tolist()}; NaN cannot be compared; give numbers")
    if nothing_below_0 and not (np.isfinite(array) & (array >= 0)).all():
        raise ConfigError(f"{name} is {array.tolist()}; every one must be finite and not negative")
    return array


def _labels(labels: ArrayLike, num_images: int, num_classes: int) -> np.ndarray:
    array = np.asarray(labels)
    if array.dtype.kind not in "iu" or array.shape != (num_images,):
        given = f"{array.dtype} of shape {array.shape}"
        raise DataError(f"labels are {given}; {num_images} images need whole numbers of shape ({num_images},)")
    if array.min() < 0 or array.max() >= num_classes:
        raise DataError(f"labels run from {array.min()} to {array.max()}; {num_classes} classes are counted from 0")
    return array
