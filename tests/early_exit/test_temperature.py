"""Temperatures against made-up data whose truth is known."""

import numpy as np
import pytest
from scipy.special import softmax

from dvt.early_exit.scores import at_temperature
from dvt.early_exit.temperature import fit_temperature


def drawn(count: int = 20000, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Softmax outputs that are right as often as they say, then made too sure (temperature < 1) or too modest."""
    rng = np.random.default_rng(3)
    logits = rng.standard_normal((count, 5)) * 2
    cumulative = softmax(logits, axis=1).cumsum(axis=1)
    labels = (rng.random((count, 1)) > cumulative).sum(axis=1).clip(0, 4)
    return softmax(logits / temperature, axis=1), labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_fitted_temperature_undoes_the_one_applied(temperature: float):
    probabilities, labels = drawn(temperature=temperature)
    found = fit_temperature(probabilities, labels)
    assert found == pytest.approx(1 / temperature, rel=0.05)

    def loss(temperature: float) -> float:
        return -np.log(at_temperature(probabilities, temperature)[np.arange(len(labels)), labels]).mean()

    for other in (0.97 * found, 1.03 * found):
        assert loss(found) <= loss(other)
