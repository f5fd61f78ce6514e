"""The temperature of an exit, which makes its confidence believable (Guo et al., ICML 2017).

Plain NumPy. Axis letters: n images, C classes.
"""

import numpy as np

from dvt.early_exit.scores import at_temperature

TEMPERATURES = (0.05, 20.0)  # the range searched
_STEPS = 40  # of the golden section: 20 / 0.05 shrinks to a millionth


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature at which one exit's softmax outputs (n, C) explain the labels (n,) best.

    Golden-section search over its logarithm; the likelihood has one maximum along it.
    """
    ratio = (np.sqrt(5) - 1) / 2
    low, high = np.log(TEMPERATURES)

    def loss(value: float) -> float:
        scaled = at_temperature(probabilities, float(np.exp(value)))
        of_label = np.take_along_axis(scaled, np.asarray(labels, np.int64)[:, None], axis=1)
        return float(-np.log(np.maximum(of_label, np.finfo(np.float32).tiny)).mean())

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
