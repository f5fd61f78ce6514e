"""Measured speed: images per second of all exits and of leaving early, seconds of every exit, and what gathering costs.

Everything is measured in turn in this process and given as medians, so that a noisy machine is equally noisy for all.
Axis letters: K exits, B images of a batch, n images.
"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import NamedTuple

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
SHARE = 0.1  # of the time of the evaluation that measuring may take
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


class _Run(NamedTuple):
    """One pass over the images: its seconds, those of them between exits, and the exits taken (n,)."""

    seconds: float
    moving: float = 0.0
    exit_index: np.ndarray | None = None  # None of all exits on every image


class SpeedTest:
    """Times one model on the same images, running all exits and leaving early.

    With `throughput_images` null, measuring takes at most `SHARE` of the time since this was made, itself included;
    compiling the exits does not count.

    Args:
        cell: All exits of the model.
        splits: The data set, whose validation images are sampled.
        settings: The section `eval` of a configuration: `batch_size` of every call, and `throughput_images`. Images
            that fill no batch are left out, unless there is no whole batch.
    """

    def __init__(self, cell: AllExits, splits: Splits, settings: EvalSection) -> None:
        self._cell, self._splits = cell, splits
        self._batch_size, self._asked = settings.batch_size, settings.throughput_images
        self._classifier = AdaptiveClassifier(cell.model, batch_sizes=[self._batch_size])
        self._started, self._used = time.perf_counter(), 0.0
        self._batches: list[np.ndarray] = []
        self._seconds = np.zeros(0)

    def stage_seconds(self) -> np.ndarray | None:
        """Cumulative seconds per image (K,) of leaving at each exit: medians over batches; None where nothing is to be
        measured.

        Handing features and relations from exit to exit is included, waiting for a full batch is not.
        """
        if self._asked == 0:
            return None
        size = self._batch_size
        with self._measuring():
            evaluated = sum(count for split, count in self._splits.sizes.items() if split != "train")
            images = sample(self._splits, self._asked or min(MOST_IMAGES, max(size, evaluated // 20)))
        whole = max(len(images) // size, 1)
        self._batches = [images[start : start + size] for start in range(0, whole * size, size)]
        self._classifier.exit_seconds(padded(self._batches[0], size))  # compiles
        seconds, most = [], self._time_left() / 2  # the other half is for `measure`
        while len(seconds) < STAGE_BATCHES and (not seconds or np.sum(seconds) + np.sum(seconds[-1]) <= most):
            with self._measuring():
                batch = self._batches[len(seconds) % whole]
                seconds.append(self._classifier.exit_seconds(padded(batch, size)))
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
        batches = self._affordable(settings)
        if len(batches) < FEWEST_BATCHES and self._asked is None:
            settings = settings[:1]
            batches = self._affordable(settings)
        if not batches:
            log.info("speed is not measured: this evaluation is too short for it; give --eval.throughput_images")
            return None
        classifier, rounds = self._classifier.with_rule(rule), []
        self._run_all(batches[:1])  # compiles
        with progress(total=ROUNDS * (1 + len(settings)), desc="images/s", unit="run") as bar:
            while len(rounds) < ROUNDS:
                if rounds and sum(run.seconds for run in rounds[-1]) > self._time_left():
                    break
                with self._measuring():
                    early = (self._run_early(classifier, batches, setting) for setting in settings)
                    rounds.append([self._run_all(batches), *early])
                bar.update(1 + len(settings))
        count = sum(map(len, batches))
        base, *runs = zip(*rounds, strict=True)  # by what was timed
        speed, slowest_fastest = _rates(count, base)
        timed = []
        for setting, early in zip(settings, runs, strict=True):
            rate, rates = _rates(count, early)
            ratios = [plain.seconds / run.seconds for plain, run in zip(base, early, strict=True)]
            timed.append(
                TimedSetting(
                    **{name: value for name, value in vars(setting).items() if name in KEPT},
                    images_per_second=rate,
                    images_per_second_range=rates,
                    moving_fraction=float(np.median([run.moving for run in early]) * rate / count),
                    speed_up=float(np.median(ratios)),
                    gmac_ratio=float(gmacs[-1] / gmacs[early[-1].exit_index].mean()),
                )
            )
        same = ("images_per_second_range", "moving_fraction", "speed_up", "gmac_ratio")
        return Throughput(
            batch_size=self._batch_size,
            num_images=count,
            rounds=len(rounds),
            device=device.current_target(),
            all_exits_images_per_second=speed,
            all_exits_range=slowest_fastest,
            settings=timed,
            adaptive_images_per_second=timed[0].images_per_second,
            **{name: getattr(timed[0], name) for name in same},
        )

    def _time_left(self) -> float:
        """Seconds that measuring may still take."""
        if self._asked is not None:
            return math.inf
        others = time.perf_counter() - self._started - self._used
        return others * SHARE / (1 - SHARE) - self._used

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._used += time.perf_counter() - started

    def _affordable(self, settings: Sequence[Setting]) -> list[np.ndarray]:
        """As many batches as there is time for, by the seconds of the exits."""
        image = self._seconds[-1] + sum(1 / setting.expected_images_per_second for setting in settings)
        return self._batches[: int(min(len(self._batches), self._time_left() / (ROUNDS * self._batch_size * image)))]

    def _run_all(self, batches: Sequence[np.ndarray]) -> _Run:
        started = time.perf_counter()
        for batch in batches:
            self._cell(Tensor(batch)).asnumpy()
        return _Run(time.perf_counter() - started)

    def _run_early(self, classifier: AdaptiveClassifier, batches: Sequence[np.ndarray], setting: Setting) -> _Run:
        started, timing = time.perf_counter(), Timing()
        found = list(classifier.predict_batches(iter(batches), setting.thresholds, self._batch_size, timing))
        seconds = time.perf_counter() - started
        return _Run(seconds, timing.moving, np.concatenate([each.exit_index for each in found]))


def _rates(count: int, runs: Sequence[_Run]) -> tuple[float, list[float]]:
    """Images/s: the median, and the slowest and the fastest round."""
    seconds = [run.seconds for run in runs]
    return count / float(np.median(seconds)), [count / max(seconds), count / min(seconds)]
