"""Calibration against made-up data whose truth is known, and against a plain loop."""

import numpy as np
import pytest
from scipy.special import softmax

from dvt.early_exit.scores import at_temperature
from dvt.early_exit.temperature import fit_temperature, negative_log_likelihood, reliability
from dvt.errors import DataError


def drawn(count: int = 20000, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Softmax outputs that are right as often as they say, then made too sure (temperature < 1) or too modest."""
    rng = np.random.default_rng(3)
    logits = rng.standard_normal((count, 5)) * 2
    cumulative = softmax(logits, axis=1).cumsum(axis=1)
    labels = (rng.random((count, 1)) > cumulative).sum(axis=1).clip(0, 4)
    return softmax(logits / temperature, axis=1), labels


def test_expected_error_is_that_of_a_plain_loop():
    probabilities, labels = drawn(500, 0.5)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    total = 0.0
    for low in range(10):
        inside = (confidence > low / 10) & (confidence <= (low + 1) / 10)
        if inside.any():
            total += inside.sum() * abs(correct[inside].mean() - confidence[inside].mean())
    found = reliability(confidence, correct, bins=10)
    assert found.expected_error == pytest.approx(total / 500)
    assert found.counts.sum() == 500 and np.isnan(found.accuracy[0])


def test_what_is_calibrated_has_little_error_and_what_is_too_sure_has_much():
    for temperature, low, high in ((1.0, 0.0, 0.012), (0.4, 0.08, 0.3)):
        probabilities, labels = drawn(temperature=temperature)
        error = reliability(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels).expected_error
        assert low <= error < high


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_fitted_temperature_undoes_the_one_applied(temperature: float):
    probabilities, labels = drawn(temperature=temperature)
    found = fit_temperature(probabilities, labels)
    assert found == pytest.approx(1 / temperature, rel=0.05)
    best = negative_log_likelihood(at_temperature(probabilities, found), labels)
    for other in (0.97 * found, 1.03 * found):
        assert best <= negative_log_likelihood(at_temperature(probabilities, other), labels)


def test_edges_and_mistakes():
    found = reliability(np.array([0.0, 1.0]), np.array([False, True]))
    assert found.counts[[0, -1]].tolist() == [1, 1] and found.expected_error == 0
    with pytest.raises(DataError, match="give both per image"):
        reliability(np.zeros(0), np.zeros(0, bool))
