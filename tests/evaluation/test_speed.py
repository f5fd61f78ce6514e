"""How long speed is measured: not at all, for as many images as asked for, or for a tenth of the evaluation.

The exits are plain functions that move a made-up clock.
"""

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor

from dvt.config import EvalSection
from dvt.early_exit.budgets import Costs, evaluate_thresholds
from dvt.early_exit.loop import Predictions
from dvt.early_exit.outcomes import Outcomes
from dvt.early_exit.scores import CONFIDENCE
from dvt.errors import ConfigError
from dvt.evaluation import speed
from dvt.evaluation.speed import SpeedTest

BATCH = 4
THRESHOLDS = (0.5, -1e8)
GMACS = np.array([1.0, 2.0])


class Machine:
    """A clock, and both ways to run two exits: each takes half of a hundredth of a second an image."""

    def __init__(self, delay: float = 0.0) -> None:
        self.now, self.images, self.model = 0.0, 0, None
        self.delay = delay  # seconds that each pass of early exits takes longer

    def __call__(self, images: Tensor) -> Tensor:
        self.exit_seconds(images)
        return images

    def exit_seconds(self, images: np.ndarray) -> np.ndarray:
        self.now += 0.01 * len(images)
        self.images += len(images)
        return np.full(2, 0.005 * len(images))

    def predict_batches(self, batches: Iterator[np.ndarray], *others: object) -> Iterator[Predictions]:
        self.now += self.delay
        for images in batches:
            self.exit_seconds(images)
            yield Predictions.of(np.ones((len(images), 1), np.float32), np.zeros(len(images), np.int64))


def measured(
    monkeypatch: pytest.MonkeyPatch, machine: Machine, asked: int | None, others: float
) -> speed.Throughput | None:
    """Images/s of an evaluation of 2,000 images in which all else takes `others` seconds."""
    monkeypatch.setattr(speed.time, "perf_counter", lambda: machine.now)
    monkeypatch.setattr(speed, "AdaptiveClassifier", lambda model, batch_sizes: machine)
    images = np.zeros((2000, 1, 2, 2), np.float32)
    splits = SimpleNamespace(sizes={"val": 2000, "train": 10**6}, batch=lambda split, places: (images[places], None))
    test = SpeedTest(machine, splits, EvalSection(batch_size=BATCH, throughput_images=asked))
    machine.now += others / 2
    seconds = test.stage_seconds()
    assert seconds is None if asked == 0 else seconds == pytest.approx([0.005, 0.01])
    machine.now += others / 2
    return test.measure(setting_of(seconds), CONFIDENCE, GMACS)


def setting_of(seconds: np.ndarray | None) -> speed.Setting:
    """Nine of ten images leave at the first exit."""
    confidence = np.where(np.arange(50) % 10, 0.9, 0.4).astype(np.float32)
    val = Outcomes.of(np.stack([confidence, 1 - confidence], 1)[None].repeat(2, 0), np.zeros(50, int))
    return evaluate_thresholds(val, Costs(GMACS, seconds), np.float32(THRESHOLDS))


def test_zero_measures_nothing(monkeypatch: pytest.MonkeyPatch):
    machine = Machine()
    assert measured(monkeypatch, machine, 0, 1000.0) is None and machine.images == 0
    with pytest.raises(ConfigError, match=r"needs measured times; leave eval.throughput_images 0 out"):
        EvalSection(budget_images_per_second=10.0, throughput_images=0)


@pytest.mark.parametrize("others", [0.5, 5.0, 40.0, 100.0, 300.0, 10_000.0])
@pytest.mark.parametrize("delay", [0.0, 0.3, 20.0])
def test_a_tenth_of_the_evaluation(monkeypatch: pytest.MonkeyPatch, others: float, delay: float):
    machine = Machine(delay)
    found = measured(monkeypatch, machine, None, others)
    compiling, a_round = 2 * 0.01 * BATCH, delay  # what nobody knows before the first round
    assert machine.now - others <= 0.1 * machine.now + compiling + a_round
    assert (found is None) == (others == 0.5)  # no time for a single batch
    if found and delay == 0:
        assert found.rounds >= 3  # although these exits do not run faster for images that leave
    if found:
        assert found.num_images <= 100  # a twentieth of those evaluated, so that sampling is quick too


def test_as_many_images_as_asked_for_however_long_it_takes(monkeypatch: pytest.MonkeyPatch):
    found = measured(monkeypatch, Machine(20.0), 42, 1.0)
    assert (found.num_images, found.rounds) == (40, speed.ROUNDS)  # whole batches
