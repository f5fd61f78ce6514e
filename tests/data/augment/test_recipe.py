"""The published augmentation in training batches: what is applied, in which order, and to which images."""

import numpy as np
import pytest
from PIL import Image

from dvt.config import AugmentSection, DataSection
from dvt.data import Preprocessing, load_splits
from dvt.data.images import Recipe
from dvt.errors import ConfigError

POLICY = "rand-m9-mstd0.5-inc1"


def photos(folder, augment=None, smoothing=0.0, **keys):
    return load_splits(DataSection(path=str(folder), **keys), 16, 0, augment, smoothing)


def fashion(folder, augment=None, dataset="fashion_mnist", **keys):
    return load_splits(DataSection(dataset=dataset, path=str(folder), **keys), 28, 0, augment)


def epoch(splits, size, number=0):
    images, labels = zip(*splits.training(size).epoch(number), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def changed(a, b):
    """Share of images that differ."""
    return (a != b).any(axis=(1, 2, 3)).mean()


def test_policies_change_some_images_and_leave_crop_and_flip_alone(image_folder):
    plain, labels = epoch(photos(image_folder), 6)
    varied, same_labels = epoch(photos(image_folder, AugmentSection(policy=POLICY)), 6)
    np.testing.assert_array_equal(labels, same_labels)
    assert 0.4 < changed(plain, varied) < 1  # three of four images get an operation, which may be without effect
    # Images are as they were where no operation was drawn: crop and flip had the same random numbers.
    assert changed(plain, epoch(photos(image_folder, AugmentSection(policy="autoaugment")), 6)[0]) > 0


def test_policies_come_before_normalisation_and_fill_with_the_mean_colour(image_folder):
    """With the mean as fill colour, what a geometric operation uncovers is about 0 after normalisation."""
    preprocessing = Preprocessing.from_dict(photos(image_folder).preprocessing)
    recipe = Recipe.of(AugmentSection(policy=POLICY), preprocessing)
    assert recipe.policy.fill == (124, 116, 104)
    draws = [0.0] * recipe.draws
    draws[:5] = 13.5 / 15, 0.0, 0.5, 0.0, 0.0  # TranslateX, applied, at magnitude 9
    draws[6] = 0.9  # the second operation is not applied
    out = preprocessing.normalise(recipe.varied(Image.new("RGB", (16, 16), (255, 255, 255)), draws))
    uncovered = np.abs(out) < 0.02
    assert uncovered[:, :, -6:].all() and not uncovered[:, :, :9].any()


def test_interpolation_is_the_configured_one(image_folder):
    bilinear, bicubic, either = (
        epoch(photos(image_folder, AugmentSection(interpolation=name)), 6)[0]
        for name in ("bilinear", "bicubic", "random")
    )
    is_bilinear = (either == bilinear).all(axis=(1, 2, 3))
    is_bicubic = (either == bicubic).all(axis=(1, 2, 3))
    assert (is_bilinear | is_bicubic).all() and 0 < is_bilinear.sum() < 18


@pytest.mark.parametrize(
    ("dataset", "mixing", "share"),
    [
        ("fashion_mnist", {}, 0.25),
        ("fashion_mnist_scale", {}, 0.25),
        ("fashion_mnist", {"mixup": 0.8}, 1.0),
        ("fashion_mnist", {"cutmix": 1.0}, 0.25),
        ("fashion_mnist_scale", {"mixup": 0.8, "cutmix": 1.0}, 0.25),
    ],
)
def test_images_are_mixed_first_and_erased_afterwards(fashion_folder, dataset, mixing, share):
    """So that no erased block is blended: what differs is one whole block of noise in the stated share of images."""
    mixed, targets = epoch(fashion(fashion_folder, AugmentSection(**mixing), dataset), 100)
    erased, same_targets = epoch(fashion(fashion_folder, AugmentSection(erasing=share, **mixing), dataset), 100)
    np.testing.assert_array_equal(targets, same_targets)
    differ = (mixed != erased)[:, 0]
    touched = differ.any(axis=(1, 2))
    assert abs(touched.mean() - share) < 0.1
    values = []
    for image, where in zip(erased[touched, 0], differ[touched], strict=True):
        assert where.sum() > 0.95 * where.any(axis=0).sum() * where.any(axis=1).sum()
        values.append(image[where])
    values = np.concatenate(values)
    assert abs(values.mean()) < 0.1 and abs(values.std() - 1) < 0.1
    assert not np.array_equal(values[:20], values[20:40])


def test_which_block_is_erased_depends_on_epoch_and_image_alone(fashion_folder):
    splits = fashion(fashion_folder, AugmentSection(erasing=0.5))
    by_forty, by_hundred = (np.concatenate([i for i, _ in splits.training(size).epoch(1)]) for size in (40, 100))
    np.testing.assert_array_equal(by_forty, by_hundred)
    later = np.concatenate([i for i, _ in splits.training(40).epoch(1, skip=2)])
    np.testing.assert_array_equal(later, by_forty[80:])


def test_policies_work_on_small_grey_images(fashion_folder):
    plain, _ = epoch(fashion(fashion_folder), 50)
    varied, _ = epoch(fashion(fashion_folder, AugmentSection(policy=POLICY)), 50)
    assert 0.4 < changed(plain, varied) < 0.9


def test_mixed_batches_have_soft_targets(image_folder):
    hard_images, hard = epoch(photos(image_folder), 6)
    splits = photos(image_folder, AugmentSection(mixup=0.8), smoothing=0.1)
    images, soft = next(splits.training(6).epoch(0))
    assert soft.dtype == np.float32 and soft.shape == (6, 3)
    np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-6)
    # The share of the other image follows from the targets and explains the pixels.
    pair = next(i for i in range(3) if hard[i] != hard[5 - i])
    share = (soft[pair, hard[pair]] - 0.1 / 3) / 0.9
    expected = share * hard_images[pair] + (1 - share) * hard_images[5 - pair]
    np.testing.assert_allclose(images[pair], expected, atol=1e-5)
    assert next(splits.batches("train", 6))[1].dtype == np.int32  # evaluation keeps classes


def test_mixing_depends_on_epoch_batch_and_rank(fashion_folder):
    splits = fashion(fashion_folder, AugmentSection(mixup=0.8))

    def shares(epoch_number, shard=(0, 1)):
        batches = splits.training(20, shard).epoch(epoch_number)
        return [float(targets.max(axis=1).min()) for _, targets in batches]  # of pairs of different classes

    first = shares(0)
    assert first == shares(0) and len(set(first)) == len(first)
    assert not set(first) & set(shares(1)) and not set(shares(0, (0, 2))) & set(shares(0, (1, 2)))


def test_calibration_and_val_know_no_augmentation_but_crop_and_flip(image_folder):
    everything = AugmentSection(policy=POLICY, interpolation="random", erasing=1, mixup=0.8, cutmix=1)
    plain, augmented = photos(image_folder), photos(image_folder, everything, smoothing=0.1)
    for split in ("calibration", "val", "train"):
        for (images, labels), (same, same_labels) in zip(
            plain.batches(split, 5), augmented.batches(split, 5), strict=True
        ):
            np.testing.assert_array_equal(images, same)
            np.testing.assert_array_equal(labels, same_labels)


def test_drawn_items_take_no_policy(fashion_folder):
    with pytest.raises(ConfigError, match=r"augment\.policy is autoaugment, but fashion_mnist_scale"):
        fashion(fashion_folder, AugmentSection(policy="autoaugment"), "fashion_mnist_scale")
    mixed = fashion(fashion_folder, AugmentSection(cutmix=1.0), "fashion_mnist_scale")
    assert next(mixed.training(20).epoch(0))[1].shape == (20, 10)


def test_what_training_adds_is_described(image_folder):
    splits = photos(image_folder, AugmentSection(policy=POLICY, erasing=0.25, mixup=0.8))
    assert "crop and flip, rand-m9-mstd0.5-inc1, mixup 0.8, erasing 0.25" in splits.describe()
    assert "crop and flip," not in photos(image_folder).describe()
