"""The learning-rate schedule against the published ones and its own promises."""

from pathlib import Path

import numpy as np
import pytest

from dvt.config import TrainSection
from dvt.training.schedule import learning_rates, peak_learning_rate

REFERENCE = np.load(Path(__file__).parents[1] / "reference" / "optimizer.npz")


@pytest.mark.parametrize(("model", "rate"), [("dvt_t2t_vit_12", 2e-3), ("dvt_t2t_vit_14", 5e-4)])
def test_published_schedules(model: str, rate: float) -> None:
    train = TrainSection(epochs=300, cooldown_epochs=10, learning_rate=rate, warmup_epochs=20, schedule_unit="epoch")
    rates = learning_rates(train, steps_per_epoch=3)
    assert rates.shape == (310 * 3,)
    np.testing.assert_allclose(rates[::3], REFERENCE[f"lr/{model}"], rtol=1e-6)
    assert (rates[::3] == rates[1::3]).all() and (rates[::3] == rates[2::3]).all()  # constant within an epoch


def test_per_step_schedule_rises_then_falls_to_the_minimum() -> None:
    train = TrainSection(
        epochs=4, learning_rate=1e-3, min_learning_rate=1e-5, warmup_epochs=0.5, cooldown_epochs=1, schedule_unit="step"
    )
    rates = learning_rates(train, steps_per_epoch=10)
    assert rates[0] == np.float32(train.warmup_learning_rate)
    assert (np.diff(rates[:6]) > 0).all() and (np.diff(rates[6:41]) < 0).all()
    np.testing.assert_allclose(rates[40:], 1e-5)


def test_no_warmup_starts_at_the_peak() -> None:
    assert learning_rates(TrainSection(epochs=2, warmup_epochs=0, learning_rate=0.1), 5)[0] == np.float32(0.1)


def test_the_peak_scales_with_the_images_per_step() -> None:
    train = TrainSection(learning_rate=2e-3, base_batch_size=1024, epochs=4, warmup_epochs=0, min_learning_rate=1e-5)
    assert peak_learning_rate(train, 1024) == 2e-3
    assert peak_learning_rate(train, 128) == pytest.approx(2.5e-4)
    assert peak_learning_rate(TrainSection(learning_rate=2e-3), 128) == 2e-3
    rates = learning_rates(train, 10, peak=peak_learning_rate(train, 128))
    assert rates[0] == np.float32(2.5e-4) and rates.min() > 1e-5
    tiny = learning_rates(train, 10, peak=5e-6)  # below the minimum: the cosine does not turn round
    assert (tiny == np.float32(5e-6)).all()
