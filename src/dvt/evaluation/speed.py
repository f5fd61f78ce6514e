"""Measured speed: images per second of all exits and of leaving early, seconds of every exit, and what gathering costs.

Everything is measured in turn in this process and given as medians, so that a noisy machine is equally noisy for all.
Axis letters: K exits, B images of a batch.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from dvt import device
from dvt.data import Splits
from dvt.early_exit.budgets import Choice, Costs, setting
from dvt.early_exit.classifier import AdaptiveClassifier
from dvt.early_exit.gathering import Timing
from dvt.early_exit.outcomes import Outcomes
from dvt.evaluation.all_exits import AllExits

ROUNDS = 5
STAGE_BATCHES = 12  # batches over which the exits are timed one by one
TIMED_SETTINGS = 6  # points of the curve whose images/s are measured, beside the recommended one


def stage_seconds(classifier: AdaptiveClassifier, images: np.ndarray, batch_size: int) -> np.ndarray:
    """Cumulative seconds per image (K,) of leaving at each exit: medians over batches of `batch_size`.

    Handing features and relations from exit to exit is included, waiting for a full batch is not.
    """
    seconds = []
    for number in range(1 + STAGE_BATCHES):  # the first compiles
        start = (number * batch_size) % max(len(images) - batch_size + 1, 1)
        batch = images[start : start + batch_size]
        if len(batch) < batch_size:
            batch = np.resize(batch, (batch_size, *batch.shape[1:]))
        seconds.append(classifier.exit_seconds(batch))
    return np.cumsum(np.median(seconds[1:], axis=0)) / batch_size


def sample(splits: Splits, count: int) -> np.ndarray:
    """A random choice of validation images (count, I, S, S), in random order; the same for every call."""
    total = splits.sizes["val"]
    order = np.random.default_rng(0).permutation(total)[: min(count, total)]
    images, _ = splits.batch("val", np.sort(order))
    return images[np.random.default_rng(1).permutation(len(images))]


def measure(
    cell: AllExits,
    classifier: AdaptiveClassifier,
    images: np.ndarray,
    val: Outcomes,
    costs: Costs,
    recommended: Choice | None,
    others: Sequence[np.ndarray],
    batch_size: int,
) -> dict[str, Any]:
    """Images/s of all exits and of throughput mode with the recommended thresholds and `others`, in turns.

    Images/s are medians of the rounds; a speed-up is the median of the rounds' ratios, which noise disturbs less.

    Accuracy and GMACs of each setting are those on all validation images; the ratio of GMACs that the measured speed-up
    is compared with is that on the images timed here.
    """
    timed = len(images) - len(images) % batch_size if len(images) >= batch_size else len(images)
    rule = recommended.rule.name if recommended else classifier.rule.name
    rows = [] if recommended is None else [recommended.thresholds]
    rows += [row for row in others if not rows or (np.asarray(row, np.float32) != rows[0]).any()]
    batches = [images[start : start + batch_size] for start in range(0, timed, batch_size)]

    def run_all() -> float:
        started = time.perf_counter()
        for batch in batches:
            cell(Tensor(batch)).asnumpy()
        return time.perf_counter() - started

    def run_early(row: np.ndarray) -> tuple[float, Timing, np.ndarray]:
        timing, exits = Timing(), []
        started = time.perf_counter()
        for part in classifier.predict_batches(iter(batches), row, batch_size, timing):
            exits.append(part.exit_index)
        return time.perf_counter() - started, timing, np.concatenate(exits)

    base, early = [], []
    with tqdm(total=(1 + ROUNDS) * (1 + len(rows)), desc="images/s", unit="run") as bar:
        for _ in range(1 + ROUNDS):  # the first compiles and is thrown away
            base.append(run_all())
            bar.update()
            early.append([])
            for row in rows:
                early[-1].append(run_early(row))
                bar.update()
    base_seconds = float(np.median(base[1:]))
    settings = []
    for place, row in enumerate(rows):
        runs = [each[place] for each in early[1:]]
        seconds = float(np.median([run[0] for run in runs]))
        moving = float(np.median([run[1].moving for run in runs]))
        gmacs_here = float(np.asarray(costs.gmacs)[runs[-1][2]].mean())
        values = setting(val, costs, row, rule)
        del values["exit_fractions"]
        settings.append(
            values
            | {
                "images_per_second": timed / seconds,
                "images_per_second_range": [timed / pick(run[0] for run in runs) for pick in (max, min)],
                "moving_fraction": moving / seconds,
                "speed_up": float(np.median([b / run[0] for b, run in zip(base[1:], runs, strict=True)])),
                "gmac_ratio": float(costs.gmacs[-1]) / gmacs_here,
            }
        )
    result: dict[str, Any] = {
        "batch_size": batch_size,
        "num_images": timed,
        "rounds": ROUNDS,
        "all_exits_images_per_second": timed / base_seconds,
        "all_exits_range": [timed / pick(base[1:]) for pick in (max, min)],
        "settings": settings,
        "device": device.current_target(),
    }
    first = settings[0]
    return result | {
        "adaptive_images_per_second": first["images_per_second"],
        "speed_up": first["speed_up"],
        "gmac_ratio": first["gmac_ratio"],
        "images_per_second_range": first["images_per_second_range"],
        "moving_fraction": first["moving_fraction"],
    }
