"""How far an exit's confidence can be believed (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).

Plain NumPy. Axis letters: n images, C classes, M bins.
"""

from typing import NamedTuple

import numpy as np

from dvt.early_exit.scores import at_temperature
from dvt.errors import DataError

BINS = 15  # of equal width, as in the paper cited
TEMPERATURES = (0.05, 20.0)  # the range searched
_STEPS = 40  # of the golden section: 20 / 0.05 shrinks to a millionth


class Reliability(NamedTuple):
    """M bins of equal width between 0 and 1; what an empty bin would hold is NaN."""

    counts: np.ndarray  # (M,) images whose confidence lies in the bin
    confidence: np.ndarray  # (M,) their mean confidence, 0..1
    accuracy: np.ndarray  # (M,) their accuracy, 0..1
    expected_error: float  # expected calibration error: |accuracy - confidence| averaged over the images


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> Reliability:
    """Confidence (n,) in 0..1 against what came true (n,) bool. Raises DataError without images."""
    if len(confidence) == 0 or np.shape(confidence) != np.shape(correct):
        raise DataError(f"confidence is {np.shape(confidence)}, correct {np.shape(correct)}; give both per image")
    place = np.clip(np.ceil(np.asarray(confidence, np.float64) * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(place, weights=confidence, minlength=bins) / counts
        accuracy = np.bincount(place, weights=correct, minlength=bins) / counts
    gaps = np.abs(accuracy - mean)[counts > 0]
    return Reliability(counts, mean, accuracy, float((gaps * counts[counts > 0]).sum() / counts.sum()))


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log of the true class's probability; probabilities (n, C), labels (n,)."""
    taken = np.take_along_axis(probabilities, np.asarray(labels, np.int64)[:, None], axis=1)[:, 0]
    return float(-np.log(np.maximum(taken, np.finfo(np.float32).tiny)).mean())


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature at which one exit's softmax outputs (n, C) explain the labels (n,) best.

    Golden-section search over its logarithm; the likelihood has one maximum along it.
    """
    ratio = (np.sqrt(5) - 1) / 2
    low, high = np.log(TEMPERATURES)

    def loss(value: float) -> float:
        return negative_log_likelihood(at_temperature(probabilities, float(np.exp(value))), labels)

    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = loss(right)
    return float(np.exp((low + high) / 2))
