"""Measured speed: images per second of all exits and of leaving early, seconds of every exit, and what gathering costs.

Everything is measured in turn in this process and given as medians, so that a noisy machine is equally noisy for all.
Axis letters: K exits, B images of a batch, n images.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import fields

import numpy as np
from mindspore import Tensor

from dvt import device
from dvt.config.sections import EvalSection
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
STAGE_BATCHES = 12  # over which the exits are timed one by one
# Where the number of images is not given:
SHARE_OF_STAGES, SHARE_OF_ROUNDS = 0.02, 0.08  # of the time of the evaluation that measuring may take
MOST_IMAGES = 2048
FEWEST_BATCHES = 4  # with time for fewer, the recommended thresholds alone are timed
KEPT = {each.name for each in fields(TimedSetting)}

log = logging.getLogger(__name__)


def sample(splits: Splits, count: int) -> np.ndarray:
    """A random choice of validation images (count, I, S, S), in random order; the same for every call."""
    total = splits.sizes["val"]
    order = np.random.default_rng(0).permutation(total)[: min(count, total)]
    images, _ = splits.batch("val", np.sort(order))
    return images[np.random.default_rng(1).permutation(len(images))]


class SpeedTest:
    """Times one model on the same sample of validation images, running all exits and leaving early.

    `settings` say the `batch_size` of every call and `throughput_images`; with null, measuring takes at most a tenth of
    the time since this was made, without compiling. Images that fill no batch are left out, unless there is no whole
    batch.
    """

    def __init__(self, cell: AllExits, splits: Splits, settings: EvalSection) -> None:
        self._cell, self._splits = cell, splits
        self._batch_size, self._asked = settings.batch_size, settings.throughput_images
        self._classifier = AdaptiveClassifier(cell.model, batch_sizes=[self._batch_size])
        self._started = time.perf_counter()
        self._batches: list[np.ndarray] = []
        self._seconds = np.zeros(0)

    def stage_seconds(self) -> np.ndarray | None:
        """Cumulative seconds per image (K,) of leaving at each exit: medians over batches; None where nothing is to be
        measured.

        Handing features and relations from exit to exit is included, waiting for a full batch is not.
        """
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

    def measure(self, settings: Sequence[Setting], rule: ExitRule, gmacs: np.ndarray) -> Throughput | None:
        """Images/s of all exits and, in throughput mode, of each of `settings`, in turns; after `stage_seconds`.

        Images/s are medians of the rounds; a speed-up is the median of the rounds' ratios, which noise disturbs less.
        `gmacs` (K,) is the cost of each exit, earlier ones included. None where nothing is to be measured or there is
        no time for a single batch.
        """
        if self._asked == 0:
            return None
        allowed = self._allowed(SHARE_OF_ROUNDS)
        for timed in (settings, settings[:1]):
            image = self._seconds[-1] + sum(1 / setting.expected_images_per_second for setting in timed)
            batches = self._batches[: int(min(len(self._batches), allowed / (ROUNDS * self._batch_size * image)))]
            if len(batches) >= FEWEST_BATCHES or self._asked is not None:
                break
        if not batches:
            log.info("speed is not measured: this evaluation is too short for it; give --eval.throughput_images")
            return None
        classifier, rounds = self._classifier.with_rule(rule), []
        self._run_all(batches[:1])  # compiles
        started = time.perf_counter()
        for number in progress(range(1, ROUNDS + 1), desc="images/s", unit="round"):
            early = (self._run_early(classifier, batches, each, gmacs) for each in timed)
            rounds.append([(self._run_all(batches), 0.0, gmacs[-1]), *early])
            if (time.perf_counter() - started) * (number + 1) / number > allowed:
                break
        count = sum(map(len, batches))
        seconds, moving, cost = np.moveaxis(np.array(rounds), 2, 0)  # (rounds, 1 + settings) each
        rates, speed_ups = count / np.median(seconds, axis=0), np.median(seconds[:, :1] / seconds, axis=0)
        ranges = (count / np.stack([seconds.max(axis=0), seconds.min(axis=0)], axis=1)).tolist()
        found = [
            TimedSetting(
                **{name: value for name, value in vars(setting).items() if name in KEPT},
                images_per_second=float(rates[k]),
                images_per_second_range=ranges[k],
                moving_fraction=float(np.median(moving[:, k]) * rates[k] / count),
                speed_up=float(speed_ups[k]),
                gmac_ratio=float(gmacs[-1] / cost[0, k]),
            )
            for k, setting in enumerate(timed, start=1)
        ]
        same = ("images_per_second_range", "moving_fraction", "speed_up", "gmac_ratio")
        return Throughput(
            batch_size=self._batch_size,
            num_images=count,
            rounds=len(rounds),
            device=device.current_target(),
            all_exits_images_per_second=float(rates[0]),
            all_exits_range=ranges[0],
            settings=found,
            adaptive_images_per_second=found[0].images_per_second,
            **{name: getattr(found[0], name) for name in same},
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

    def _run_early(
        self, classifier: AdaptiveClassifier, batches: Sequence[np.ndarray], setting: Setting, gmacs: np.ndarray
    ) -> tuple[float, float, float]:
        """Seconds, those of them between exits, and GMACs of an image."""
        started, timing = time.perf_counter(), Timing()
        found = list(classifier.predict_batches(iter(batches), setting.thresholds, self._batch_size, timing))
        seconds = time.perf_counter() - started
        return seconds, timing.moving, gmacs[np.concatenate([each.exit_index for each in found])].mean()
