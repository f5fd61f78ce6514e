"""Which images belong to train, calibration and val."""

from pathlib import Path

import numpy as np
import pytest
from data_files import write_idx

from dvt.config import DataSection
from dvt.data import load_splits
from dvt.errors import ConfigError, DataError


def load(folder, seed=0, **keys):
    return load_splits(DataSection(dataset="fashion_mnist", path=str(folder), **keys), 28, seed)


def images_of(splits, split):
    """The set of images of a split, as bytes, under evaluation preprocessing."""
    return {image.tobytes() for image in splits.batch(split, np.arange(splits.sizes[split]))[0]}


def test_a_held_out_slice_is_even_and_not_trained_on(fashion_folder):
    splits = load(fashion_folder, calibration_images=50, hold_out_calibration=True)
    assert splits.sizes == {"train": 150, "calibration": 50, "val": 60}
    assert np.bincount(splits.labels("calibration")).tolist() == [5] * 10
    assert len(images_of(splits, "train") | images_of(splits, "calibration")) == 200
    assert "50 training images, kept out of training" in splits.describe()


def test_the_slice_does_not_shrink_a_smaller_training_set(fashion_folder):
    splits = load(fashion_folder, calibration_images=50, hold_out_calibration=True, train_images=100)
    assert splits.sizes == {"train": 100, "calibration": 50, "val": 60}
    assert np.bincount(splits.labels("train")).tolist() == [10] * 10
    assert not images_of(splits, "train") & images_of(splits, "calibration")


def test_otherwise_it_is_drawn_from_the_images_trained_on_and_augmented_once(fashion_folder):
    splits = load(fashion_folder, calibration_images=40, train_images=80)
    assert splits.sizes == {"train": 80, "calibration": 40, "val": 60}
    assert np.bincount(splits.labels("calibration")).tolist() == [4] * 10
    images, labels = splits.batch("calibration", np.arange(40))
    batches = list(splits.batches("calibration", 16))
    np.testing.assert_array_equal(np.concatenate([images for images, _ in batches]), images)
    # Undo shift and flip: every image occurs in the training set, in the same class.
    trained, trained_labels = splits.batch("train", np.arange(80))
    middle = images[:, 0, 3:-3, 3:-3]
    for image, label in zip(middle, labels, strict=True):
        views = [
            view[:, :, i : i + 22, j : j + 22]
            for view in (trained, trained[..., ::-1])
            for i in range(7)
            for j in range(7)
        ]
        match = np.any([(view[:, 0] == image).all(axis=(1, 2)) for view in views], axis=0)
        assert (trained_labels[match] == label).any()
    assert splits.attributes("calibration") == {}


def test_more_calibration_images_than_there_are(fashion_folder):
    splits = load(fashion_folder)
    assert splits.sizes["calibration"] == 200
    assert "200 of the images trained on (all; 50,000 asked for)" in splits.describe()
    with pytest.raises(ConfigError, match=r"data\.calibration_images is 200, but there are 200"):
        load(fashion_folder, calibration_images=200, hold_out_calibration=True)


def test_the_seed_fixes_what_is_drawn(fashion_folder):
    keys = {"train_images": 60, "calibration_images": 30, "val_images": 20, "hold_out_calibration": True}
    first, same, other = (load(fashion_folder, seed, **keys) for seed in (0, 0, 1))
    for split in ("train", "calibration"):
        assert images_of(first, split) == images_of(same, split) != images_of(other, split)
    assert images_of(first, "val") == images_of(other, "val")


def test_training_order_is_shuffled_by_epoch_and_complete(fashion_folder):
    splits = load(fashion_folder)
    orders = [np.concatenate([labels for _, labels in splits.training(40).epoch(epoch)]) for epoch in (0, 1, 0)]
    np.testing.assert_array_equal(orders[0], orders[2])
    assert (orders[0] != orders[1]).any()
    assert np.bincount(orders[0]).tolist() == [20] * 10
    assert splits.training(64).per_epoch == 3 and splits.num_batches("train", 64) == 4


def test_wrong_use(fashion_folder):
    splits = load(fashion_folder)
    with pytest.raises(ConfigError, match="batch_size is 201, but there are 200 training images"):
        splits.training(201)
    with pytest.raises(ConfigError, match="batch size is 0"):
        splits.batches("val", 0)
    with pytest.raises(ValueError, match="'test'"):
        splits.batches("test", 8)
    with pytest.raises(ValueError, match="'val'"):
        splits.pipeline("val", 8, training=True)
    with pytest.raises(ConfigError, match=r"data\.mean has 3 entries"):
        load(fashion_folder, mean=[0.5, 0.5, 0.5])


def test_every_class_needs_training_images(fashion_folder):
    write_idx(fashion_folder / "train-labels-idx1-ubyte", np.arange(200) % 9)
    with pytest.raises(DataError, match="no training images of 1 class.*Ankle boot"):
        load(fashion_folder)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A name beyond what the file system takes is refused by the system itself, for root too."""
    path = tmp_path / ("x" * 300)
    with pytest.raises(DataError, match="xxx"):
        load_splits(DataSection(dataset="image_folder", path=str(path)), 32, 0)
