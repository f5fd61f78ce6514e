"""What a run says while it goes (losses, speed, time left), and what stops it: numbers that are NaN or infinite, and
signals, which end it between two steps and never within one."""

import contextlib
import logging
import time
from collections.abc import Callable
from datetime import timedelta
from types import FrameType

import numpy as np

from dvt.errors import DVTError
from dvt.signals import stop_signals_handled
from dvt.training.schedule import Schedule

LOG_SECONDS = 60  # between two lines within an epoch

log = logging.getLogger(__name__)


class StopBetweenSteps(contextlib.ExitStack):
    """While entered, signals that ask to stop are remembered: `requested` says whether one has come. The step under way
    is finished, so that what is saved belongs together. While MindSpore runs a compiled graph it handles SIGINT itself,
    by sending the process a SIGTERM."""

    requested = False

    def __enter__(self) -> "StopBetweenSteps":
        self.enter_context(stop_signals_handled(self._remember))
        return self

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            log.warning("stopping after this step")
        self.requested = True


class Monitor:
    """Averages losses over an epoch, counts failed batches and writes the console lines. Axis letters: K exits.

    The run is given up after `max_failed_batches` in a row whose loss is not finite; `last_good` returns a sentence on
    the newest weights for the error, which proposes float32 to a run with `mixed_precision`.
    """

    def __init__(
        self, schedule: Schedule, max_failed_batches: int, mixed_precision: bool, last_good: Callable[[], str]
    ) -> None:
        self.failed_in_a_row = 0
        self.status = ""
        self._schedule, self._max_failed = schedule, max_failed_batches
        self._mixed_precision, self._last_good = mixed_precision, last_good
        self._begun: tuple[float, int] | None = None  # time and step of the first epoch, for the time left
        self._left: timedelta | None = None  # unknown before the first step

    def begin_epoch(self, epoch: int, done: int) -> None:
        """Starts the averages of epoch number `epoch`, counted from 0, after `done` steps of the run."""
        self._epoch = epoch + 1
        self._sum, self._count = 0.0, 0
        self._first_step, self._started = done, time.monotonic()
        self._logged = self._started
        self._begun = self._begun or (self._started, done)

    def read(self, losses: np.ndarray, done: int) -> np.ndarray | None:
        """Takes in losses (batches, K) up to step `done`; returns their mean (K,), None if all failed. Raises DVTError
        if as many batches in a row as are allowed had a loss that is not finite."""
        finite = np.isfinite(losses).all(axis=1)
        for each, good in zip(losses, finite, strict=True):
            self.failed_in_a_row = 0 if good else self.failed_in_a_row + 1
            if self.failed_in_a_row >= self._max_failed:
                where = f"step {done}, for {self.failed_in_a_row} batches in a row (per exit: {each.tolist()})"
                raise self.diverged(f"the loss is no longer finite at {where}")
        good = losses[finite]
        self._sum, self._count = self._sum + good.sum(axis=0), self._count + len(good)
        self._mean = self._sum / self._count if self._count else np.full(losses.shape[1], np.nan)
        self.status = f"epoch {self._epoch}/{self._schedule.epochs}, loss {joined(self._mean)}"
        now, total, (begun, first) = time.monotonic(), self._schedule.steps, self._begun
        self._left = timedelta(seconds=round((total - done) * (now - begun) / max(done - first, 1)))
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            rate, speed = self._schedule.rate_at(done), as_rate(self._images_per_second(done, now))
            log.info("%s, step %d/%d: lr %.2e, %s images/s, %s left", self.status, done, total, rate, speed, self._left)
        return good.mean(axis=0) if len(good) else None

    def diverged(self, what: str) -> DVTError:
        """The error that ends a run: what is no longer finite, and what to do."""
        remedy = " or take train.amp_level O0" if self._mixed_precision else ""
        return DVTError(f"{what}; lower train.learning_rate, lengthen train.warmup_epochs{remedy}. {self._last_good()}")

    def epoch_row(self, done: int) -> dict[str, float]:
        """The epoch in numbers, as they go into `metrics.csv`; call it when the losses of its last step are read."""
        now = time.monotonic()
        return {
            "epoch": self._epoch,
            "step": done,
            **{f"loss_exit_{k}": float(loss) for k, loss in enumerate(self._mean)},
            "images_per_second": round(self._images_per_second(done, now), 2),
            "seconds": round(now - self._started, 2),
            "learning_rate": self._schedule.rate_at(done),
        }

    def log_epoch(self, row: dict[str, float], is_best: bool = False) -> None:
        """One line for a row of `metrics.csv`; `is_best` says that no epoch had a better last exit."""
        loss, accuracy = (
            np.array([value for name, value in row.items() if name.startswith(key)])
            for key in ("loss_exit_", "val_accuracy_exit_")
        )
        skipped = row["skipped_steps"]
        parts = [f"loss per exit {joined(loss)}"]
        if len(accuracy):
            parts.append(f"accuracy per exit {joined(accuracy, 2)} %{' (best so far)' * is_best}")
        parts += [f"lr {row['learning_rate']:.2e}", f"{as_rate(row['images_per_second'])} images/s"]
        if self._left is not None:
            parts.append(f"{self._left} left")
        if skipped:
            parts.append(f"{skipped} step{'s' * (skipped > 1)} skipped so far")
        if "loss_scale" in row:
            parts.append(f"loss scale {row['loss_scale']:g}")
        log.info("epoch %d/%d: %s", row["epoch"], self._schedule.epochs, ", ".join(parts))

    def _images_per_second(self, done: int, now: float) -> float:
        return (done - self._first_step) * self._schedule.images_per_step / max(now - self._started, 1e-9)


def as_rate(per_second: float) -> str:
    """'168', '3.5', '0.42': a large model on a CPU takes seconds per image."""
    return f"{per_second:.0f}" if per_second >= 10 else f"{per_second:.2g}"


def joined(values: np.ndarray, digits: int = 3) -> str:
    """'1.234/0.987'."""
    return "/".join(f"{value:.{digits}f}" for value in values)
