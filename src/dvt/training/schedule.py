"""How many steps a run has, and the learning rate of each. Imports no framework."""

import math
from dataclasses import dataclass

import numpy as np

from dvt.config.sections import TrainSection


@dataclass(frozen=True)
class Schedule:
    """The steps of a run, the same on all ranks."""

    epochs: int  # the cool-down included
    steps_per_epoch: int  # of the optimizer
    images_per_step: int  # of the optimizer, over all ranks
    peak: float  # highest learning rate
    rates: np.ndarray  # (steps,) float32 learning rate of each step

    @classmethod
    def of(cls, train: TrainSection, batches: int, world_size: int) -> "Schedule":
        """The schedule of a run whose ranks have `batches` batches per epoch each."""
        steps_per_epoch = batches // train.accumulation_steps
        images_per_step = train.batch_size * train.accumulation_steps * world_size
        peak = peak_learning_rate(train, images_per_step)
        rates = learning_rates(train, steps_per_epoch, peak)
        return cls(train.epochs + train.cooldown_epochs, steps_per_epoch, images_per_step, peak, rates)

    @property
    def steps(self) -> int:
        return len(self.rates)

    def rate_at(self, done: int) -> float:
        """The learning rate of the last of `done` steps."""
        return float(self.rates[done - 1])

    def is_due(self, epochs_done: int, every: int) -> bool:
        """Whether what follows every so many epochs (0: never) follows this one; it always follows the last."""
        return every > 0 and (epochs_done == self.epochs or epochs_done % every == 0)


def peak_learning_rate(train: TrainSection, images_per_step: int) -> float:
    """`train.learning_rate`, scaled in proportion to the images per step of the optimizer over all devices, if
    `train.base_batch_size` says for how many it is meant."""
    if train.base_batch_size is None:
        return train.learning_rate
    return train.learning_rate * images_per_step / train.base_batch_size


def learning_rates(train: TrainSection, steps_per_epoch: int, peak: float | None = None) -> np.ndarray:
    """Learning rate of each step, float32 ((epochs + cooldown_epochs) * steps_per_epoch,).

    `peak` takes the place of `train.learning_rate`; see `peak_learning_rate`. Neither warm-up nor cosine goes above it,
    also where it is scaled down below `train.min_learning_rate`.

    Cosine over the absolute epoch, the warm-up included in `train.epochs`, so there is no jump back after it (spec:
    recipes). With `schedule_unit: epoch` the rate changes between epochs only, as published; with `step` every step.
    """
    step = np.arange((train.epochs + train.cooldown_epochs) * steps_per_epoch)
    epoch = step / steps_per_epoch if train.schedule_unit == "step" else step // steps_per_epoch
    peak = train.learning_rate if peak is None else peak
    lowest, first = min(train.min_learning_rate, peak), min(train.warmup_learning_rate, peak)
    cosine = 0.5 * (1 + np.cos(math.pi * np.minimum(epoch / train.epochs, 1.0)))
    rate = lowest + (peak - lowest) * cosine
    if train.warmup_epochs > 0:
        warmup = np.minimum(epoch / train.warmup_epochs, 1.0)
        rising = first + (peak - first) * warmup
        rate = np.where(epoch < train.warmup_epochs, rising, rate)
    return rate.astype(np.float32)
