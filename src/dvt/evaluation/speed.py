"""Measured speed: images per second of all exits and of leaving early, seconds of every exit, and what gathering costs.

Everything is measured in turn in this process and given as medians, so that a noisy machine is equally noisy for all.
Axis letters: K exits, B images of a batch, n images.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor

from dvt import device
from dvt.data import Splits
from dvt.data.progress import progress
from dvt.early_exit.budgets import Setting
from dvt.early_exit.classifier import AdaptiveClassifier
from dvt.early_exit.gathering import Timing
from dvt.early_exit.loop import padded
from dvt.early_exit.scores import ExitRule
from dvt.models.cascade import AllExits
from dvt.report.results import Throughput, TimedSetting

ROUNDS = 5
STAGE_BATCHES = 12  # batches over which the exits are timed one by one


def sample(splits: Splits, count: int) -> np.ndarray:
    """A random choice of validation images (count, I, S, S), in random order; the same for every call."""
    total = splits.sizes["val"]
    order = np.random.default_rng(0).permutation(total)[: min(count, total)]
    images, _ = splits.batch("val", np.sort(order))
    return images[np.random.default_rng(1).permutation(len(images))]


@dataclass(frozen=True)
class _EarlyRun:
    """One pass over all images, leaving early: its seconds, those of them between exits, and the exits taken (n,)."""

    seconds: float
    moving: float
    exit_index: np.ndarray


class SpeedTest:
    """Times one model on the same images, running all exits and leaving early.

    Args:
        cell: All exits of the model.
        classifier: The same model, leaving early.
        images: (n, I, S, S).
        batch_size: Of every call. Images that fill no batch are left out, unless there is no whole batch.
    """

    def __init__(self, cell: AllExits, classifier: AdaptiveClassifier, images: np.ndarray, batch_size: int) -> None:
        self._cell, self._classifier, self._images, self._batch_size = cell, classifier, images, batch_size
        whole = max(len(images) // batch_size, 1)
        self._batches = [images[start : start + batch_size] for start in range(0, whole * batch_size, batch_size)]

    def stage_seconds(self) -> np.ndarray:
        """Cumulative seconds per image (K,) of leaving at each exit: medians over batches.

        Handing features and relations from exit to exit is included, waiting for a full batch is not.
        """
        seconds = []
        for number in range(1 + STAGE_BATCHES):  # the first compiles
            start = (number * self._batch_size) % max(len(self._images) - self._batch_size + 1, 1)
            batch = padded(self._images[start : start + self._batch_size], self._batch_size)
            seconds.append(self._classifier.exit_seconds(batch))
        return np.cumsum(np.median(seconds[1:], axis=0)) / self._batch_size

    def measure(self, settings: Sequence[Setting], rule: ExitRule, gmacs: np.ndarray) -> Throughput:
        """Images/s of all exits and, in throughput mode, of each of `settings`, in turns.

        Images/s are medians of the rounds; a speed-up is the median of the rounds' ratios, which noise disturbs less.
        `gmacs` (K,) is the cost of each exit, earlier ones included.
        """
        classifier = self._classifier.with_rule(rule)
        base, early = [], []
        with progress(total=(1 + ROUNDS) * (1 + len(settings)), desc="images/s", unit="run") as bar:
            for _ in range(1 + ROUNDS):
                base.append(self._run_all())
                bar.update()
                early.append([])
                for setting in settings:
                    early[-1].append(self._run_early(classifier, setting))
                    bar.update()
        base, early = base[1:], early[1:]  # the first round compiles
        timed = [
            self._timed(setting, base, runs, gmacs)
            for setting, runs in zip(settings, zip(*early, strict=True), strict=True)
        ]
        speed, slowest_fastest = self._rates(base)
        return Throughput(
            batch_size=self._batch_size,
            num_images=self._count,
            rounds=ROUNDS,
            device=device.current_target(),
            all_exits_images_per_second=speed,
            all_exits_range=slowest_fastest,
            settings=timed,
            adaptive_images_per_second=timed[0].images_per_second,
            images_per_second_range=timed[0].images_per_second_range,
            moving_fraction=timed[0].moving_fraction,
            speed_up=timed[0].speed_up,
            gmac_ratio=timed[0].gmac_ratio,
        )

    @property
    def _count(self) -> int:
        return sum(map(len, self._batches))

    def _run_all(self) -> float:
        started = time.perf_counter()
        for batch in self._batches:
            self._cell(Tensor(batch)).asnumpy()
        return time.perf_counter() - started

    def _run_early(self, classifier: AdaptiveClassifier, setting: Setting) -> _EarlyRun:
        thresholds, timing = np.asarray(setting.thresholds, np.float32), Timing()
        started = time.perf_counter()
        parts = list(classifier.predict_batches(iter(self._batches), thresholds, self._batch_size, timing))
        seconds = time.perf_counter() - started
        return _EarlyRun(seconds, timing.moving, np.concatenate([part.exit_index for part in parts]))

    def _timed(
        self, setting: Setting, base: Sequence[float], runs: Sequence[_EarlyRun], gmacs: np.ndarray
    ) -> TimedSetting:
        seconds = [run.seconds for run in runs]
        speed, slowest_fastest = self._rates(seconds)
        return TimedSetting(
            thresholds=setting.thresholds,
            accuracy=setting.accuracy,
            expected_gmacs=setting.expected_gmacs,
            cost_fraction=setting.cost_fraction,
            expected_images_per_second=setting.expected_images_per_second,
            images_per_second=speed,
            images_per_second_range=slowest_fastest,
            moving_fraction=float(np.median([run.moving for run in runs]) / np.median(seconds)),
            speed_up=float(np.median(np.divide(base, seconds))),
            gmac_ratio=float(gmacs[-1] / gmacs[runs[-1].exit_index].mean()),
        )

    def _rates(self, seconds: Sequence[float]) -> tuple[float, list[float]]:
        """Images/s: the median, and the slowest and the fastest round."""
        return self._count / float(np.median(seconds)), [self._count / max(seconds), self._count / min(seconds)]
