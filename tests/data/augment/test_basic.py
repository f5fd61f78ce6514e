"""Crop with flip, and random erasing; the boxes of crops and the shifts are tested in test_draws.py."""

import numpy as np
import pytest
from PIL import Image

from dvt.data.augment.basic import (
    CROP_DRAWS,
    CROP_FLIP_DRAWS,
    ERASING_DRAWS,
    random_erasing,
    random_resized_crop_box,
    random_resized_crop_flip,
)
from dvt.data.augment.draws import stream_key, uniforms

SIDE = 48


@pytest.fixture(params=["RGB", "L"])
def photo(request) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(request.param)


def draws_for(count, draws, seed=0):
    return uniforms(stream_key(seed), np.arange(count), draws).tolist()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "random"])
def test_crops_are_resized_from_the_cut_out_box_and_flipped(photo, interpolation):
    resampling = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    seen = set()
    for draws in draws_for(100, CROP_FLIP_DRAWS):
        shown = random_resized_crop_flip(photo, SIDE, interpolation, draws)
        assert shown.mode == photo.mode and shown.size == (SIDE, SIDE)
        left, top, right, bottom = random_resized_crop_box(*photo.size, draws[:CROP_DRAWS])
        cut = Image.fromarray(np.asarray(photo)[top:bottom, left:right].copy())
        flipped, drawn = draws[CROP_DRAWS] < 0.5, "bilinear" if draws[CROP_DRAWS + 1] < 0.5 else "bicubic"
        name = drawn if interpolation == "random" else interpolation
        expected = np.asarray(cut.resize((SIDE, SIDE), resampling[name]))
        np.testing.assert_array_equal(np.asarray(shown), expected[:, ::-1] if flipped else expected)
        seen.add((name, flipped))
    assert len(seen) == (4 if interpolation == "random" else 2)


def erased(count, probability=1.0, channels=3):
    """Images of ones before and after erasing: the masks (count, S, S) of changed pixels and the images."""
    images = np.ones((count, channels, SIDE, SIDE), np.float32)
    for i, draws in enumerate(draws_for(count, ERASING_DRAWS)):
        random_erasing(images[i], probability, draws)
    return (images != 1).any(axis=1), images


@pytest.mark.parametrize("channels", [1, 3])
def test_one_block_of_unit_normal_noise_is_erased_and_nothing_else(channels):
    masks, images = erased(300, channels=channels)
    noise = []
    for mask, image in zip(masks, images, strict=True):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        block = image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert block[0].size == mask.sum() < mask.size  # a filled rectangle
        noise.append(block.ravel())
    noise = np.concatenate(noise)
    scipy_stats = pytest.importorskip("scipy.stats")
    assert scipy_stats.kstest(noise, "norm").pvalue > 1e-3
    # Every value is drawn on its own: neither neighbours nor the channels of a pixel resemble each other.
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 0.02
    pixels = np.concatenate([image[:, mask] for mask, image in zip(masks, images, strict=True)], axis=1)
    np.testing.assert_allclose(np.corrcoef(pixels), np.eye(channels), atol=0.02)


def test_areas_ratios_and_places_of_erased_blocks():
    masks, _ = erased(3000)
    height, width = masks.any(axis=2).sum(axis=1), masks.any(axis=1).sum(axis=1)
    area, ratio = width * height / SIDE**2, width / height
    # The two sides are rounded to pixels, the smallest being 4.
    assert 0.015 < area.min() < 0.025 and 0.3 < area.max() < 0.35
    assert 0.26 < ratio.min() < 0.35 and 2.9 < ratio.max() < 3.8
    # The first block that fits is taken; drawn here independently.
    rng = np.random.default_rng(0)
    drawn_area, drawn_ratio = rng.uniform(0.02, 1 / 3, 100_000), np.exp(rng.uniform(*np.log([0.3, 1 / 0.3]), 100_000))
    fits = np.maximum(drawn_area * drawn_ratio, drawn_area / drawn_ratio) < (1 - 0.5 / SIDE) ** 2
    shares = [0.1, 0.3, 0.5, 0.7, 0.9]
    np.testing.assert_allclose(np.quantile(area, shares), np.quantile(drawn_area[fits], shares), atol=0.015)
    np.testing.assert_allclose(np.quantile(ratio, shares), np.quantile(drawn_ratio[fits], shares), rtol=0.1)
    assert width.max() < SIDE and height.max() < SIDE
    for axis, lengths in ((2, height), (1, width)):
        start = masks.any(axis=axis).argmax(axis=1)
        end = start + lengths
        assert start.min() == 0 and end.max() == SIDE
        # Places are uniform, so the free room is on average the same on both sides: 0.5 with deviation sqrt(1/12/3000).
        np.testing.assert_allclose((start / (SIDE - lengths)).mean(), 0.5, atol=0.02)


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_the_share_of_erased_images(probability):
    masks, _ = erased(2000, probability)
    share = masks.any(axis=(1, 2)).mean()
    assert abs(share - probability) <= 4 * (probability * (1 - probability) / 2000) ** 0.5


def test_erasing_depends_on_draws_alone_and_its_noise_on_the_last():
    draws = draws_for(1, ERASING_DRAWS)[0]
    first, same, other = (np.zeros((3, SIDE, SIDE), np.float32) for _ in range(3))
    for image, noise in ((first, 0.5), (same, 0.5), (other, 0.6)):
        random_erasing(image, 1.0, [*draws[:-1], noise])
    np.testing.assert_array_equal(first, same)
    np.testing.assert_array_equal(first == 0, other == 0)
    assert (first != other).any()


def test_an_image_in_which_no_block_fits_stays():
    image = np.zeros((3, SIDE, SIDE), np.float32)
    random_erasing(image, 1.0, [0.0] + [0.9999, 0.9999, 0.5, 0.5] * 10 + [0.0])  # wider than the image, ten times
    assert not image.any()


@pytest.mark.parametrize(
    ("area", "ratio", "sides"),
    # Height and width of the block in an image of 300 x 300: sqrt(area / ratio) and sqrt(area * ratio), times 300.
    [(1.0, 0.5, (173, 173)), (0.0, 0.5, (42, 42)), (0.0, 1.0, (23, 77)), (0.0, 0.0, (77, 23))],
)
def test_the_largest_and_the_longest_block_are_those_of_the_published_recipe(area, ratio, sides):
    """A third of the area at most, and an aspect ratio of 0.3 to 1 / 0.3."""
    image = np.zeros((1, 300, 300), np.float32)
    random_erasing(image, 1.0, [0.0] + [area, ratio, 0.5, 0.5] * 10 + [0.5])
    assert (image[0].any(axis=1).sum(), image[0].any(axis=0).sum()) == sides
