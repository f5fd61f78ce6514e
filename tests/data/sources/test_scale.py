"""Fashion-MNIST "scale": resize matrices against PIL, placement, statistics, cost."""

import time

import numpy as np
import pytest
from PIL import Image

from dvt.config import DataSection
from dvt.data import load_splits
from dvt.data.sources.fashion_mnist import read_idx
from dvt.data.sources.scale import Layout, resize_matrix, statistics
from dvt.errors import ConfigError


def load(folder, image_size=56, seed=0, **keys):
    return load_splits(DataSection(dataset="fashion_mnist_scale", path=str(folder), **keys), image_size, seed)


@pytest.mark.parametrize("target", [7, 13, 14, 27, 28, 29, 54, 56, 112])
def test_resize_matrices_equal_pil(target):
    pixels = np.random.default_rng(target).integers(0, 256, (28, 28), dtype=np.uint8)
    matrix = resize_matrix(28, target)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    resized = matrix @ pixels.astype(np.float32) @ matrix.T
    by_pil = np.asarray(Image.fromarray(pixels).resize((target, target), Image.Resampling.BILINEAR), np.float32)
    assert np.abs(resized - by_pil).max() <= 1.01  # PIL rounds to whole levels after each axis


def paste(folder, splits, size, index):
    """The image on its canvas, found by trying every place; the number of places that fit."""
    image = splits.batch("val", [index])[0][0, 0] * splits.preprocessing["std"][0] + splits.preprocessing["mean"][0]
    item = read_idx(folder / "t10k-images-idx3-ubyte.gz")[index] / 255.0
    item = resize_matrix(28, size) @ item @ resize_matrix(28, size).T
    fits = 0
    for top in range(image.shape[0] - size + 1):
        for left in range(image.shape[1] - size + 1):
            canvas = np.zeros_like(image)
            canvas[top : top + size, left : left + size] = item
            fits += np.allclose(canvas, image, atol=1e-5)
    return fits


def test_items_are_drawn_whole_on_black_at_the_stated_size(fashion_folder):
    splits = load(fashion_folder, image_size=40)
    sizes = splits.attributes("val")["item_size"]
    assert sizes.shape == (60,) and set(sizes) == {10, 20, 40}
    for index in range(8):
        assert paste(fashion_folder, splits, sizes[index], index) == 1
    assert splits.preprocessing["in_channels"] == 1 and splits.preprocessing["dataset"] == "fashion_mnist_scale"


def test_evaluation_is_the_same_for_every_seed_subset_and_batch_size(fashion_folder):
    splits = load(fashion_folder)
    images, labels = splits.batch("val", np.arange(60))
    for other in (load(fashion_folder, seed=1), load(fashion_folder, train_images=50)):
        batches = list(other.batches("val", 7))
        np.testing.assert_array_equal(np.concatenate([images for images, _ in batches]), images)
        np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), labels)
    subset = load(fashion_folder, val_images=20, seed=5)
    assert np.bincount(subset.labels("val")).tolist() == [2] * 10
    found = [np.flatnonzero((images == image).all(axis=(1, 2, 3)))[0] for image in subset.batch("val", range(20))[0]]
    assert found == sorted(found)
    np.testing.assert_array_equal(subset.attributes("val")["item_size"], splits.attributes("val")["item_size"][found])


def test_training_places_are_drawn_anew_in_every_epoch(fashion_folder):
    splits = load(fashion_folder, item_sizes=[14, 28])
    epochs = [
        {images.tobytes() for batch, _ in splits.training(50).epoch(epoch) for images in batch} for epoch in (0, 1, 0)
    ]
    assert epochs[0] == epochs[2] and len(epochs[0]) == 200 and not epochs[0] & epochs[1]
    again = load(fashion_folder, seed=1, item_sizes=[14, 28])
    assert not epochs[0] & {images.tobytes() for batch, _ in again.training(50).epoch(0) for images in batch}


def test_training_items_are_flipped_half_of_the_time(fashion_folder):
    splits = load(fashion_folder, image_size=28, item_sizes=[28])
    plain, _ = splits.batch("train", np.arange(200))
    (shown, _) = next(splits.training(200).epoch(0))
    as_is = sum((plain == image).all(axis=(1, 2, 3)).any() for image in shown)
    flipped = sum((np.abs(plain[..., ::-1] - image) < 1e-5).all(axis=(1, 2, 3)).any() for image in shown)
    assert as_is + flipped == 200 and 70 < flipped < 130


def test_mean_and_std_are_those_of_the_drawn_images(fashion_folder):
    splits = load(fashion_folder, image_size=40)
    images = np.concatenate([i for e in range(20) for i, _ in splits.training(100).epoch(e)])
    assert abs(images.mean()) < 0.05 and abs(images.std() - 1) < 0.05
    own = load(fashion_folder, mean=[0.0], std=[1.0])
    assert own.preprocessing["mean"] == [0.0] and own.batch("val", [0])[0].min() == 0
    assert statistics(np.full((3, 28, 28), 255, np.uint8), Layout(8, 8, (4,))) == (0.25, 0.433)


def test_a_canvas_of_another_size_is_resized(fashion_folder):
    images, _ = load(fashion_folder, image_size=28, canvas_size=56, item_sizes=[56]).batch("val", [3])
    large, _ = load(fashion_folder, image_size=56, item_sizes=[56]).batch("val", [3])
    matrix = resize_matrix(56, 28)
    np.testing.assert_allclose(images[0, 0], matrix @ large[0, 0] @ matrix.T, atol=1e-4)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"item_sizes": [14, 57]}, "data.item_sizes has 57"),
        ({"item_sizes": [0]}, r"data.item_sizes is \[0\]; .* each of at least 1"),
        ({"canvas_size": 20, "item_sizes": [28]}, "data.canvas_size, 20"),
    ],
)
def test_sizes_that_do_not_fit(fashion_folder, keys, message):
    with pytest.raises(ConfigError, match=message):
        load(fashion_folder, **keys)


def test_a_training_image_costs_far_less_than_a_tenth_of_a_millisecond(fashion_folder):
    splits = load(fashion_folder)
    list(splits.training(50).epoch(0))
    start = time.thread_time()
    for epoch in range(5):
        for _ in splits.training(50).epoch(epoch):
            pass
    assert (time.thread_time() - start) / 1000 < 1e-4
