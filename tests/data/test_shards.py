"""Shares of the ranks, and evaluation with another resize size."""

import numpy as np
import pytest

from dvt.config import AugmentSection, DataSection
from dvt.data import Preprocessing, load_splits
from dvt.errors import ConfigError


@pytest.fixture
def splits(fashion_folder):
    augment = AugmentSection(policy="autoaugment", erasing=0.5)
    return load_splits(DataSection(dataset="fashion_mnist", path=str(fashion_folder)), 28, 0, augment)


@pytest.mark.parametrize(("ranks", "size"), [(2, 16), (3, 7), (4, 50)])
def test_ranks_together_train_on_the_batches_of_one_process(splits, ranks, size):
    shards = [list(splits.training(size, (r, ranks)).epoch(1)) for r in range(ranks)]
    whole = list(splits.training(size * ranks).epoch(1))
    count = 200 // (size * ranks)
    assert splits.training(size, (1, ranks)).per_epoch == len(whole) == count
    for i, (images, labels) in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate([shard[i][0] for shard in shards]), images)
        np.testing.assert_array_equal(np.concatenate([shard[i][1] for shard in shards]), labels)


@pytest.mark.parametrize("ranks", [1, 2, 7, 60])
def test_ranks_together_evaluate_every_image_once(splits, ranks):
    images, labels = splits.batch("val", np.arange(60))
    seen = []
    for rank in range(ranks):
        positions = splits.positions("val", (rank, ranks))
        batches = list(splits.batches("val", 8, shard=(rank, ranks)))
        assert len(batches) == splits.num_batches("val", 8, shard=(rank, ranks))
        got_images, got_labels = (np.concatenate(column) for column in zip(*batches, strict=True))
        np.testing.assert_array_equal(got_images, images[positions])
        np.testing.assert_array_equal(got_labels, labels[positions])
        assert abs(len(positions) - 60 / ranks) < 1
        seen += positions.tolist()
    assert seen == list(range(60))


def test_pipelines_of_shards(splits):
    pytest.importorskip("mindspore")
    dataset = splits.pipeline("train", 16, training=True, shard=(1, 2))
    assert dataset.get_dataset_size() == 6
    for number in range(2):
        got = list(dataset.create_tuple_iterator(num_epochs=1, output_numpy=True))
        expected = list(splits.training(16, (1, 2)).epoch(number))
        for row, same in zip(got, expected, strict=True):
            np.testing.assert_array_equal(row[0], same[0])
            np.testing.assert_array_equal(row[1], same[1])
    rows = list(splits.pipeline("val", 16, shard=(2, 7)).create_tuple_iterator(num_epochs=1, output_numpy=True))
    np.testing.assert_array_equal(rows[0][1], splits.labels("val")[splits.positions("val", (2, 7))])


def test_soft_targets_pass_through_pipelines(fashion_folder):
    pytest.importorskip("mindspore")
    data = DataSection(dataset="fashion_mnist_scale", path=str(fashion_folder))
    splits = load_splits(data, 28, 0, AugmentSection(mixup=0.8, cutmix=1.0), label_smoothing=0.1)
    iterator = splits.pipeline("train", 20, training=True).create_tuple_iterator(num_epochs=1, output_numpy=True)
    for (images, targets), (same, same_targets) in zip(iterator, splits.training(20).epoch(0), strict=True):
        np.testing.assert_array_equal(images, same)
        np.testing.assert_array_equal(targets, same_targets)
        assert targets.dtype == np.float32 and targets.shape == (20, 10)


def test_wrong_shards(splits):
    with pytest.raises(ConfigError, match="batch_size is 60 on each of 4 devices, but there are 200"):
        splits.training(60, (0, 4))
    with pytest.raises(ConfigError, match="val has 60 images, fewer than the 61 processes"):
        splits.batches("val", 8, (0, 61))
    with pytest.raises(ValueError, match="no shard 2 of 2"):
        splits.batches("val", 8, (2, 2))


def test_another_resize_size_in_evaluation(image_folder):
    splits = load_splits(DataSection(path=str(image_folder)), 16, 0)
    other = splits.with_resize_size(24)
    assert splits.with_resize_size(None) is splits and splits.with_resize_size(18) is splits
    assert splits.preprocessing["resize_size"] == 18 and other.preprocessing["resize_size"] == 24
    file = image_folder / "val" / "owl" / "c.webp"
    np.testing.assert_array_equal(
        other.batch("val", [8])[0][0], Preprocessing.from_dict(splits.preprocessing | {"resize_size": 24})(file)
    )
    assert not np.array_equal(other.batch("val", [8])[0], splits.batch("val", [8])[0])
    trained = zip(splits.training(6).epoch(0), other.training(6).epoch(0), strict=True)
    assert all(np.array_equal(a, b) for (a, _), (b, _) in trained)  # crops are taken from the image as it is
    with pytest.raises(ConfigError, match="resize_size is 15"):
        splits.with_resize_size(15)


def test_drawn_items_are_not_resized(fashion_folder):
    splits = load_splits(DataSection(dataset="fashion_mnist_scale", path=str(fashion_folder)), 28, 0)
    assert splits.with_resize_size(None) is splits and splits.with_resize_size(28) is splits
    with pytest.raises(ConfigError, match="32 was asked for, but images of fashion_mnist_scale are drawn at 28"):
        splits.with_resize_size(32)
