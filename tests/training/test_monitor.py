"""What a run says: averages, failed steps, time left."""

import logging

import numpy as np
import pytest

from dvt.errors import DVTError
from dvt.training.monitor import Monitor, as_rate
from dvt.training.schedule import Schedule

SCHEDULE = Schedule(epochs=2, steps_per_epoch=5, images_per_step=4, peak=1e-3, rates=np.full(10, 1e-3, np.float32))


def monitor(limit: int = 3, mixed_precision: bool = False) -> Monitor:
    made = Monitor(SCHEDULE, limit, mixed_precision, lambda: "The last good weights are in here.ckpt")
    made.begin_epoch(0, 0)
    return made


def test_an_epoch_is_averaged_over_the_batches_that_succeeded() -> None:
    made = monitor()
    mean = made.read(np.array([[1.0, 2.0], [3.0, 4.0], [np.inf, 1.0]]), 3)
    np.testing.assert_allclose(mean, [2, 3])
    made.read(np.array([[5.0, 6.0]]), 4)
    row = made.epoch_row(4)
    assert (row["epoch"], row["step"], row["loss_exit_0"], row["loss_exit_1"]) == (1, 4, 3.0, 4.0)
    assert row["images_per_second"] > 0
    made.begin_epoch(1, 4)
    made.read(np.array([[7.0, 8.0]]), 5)
    assert made.epoch_row(5)["loss_exit_0"] == 7.0


def test_an_epoch_without_a_finite_loss_has_none() -> None:
    made = monitor(limit=9)
    made.read(np.full((2, 3), np.nan), 2)
    assert all(np.isnan(made.epoch_row(2)[f"loss_exit_{k}"]) for k in range(3))


def test_only_failures_in_a_row_stop_a_run() -> None:
    bad, good = np.array([[np.nan, 1.0]]), np.array([[1.0, 1.0]])
    made = monitor()
    for losses in (bad, bad, good, bad):
        made.read(losses, 1)
    assert made.failed_in_a_row == 1
    made.read(bad, 5)
    with pytest.raises(DVTError, match=r"no longer finite at step 6.*3 batches.*here\.ckpt"):
        made.read(bad, 6)


def test_the_remedy_fits_the_precision() -> None:
    bad = np.array([[np.nan]])
    with pytest.raises(DVTError, match="amp_level O0"):
        monitor(1, mixed_precision=True).read(bad, 1)
    with pytest.raises(DVTError) as refused:
        monitor(1).read(bad, 1)
    assert "amp_level" not in str(refused.value)


def test_the_line_of_an_epoch_holds_what_a_user_looks_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dvt")
    made = monitor()
    made.read(np.array([[1.5, 2.5]]), 5)
    row = made.epoch_row(5) | {"skipped_steps": 2, "loss_scale": 512.0}
    made.log_epoch(row | {"val_accuracy_exit_0": 61.0, "val_accuracy_exit_1": 62.5})
    for words in (
        "epoch 1/2",
        "1.500/2.500",
        "61.00/62.50 %",
        "1.00e-03",
        "images/s",
        "left",
        "2 steps skipped",
        "512",
    ):
        assert words in caplog.text


@pytest.mark.parametrize(
    ("value", "text"), [(1234.4, "1234"), (10.2, "10"), (9.96, "10"), (3.53, "3.5"), (0.42, "0.42")]
)
def test_slow_rates_keep_their_digits(value: float, text: str) -> None:
    assert as_rate(value) == text
