"""Measured speed: images per second of all exits and of leaving early, and seconds of every exit.

Everything is measured in turn in this process and given as medians, so that a noisy machine is equally noisy for all.
Axis letters: K exits, B images of a batch, n images.
"""

import logging
import math
import time
from collections.abc import Sequence

import numpy as np
from mindspore import Tensor

from dvt import device
from dvt.config.sections import EvalSection
from dvt.data import Splits
from dvt.data.progress import progress
from dvt.early_exit.budgets import Setting
from dvt.early_exit.classifier import AdaptiveClassifier
from dvt.early_exit.loop import padded
from dvt.early_exit.scores import ExitRule
from dvt.models.cascade import AllExits
from dvt.report.results import Throughput

ROUNDS = 5
STAGE_BATCHES = 12  # over which the exits are timed one by one
# Where the number of images is not given:
SHARE_OF_STAGES, SHARE_OF_ROUNDS = 0.02, 0.08  # of the time of the evaluation that measuring may take
MOST_IMAGES = 2048

log = logging.getLogger(__name__)


def sample(splits: Splits, count: int) -> np.ndarray:
    """A random choice of validation images (count, I, S, S), in random order; the same for every call."""
    total = splits.sizes["val"]
    order = np.random.default_rng(0).permutation(total)[: min(count, total)]
    images, _ = splits.batch("val", np.sort(order))
    return images[np.random.default_rng(1).permutation(len(images))]


class SpeedTest:
    """Times one model on the same sample of validation images, running all exits and leaving early.

    With `throughput_images` null, measuring takes at most a tenth of the time since this was made, without compiling.
    Images that fill no batch are left out, unless there is no whole batch.
    """

    def __init__(self, cell: AllExits, splits: Splits, settings: EvalSection) -> None:
        self._cell, self._splits = cell, splits
        self._batch_size, self._asked = settings.batch_size, settings.throughput_images
        self._classifier = AdaptiveClassifier(cell.model, batch_sizes=[self._batch_size])
        self._started = time.perf_counter()
        self._batches: list[np.ndarray] = []
        self._seconds = np.zeros(0)

    def stage_seconds(self) -> np.ndarray | None:
        """Cumulative seconds per image (K,) of leaving at each exit, without waiting for a full batch: medians over
        batches; None where nothing is to be measured."""
        if self._asked == 0:
            return None
        size, until = self._batch_size, time.perf_counter() + self._allowed(SHARE_OF_STAGES)
        evaluated = sum(count for split, count in self._splits.sizes.items() if split != "train")
        images = sample(self._splits, self._asked or min(MOST_IMAGES, max(size, evaluated // 20)))
        whole = max(len(images) // size, 1)
        self._batches = [images[start : start + size] for start in range(0, whole * size, size)]
        until -= time.perf_counter()
        self._classifier.exit_seconds(padded(self._batches[0], size))  # compiles
        until += time.perf_counter()
        seconds = []
        while len(seconds) < STAGE_BATCHES and (not seconds or time.perf_counter() + sum(seconds[-1]) <= until):
            seconds.append(self._classifier.exit_seconds(padded(self._batches[len(seconds) % whole], size)))
        self._seconds = np.cumsum(np.median(seconds, axis=0)) / size
        return self._seconds

    def measure(self, setting: Setting, rule: ExitRule, gmacs: np.ndarray) -> Throughput | None:
        """Images/s of all exits and, in throughput mode, of `setting`, in turns; after `stage_seconds`.

        `gmacs` (K,) is the cost of each exit, earlier ones included. None where nothing is to be measured or there
        is no time for a single batch.
        """
        if self._asked == 0:
            return None
        allowed = self._allowed(SHARE_OF_ROUNDS)
        a_batch = self._batch_size * (self._seconds[-1] + 1 / setting.expected_images_per_second)
        batches = self._batches[: int(min(len(self._batches), allowed / (ROUNDS * a_batch)))]
        if not batches:
            log.info("speed is not measured: this evaluation is too short for it; give --eval.throughput_images")
            return None
        self._classifier.rule = rule
        rounds = []
        self._run_all(batches[:1])  # compiles
        started = time.perf_counter()
        for number in progress(range(1, ROUNDS + 1), desc="images/s", unit="round"):
            rounds.append((self._run_all(batches), *self._run_early(batches, setting, gmacs)))
            if (time.perf_counter() - started) * (number + 1) / number > allowed:
                break
        count, (all_exits, early, cost) = sum(map(len, batches)), np.array(rounds).T
        return Throughput(
            batch_size=self._batch_size,
            num_images=count,
            rounds=len(rounds),
            device=device.current_target(),
            all_exits_images_per_second=float(count / np.median(all_exits)),
            all_exits_range=[float(count / all_exits.max()), float(count / all_exits.min())],
            adaptive_images_per_second=float(count / np.median(early)),
            images_per_second_range=[float(count / early.max()), float(count / early.min())],
            speed_up=float(np.median(all_exits / early)),
            gmac_ratio=float(gmacs[-1] / cost[0]),
        )

    def _allowed(self, share: float) -> float:
        """Seconds that a measurement may take."""
        return share * (time.perf_counter() - self._started) if self._asked is None else math.inf

    def _run_all(self, batches: Sequence[np.ndarray]) -> float:
        """Seconds."""
        started = time.perf_counter()
        for batch in batches:
            self._cell(Tensor(batch)).asnumpy()
        return time.perf_counter() - started

    def _run_early(self, batches: Sequence[np.ndarray], setting: Setting, gmacs: np.ndarray) -> tuple[float, float]:
        """Seconds, and GMACs of an image."""
        started = time.perf_counter()
        found = list(self._classifier.predict_batches(iter(batches), setting.thresholds, self._batch_size))
        seconds = time.perf_counter() - started
        return seconds, gmacs[np.concatenate([each.exit_index for each in found])].mean()
