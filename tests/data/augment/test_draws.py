"""Random numbers by (key, index), and even draws per class."""

import numpy as np
import pytest

from dvt.data.augment.basic import CROP_DRAWS, random_resized_crop_box, random_shift_flip
from dvt.data.augment.draws import even_subset, stream_key, uniforms


def test_numbers_depend_on_key_and_index_alone():
    key = stream_key(3, 1, 4)
    many = uniforms(key, np.arange(1000), 5)
    np.testing.assert_array_equal(uniforms(key, np.array([17, 999]), 5), many[[17, 999]])
    np.testing.assert_array_equal(uniforms(key, np.array([17]), 2), many[[17], :2])
    assert not np.intersect1d(many, uniforms(stream_key(3, 1, 5), np.arange(1000), 5)).size
    assert (
        len({stream_key(0), stream_key(1), stream_key(-1), stream_key(0, 0), stream_key(0, 1), stream_key(1, 0)}) == 6
    )


def test_numbers_are_uniform_and_independent():
    numbers = uniforms(stream_key(0), np.arange(100_000), 3)
    assert numbers.min() >= 0 and numbers.max() < 1
    np.testing.assert_allclose(numbers.mean(axis=0), 0.5, atol=0.005)
    np.testing.assert_allclose(numbers.var(axis=0), 1 / 12, atol=0.001)
    neighbours = np.corrcoef(np.column_stack([numbers[:-1], numbers[1:]]).T)
    np.testing.assert_allclose(neighbours, np.eye(6), atol=0.015)
    counts = np.histogram(numbers[:, 0], bins=100, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 150  # chi-square of 99 degrees of freedom


@pytest.mark.parametrize(
    ("count", "expected"), [(30, [10, 10, 10]), (45, [20, 5, 20]), (48, [21, 5, 22]), (55, [25, 5, 25]), (99, None)]
)
def test_subsets_are_even_per_class(count, expected):
    labels = np.array([0] * 25 + [2] * 5 + [1] * 30)[np.random.default_rng(0).permutation(60)]
    if count == 30:
        labels = np.repeat([0, 2, 1], 20)
    chosen = even_subset(labels, count, key=1)
    assert (np.diff(chosen) > 0).all()
    assert len(chosen) == min(count, 60)
    got = np.bincount(labels[chosen], minlength=3)[[0, 2, 1]]
    if count == 48:  # one odd image goes to a random class
        assert sorted(got) == [5, 21, 22]
    elif expected:
        assert got.tolist() == expected
    np.testing.assert_array_equal(chosen, even_subset(labels, count, key=1))
    if count < 55:
        assert len(np.setdiff1d(chosen, even_subset(labels, count, key=2)))


def test_fewer_images_than_classes():
    assert len(even_subset(np.arange(10), 3, key=0)) == 3


@pytest.mark.parametrize("size", [(500, 375), (32, 32), (30, 400), (400, 30), (1, 1)])
def test_random_resized_crops_stay_inside_and_in_range(size):
    width, height = size
    areas = []
    for draws in uniforms(stream_key(0), np.arange(500), CROP_DRAWS).tolist():
        left, top, right, bottom = random_resized_crop_box(width, height, draws)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        areas.append((right - left) * (bottom - top) / (width * height))
        if min(size) >= 32:
            assert 0.7 < (right - left) / (bottom - top) < 1.45
    if size == (500, 375):
        # The first of the drawn boxes that fits is taken, so areas follow the drawn ones among those that fit.
        rng = np.random.default_rng(0)
        area = rng.uniform(0.08, 1, 100_000)
        aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), 100_000))
        pixels = area * 500 * 375
        fits = (np.sqrt(pixels * aspect) <= 500) & (np.sqrt(pixels / aspect) <= 375)
        np.testing.assert_allclose(
            np.quantile(areas, [0.1, 0.5, 0.9]), np.quantile(area[fits], [0.1, 0.5, 0.9]), atol=0.05
        )


def test_shifts_pad_with_black_and_reach_all_places():
    image = np.arange(1, 17 * 16, dtype=np.uint8)[: 16 * 16].reshape(16, 16)
    padded = np.pad(image, 2)
    seen = set()
    for draws in uniforms(stream_key(0), np.arange(400), 3).tolist():
        shown = random_shift_flip(image, draws)
        shown = shown[:, ::-1] if draws[2] < 0.5 else shown
        places = [(i, j) for i in range(5) for j in range(5) if np.array_equal(padded[i : i + 16, j : j + 16], shown)]
        assert len(places) == 1
        seen.add((places[0], draws[2] < 0.5))
    assert len(seen) == 50
