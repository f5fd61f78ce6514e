"""What a run says while it goes: losses, speed, time left, and when a loss has been bad for too long."""

import logging
import time
from collections.abc import Callable
from datetime import timedelta

import numpy as np

from dvt.errors import DVTError

LOG_SECONDS = 60  # between two lines within an epoch

Rate = Callable[[int, float], float]
"""(steps, seconds) -> images per second."""

log = logging.getLogger(__name__)


class Monitor:
    """Averages losses over an epoch, counts failed steps and writes the console lines. Axis letters: K exits.

    Args:
        max_failed_batches: Batches in a row whose loss is not finite, after which the run is given up.
        mixed_precision: Whether steps may be skipped on the way to a fitting loss scale.
        last_good: A sentence on the newest weights, for the error.
    """

    def __init__(self, max_failed_batches: int, mixed_precision: bool, last_good: Callable[[], str]) -> None:
        self.failed_in_a_row = 0
        self.first_epoch = True
        self.status = ""
        self._max_failed, self._mixed_precision, self._last_good = max_failed_batches, mixed_precision, last_good
        self._epoch_name = ""
        self._begun = time.monotonic()  # the whole run, for the time left
        self._begun_at: int | None = None
        self._left: timedelta | None = None  # unknown before the first step

    def begin_epoch(self, epoch: int, epochs: int, step: int) -> None:
        """Starts the averages of epoch number `epoch`, counted from 0, at `step` steps done."""
        if self._begun_at is not None:
            self.first_epoch = False
        else:
            self._begun_at = step
        self._epoch, self._epoch_name = epoch + 1, f"epoch {epoch + 1}/{epochs}"
        self._sum, self._count = 0.0, 0
        self._first_step, self._started = step, time.monotonic()
        self._logged = self._started

    def read(self, losses: np.ndarray, step: int, total: int, rate: float, per_second: Rate) -> np.ndarray | None:
        """Takes note of losses (batches, K) up to `step` of `total`; their mean (K,), None if all failed.

        Raises DVTError if more batches in a row than allowed had a loss that is not finite.
        """
        for each in losses:
            self.failed_in_a_row = 0 if np.isfinite(each).all() else self.failed_in_a_row + 1
            if self.failed_in_a_row >= self._max_failed:
                remedy = " or take train.amp_level O0" if self._mixed_precision else ""
                raise DVTError(
                    f"the loss is no longer finite at step {step}, for {self.failed_in_a_row} batches in a row (per "
                    f"exit: {each.tolist()}); lower train.learning_rate, lengthen train.warmup_epochs{remedy}. "
                    f"{self._last_good()}"
                )
        good = losses[np.isfinite(losses).all(axis=1)]
        self._sum, self._count = self._sum + good.sum(axis=0), self._count + len(good)
        mean = self._sum / self._count if self._count else np.full(losses.shape[1], np.nan)
        now = time.monotonic()
        steps, seconds = step - self._first_step, max(now - self._started, 1e-9)
        left = timedelta(seconds=round((total - step) * (now - self._begun) / max(step - self._begun_at, 1)))
        self.status = f"{self._epoch_name}, loss {joined(mean)}"
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            log.info(
                "%s, step %d/%d: lr %.2e, %s images/s, %s left",
                self.status,
                step,
                total,
                rate,
                as_rate(per_second(steps, seconds)),
                left,
            )
        self._left, self._mean = left, mean
        return good.mean(axis=0) if len(good) else None

    def epoch_row(self, step: int, per_second: Rate) -> dict[str, float]:
        """The epoch in numbers, as they go into `metrics.csv`; call it when its last step is read."""
        steps, seconds = step - self._first_step, max(time.monotonic() - self._started, 1e-9)
        row = {"epoch": self._epoch, "step": step}
        row |= {f"loss_exit_{k}": float(loss) for k, loss in enumerate(self._mean)}
        return row | {"images_per_second": round(per_second(steps, seconds), 2), "seconds": round(seconds, 2)}

    def log_epoch(self, row: dict[str, float], epochs: int, is_best: bool = False) -> None:
        """One line for a row of `metrics.csv`; `is_best` says that no epoch had a better last exit."""

        def numbers(key: str) -> np.ndarray:
            return np.array([value for name, value in row.items() if name.startswith(key)])

        accuracy, skipped = numbers("val_accuracy_exit_"), row["skipped_steps"]
        log.info(
            "epoch %d/%d: loss per exit %s%s%s, lr %.2e, %s images/s%s%s%s",
            row["epoch"],
            epochs,
            joined(numbers("loss_exit_")),
            f", accuracy per exit {joined(accuracy, 2)} %" if len(accuracy) else "",
            " (best so far)" if is_best else "",
            row["learning_rate"],
            as_rate(row["images_per_second"]),
            "" if self._left is None else f", {self._left} left",
            f", {skipped} step{'s' * (skipped > 1)} skipped so far" if skipped else "",
            f", loss scale {row['loss_scale']:g}" if "loss_scale" in row else "",
        )


def as_rate(per_second: float) -> str:
    """'168', '3.5', '0.42': a large model on a CPU takes seconds per image."""
    return f"{per_second:.0f}" if per_second >= 10 else f"{per_second:.2g}"


def joined(values: np.ndarray, digits: int = 3) -> str:
    """'1.234/0.987'."""
    return "/".join(f"{value:.{digits}f}" for value in np.atleast_1d(values))
