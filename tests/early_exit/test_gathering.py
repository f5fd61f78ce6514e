"""Throughput mode with exits made of plain functions: the answers of latency mode, in order, within bounds."""

from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from dvt.early_exit import check_thresholds, gathering
from dvt.early_exit.gathering import run_gathered
from dvt.early_exit.loop import Predictions, run_cascade
from dvt.early_exit.scores import ExitRule

CLASSES = 3
COUNT = 500
THRESHOLDS = check_thresholds([0.9, 0.7, 0.0], 3)


class Exits:
    """Three exits whose answers depend on the image alone; they check that each image brings its own rows."""

    def __init__(self, seed: int = 0) -> None:
        logits = np.random.default_rng(seed).standard_normal((3, COUNT, CLASSES)) * [[[2.0]], [[3.0]], [[5.0]]]
        powers = np.exp(logits)
        self.probabilities = (powers / powers.sum(axis=2, keepdims=True)).astype(np.float32)
        self.calls: list[tuple[int, int]] = []

    def __call__(self, index: int, images: np.ndarray, handed_on: Mapping[str, np.ndarray]) -> tuple:
        ids = images[:, 0, 0, 0].astype(int)
        self.calls.append((index, len(ids)))
        assert set(handed_on) == ({"features", "relations"} if index else set())
        for name, part in handed_on.items():
            np.testing.assert_array_equal(part[:, 0], ids * 10 + index - 1, err_msg=name)
        rows = np.repeat(ids[:, None] * 10.0 + index, 2, axis=1)
        return self.probabilities[index, ids], {} if index == 2 else {"features": rows, "relations": rows.copy()}


def batches_of(sizes: list[int]) -> Iterator[np.ndarray]:
    start = 0
    for size in sizes:
        yield np.arange(start, start + size, dtype=np.float32).reshape(-1, 1, 1, 1)
        start += size


def assert_same(one: Predictions, other: Predictions) -> None:
    for key in ("labels", "probabilities", "confidence", "exit_index"):
        np.testing.assert_array_equal(getattr(one, key), getattr(other, key), err_msg=key)


@pytest.mark.parametrize("batch_size", [1, 7, 32, 1000])
@pytest.mark.parametrize("sizes", [[COUNT], [100] * 5, [1] * 60 + [0, 40], [3, 64, 64, 9]])
@pytest.mark.parametrize("rule", ["confidence", "entropy", "margin"])
def test_both_modes_decide_the_same(batch_size: int, sizes: list[int], rule: str):
    chosen = ExitRule(rule, (1.5, 1.0, 0.7))
    found = list(run_gathered(Exits(), batches_of(sizes), THRESHOLDS, CLASSES, batch_size, chosen))
    assert [len(part.labels) for part in found] == sizes
    expected = [run_cascade(Exits(), images, THRESHOLDS, CLASSES, chosen) for images in batches_of(sizes)]
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    assert len(set(np.concatenate([part.exit_index for part in found]))) == 3 or sum(sizes) < 100


def test_exits_run_full_batches_and_the_rest_at_the_end():
    exits = Exits()
    list(run_gathered(exits, batches_of([50] * 10), THRESHOLDS, CLASSES, 16))
    for index in range(3):
        runs = [size for exit_index, size in exits.calls if exit_index == index]
        assert all(size == 16 for size in runs[:-1]) and 0 < runs[-1] <= 16


def test_one_straggler_does_not_hold_up_answers_for_ever(monkeypatch: pytest.MonkeyPatch):
    """Image 0 alone goes on to the last exit; its answer must come before all others have arrived."""
    monkeypatch.setattr(gathering, "MOST_PENDING_BATCHES", 4)
    exits = Exits()
    exits.probabilities[:] = np.float32([0.98, 0.01, 0.01])
    exits.probabilities[:2, 0] = 1 / 3
    drawn = []

    def counted() -> Iterator[np.ndarray]:
        for images in batches_of([10] * 50):
            drawn.append(len(images))
            yield images

    stream = run_gathered(exits, counted(), THRESHOLDS, CLASSES, 10)
    first = next(stream)
    assert first.exit_index.tolist() == [2] + [0] * 9
    assert sum(drawn) <= 50
    assert sum(len(part.labels) for part in stream) == COUNT - 10


def test_what_waits_is_bounded():
    """Between exits never more than a batch waits, however few images leave."""
    exits = Exits()
    running = gathering.Gathering(exits, check_thresholds([2.0, 2.0, 0.0], 3), CLASSES, [8, 8, 4])
    for images in batches_of([13] * 30):
        running.push(images)
        assert all(running._count(index) < size for index, size in enumerate((8, 8, 4)))


def test_no_batches_and_an_exit_that_fails():
    assert list(run_gathered(Exits(), iter(()), THRESHOLDS, CLASSES, 8)) == []

    def broken(index: int, images: np.ndarray, handed_on: Mapping[str, np.ndarray]) -> tuple:
        return np.full((len(images), CLASSES), np.nan, np.float32), {}

    with pytest.raises(ValueError, match="exit 1 returned probabilities that are not finite"):
        list(run_gathered(broken, batches_of([3]), THRESHOLDS, CLASSES, 8))
