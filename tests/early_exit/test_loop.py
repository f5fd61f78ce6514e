"""The loop of early exits with exits made of plain functions: who leaves where, and what the next exit receives."""

from collections.abc import Mapping

import numpy as np
import pytest

from dvt.early_exit import assign_exits, check_thresholds
from dvt.early_exit.loop import DEFAULT_BATCH_SIZES, cut, run_cascade, run_in_batches
from dvt.errors import DataError

# Confidences of 6 images at 3 exits, two classes; exactly representable, so that ties are ties.
CONFIDENCE = np.float32([[0.5, 0.75, 0.875, 0.5, 0.625, 0.75], [0.75, 0.5, 0.5, 0.875, 0.625, 0.5], [0.5] * 6])


def exit_of(index: int, images: np.ndarray, handed_on: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict]:
    """An exit that knows the images by their first pixel, and checks that it got the rows that belong to them."""
    ids = images[:, 0, 0, 0].astype(int)
    if index:
        np.testing.assert_array_equal(handed_on["features"][:, 0], 10 * index + ids)
    confidence = CONFIDENCE[index, ids]
    return np.stack([1 - confidence, confidence], axis=1), {"features": (10.0 * (index + 1) + ids)[:, None]}


@pytest.mark.parametrize(
    "thresholds", [(0.75, 0.75, 0.0), (0.875, 0.5, 0.0), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0), (0.7, 0.875, 1.0)]
)
def test_each_image_takes_its_exit_and_keeps_its_rows(thresholds: tuple[float, ...]):
    images = np.arange(6, dtype=np.float32).reshape(6, 1, 1, 1)
    result = run_cascade(exit_of, images, check_thresholds(thresholds, 3), 2)
    expected = assign_exits(CONFIDENCE, thresholds)
    np.testing.assert_array_equal(result.exit_index, expected)
    np.testing.assert_array_equal(result.confidence, CONFIDENCE[expected, np.arange(6)])
    np.testing.assert_array_equal(result.probabilities[:, 1], result.confidence)
    np.testing.assert_array_equal(result.labels, (result.confidence > 0.5).astype(int))


def test_probabilities_that_are_not_finite_are_refused():
    def broken(index: int, images: np.ndarray, handed_on: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict]:
        return np.full((len(images), 2), np.nan, np.float32), {}

    with pytest.raises(DataError, match="exit 1 returned probabilities that are not finite"):
        run_cascade(broken, np.zeros((2, 1, 1, 1), np.float32), check_thresholds([0.5, 0.5], 2), 2)


def test_batches_are_padded_and_cut_back():
    sizes = []

    def run(inputs: list[np.ndarray]) -> list[np.ndarray]:
        first, second = inputs
        sizes.append(len(first))
        return [first + second, second]

    first, second = np.arange(11.0)[:, None], np.arange(22.0).reshape(11, 2)
    total, same = run_in_batches(run, [first, second], [1, 4])
    np.testing.assert_array_equal(total, first + second)
    np.testing.assert_array_equal(same, second)
    assert sizes == [4, 4, 4]


@pytest.mark.parametrize("sizes", [DEFAULT_BATCH_SIZES, (1,), (4,), (1, 4, 16), (3, 7, 64)])
def test_batches_cover_all_images_once_and_waste_little(sizes: tuple[int, ...]):
    for count in range(200):
        pieces = cut(count, sizes)
        covered = [index for start, stop, _ in pieces for index in range(start, stop)]
        assert covered == list(range(count))
        assert all(size in sizes and 0 < stop - start <= size for start, stop, size in pieces)
        assert all(stop - start == size for start, stop, size in pieces[:-1])
        if 1 in sizes and pieces:
            start, stop, size = pieces[-1]
            assert stop - start >= 0.75 * size
        assert len(pieces) <= count // max(sizes) + max(sizes)


@pytest.mark.parametrize(
    ("count", "sizes", "expected"),
    [
        (0, (1, 4), []),
        (3, (1, 4), [(0, 3, 4)]),
        (2, (1, 4), [(0, 1, 1), (1, 2, 1)]),
        (2, (4,), [(0, 2, 4)]),
        (33, (1, 4, 16), [(0, 16, 16), (16, 32, 16), (32, 33, 1)]),
        (48, DEFAULT_BATCH_SIZES, [(0, 48, 64)]),
        (47, DEFAULT_BATCH_SIZES, [(0, 32, 32), (32, 47, 16)]),
    ],
)
def test_cut(count: int, sizes: tuple[int, ...], expected: list[tuple[int, int, int]]):
    assert cut(count, sizes) == expected
