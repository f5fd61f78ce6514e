"""Masks drawn from a key: against the same in NumPy, their statistics, and where they must differ or be the same."""

from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
import tiny
from mindspore import Tensor, nn, ops

from dvt.models.noise import Dropout, StochasticDepth, site_number

ROWS, CHANNELS = 5000, 64
ONE_PATCH = tiny.patch_config(grid_sizes=(4,))
ONE_T2T = tiny.t2t_config(grid_sizes=(4,), soft_splits=((3, 2, 1),))


def hashed(values: np.ndarray) -> np.ndarray:
    """The "lowbias32" hash in unsigned arithmetic."""
    x = np.atleast_1d(values).astype(np.int64).astype(np.uint32)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def key_tensor(key: int) -> Tensor:
    return Tensor(key, ms.int32)


def dropout_mask(rate: float, key: int, site: int, shape: tuple[int, int, int]) -> np.ndarray:
    """What `Dropout` keeps, in NumPy."""
    batch, tokens, channels = shape
    mixed = hashed(key + site)
    rows = hashed(np.arange(batch * tokens, dtype=np.uint32) * np.uint32(2654435769) + mixed).reshape(batch, tokens, 1)
    columns = hashed(np.arange(channels, dtype=np.uint32) + hashed(mixed + np.uint32(1)))
    drawn = ((rows ^ columns) * np.uint32(0x846CA68B)).view(np.int32)
    return drawn >= -(2**31) + round(rate * 2**32)


def kept(cell: Dropout, key: int, shape: tuple[int, int, int] = (10, ROWS // 10, CHANNELS)) -> np.ndarray:
    cell.set_train(True)
    return cell(Tensor(np.ones(shape, np.float32)), key_tensor(key)).asnumpy() > 0


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
def test_masks_equal_numpy_in_both_modes(mode: int) -> None:
    before = ms.get_context("mode")
    ms.set_context(mode=mode)
    try:
        for key, site in ((0, 5), (2**31 - 5, site_number(2, 13, 4) & 0xFF), (-77, 1)):
            shape = (2, 9, 16)
            expected = dropout_mask(0.25, key, site, shape)
            np.testing.assert_array_equal(kept(Dropout(0.25, site), key, shape), expected)
    finally:
        ms.set_context(mode=before)


def test_dropout_keeps_the_mean_and_its_elements_are_independent(graph_mode: None) -> None:
    cell = Dropout(0.1, site_number(0, 1, 2))
    mask = kept(cell, 3).reshape(ROWS, CHANNELS)
    assert mask.mean() == pytest.approx(0.9, abs=5 * 0.3 / np.sqrt(mask.size))
    assert mask.mean(axis=0).std() == pytest.approx(0.3 / np.sqrt(ROWS), rel=0.4)
    assert mask.mean(axis=1).std() == pytest.approx(0.3 / np.sqrt(CHANNELS), rel=0.1)
    between_channels = np.corrcoef(mask.T) - np.eye(CHANNELS)
    assert np.abs(between_channels).max() < 0.15
    assert np.sqrt(np.square(between_channels).mean()) < 2.5 / np.sqrt(ROWS)
    values = np.unique(cell(Tensor(np.ones((1, 9, CHANNELS), np.float32)), key_tensor(3)).asnumpy())
    np.testing.assert_allclose(values, [0, 1 / 0.9], rtol=1e-6)


def test_keys_and_sites_draw_anew_and_the_same_again(graph_mode: None) -> None:
    one = kept(Dropout(0.1, 1), key=3)
    np.testing.assert_array_equal(kept(Dropout(0.1, 1), key=3), one)
    for other in (kept(Dropout(0.1, 1), key=4), kept(Dropout(0.1, 2), key=3), kept(Dropout(0.1, 2), key=4)):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.02


class Scales(nn.Cell):
    """`StochasticDepth` for a fixed number of images, as MindSpore calls cells with tensors."""

    def __init__(self, depth: StochasticDepth, images: int) -> None:
        super().__init__(auto_prefix=False)
        self.depth, self.images = depth, images

    def construct(self, noise_key: Tensor) -> Tensor:
        return ops.stack(self.depth(self.images, noise_key)).reshape(-1, 2, self.images, 1, 1)


def test_stochastic_depth_rises_linearly_and_keeps_the_mean(graph_mode: None) -> None:
    count = 4000
    cell = Scales(StochasticDepth(0.4, 3, site_number(1)), count)
    cell.set_train(True)
    scales = cell(key_tensor(11)).asnumpy()
    assert scales.shape == (3, 2, count, 1, 1)
    np.testing.assert_array_equal(scales, cell(key_tensor(11)).asnumpy())
    assert (scales[0] == 1).all()
    for rate, layer in zip((0.2, 0.4), scales[1:], strict=True):
        np.testing.assert_allclose(np.unique(layer), [0, 1 / (1 - rate)], rtol=1e-6)
        assert np.abs(layer.mean(axis=(1, 2, 3)) - 1).max() < 5 * np.sqrt(rate / (1 - rate) / count)
    drawn = scales[1:].reshape(4, count)
    assert np.abs(np.corrcoef([*drawn, drawn[0][np.r_[1:count, 0]]]) - np.eye(5)).max() < 0.08
    assert abs(np.corrcoef(drawn[0], cell(key_tensor(12)).asnumpy()[1, 0].ravel())[0, 1]) < 0.08


def test_nothing_is_dropped_without_key_rate_or_training(graph_mode: None) -> None:
    ones = Tensor(np.ones((2, 30, 8), np.float32))
    cell, off = Dropout(0.5, 1), Dropout(0.0, 1)
    cell.set_train(False)
    assert (cell(ones, key_tensor(1)).asnumpy() == 1).all()
    for each in (cell, off):
        each.set_train(True)
        assert (each(ones, None).asnumpy() == 1).all()
    assert (off(ones, key_tensor(1)).asnumpy() == 1).all()
    assert (cell(ones, key_tensor(1)).asnumpy() != 1).any()


def test_site_numbers_are_small_and_differ() -> None:
    places = [(e,) for e in range(3)] + [(e, layer, i) for e in range(3) for layer in range(15) for i in range(4)]
    numbers = {site_number(*place) for place in places}
    assert len(numbers) == len(places) and max(numbers) < 2**31


@pytest.mark.parametrize("config", [ONE_PATCH, ONE_T2T], ids=["patch", "t2t"])
def test_a_training_model_is_a_function_of_its_key(config, graph_mode: None) -> None:
    model = tiny.filled(replace(config, drop_path_rate=0.5, dropout_rate=0.2, depth=2))
    images = Tensor(tiny.images_for(model.config, 8))
    calm = model(images)[-1].asnumpy()
    model.set_train(True)
    first, again, other = (model(images, key_tensor(key))[-1].asnumpy() for key in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3 and np.abs(first - calm).max() > 1e-3
    free = [model(images)[-1].asnumpy() for _ in range(2)]  # no key: MindSpore's generator
    assert np.abs(free[0] - free[1]).max() > 1e-3


def test_every_place_that_drops_has_a_site_of_its_own() -> None:
    for config in (tiny.patch_config(depth=3), tiny.t2t_config(depth=3)):
        cells = [
            cell for _, cell in tiny.filled(config).cells_and_names() if isinstance(cell, Dropout | StochasticDepth)
        ]
        sites = {cell.site for cell in cells}
        assert len(sites) == len(cells) > 3 * 3 * 3
