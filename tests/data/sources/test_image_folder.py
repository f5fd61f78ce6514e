"""The ImageFolder layout: what is found, and every fault named."""

import shutil

import numpy as np
import pytest
from data_files import write_image
from PIL import Image

from dvt.config import DataSection
from dvt.data import Preprocessing, load_splits, load_validation
from dvt.errors import DataError


def load(folder, **keys):
    return load_splits(DataSection(path=str(folder), **keys), image_size=16, seed=0)


def test_classes_files_and_pixels(image_folder):
    (image_folder / "train" / "cat" / ".DS_Store").write_text("x")
    (image_folder / "train" / "cat" / "Thumbs.db").write_text("x")
    (image_folder / "train" / ".git").mkdir()
    (image_folder / "train" / "README.txt").write_text("x")
    splits = load(image_folder)
    assert splits.class_names == ("cat", "dog", "owl") and splits.preprocessing["in_channels"] == 3
    assert splits.sizes == {"train": 18, "calibration": 18, "val": 9}
    assert splits.labels("val").tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert splits.preprocessing["resize_size"] == 18 and splits.preprocessing["interpolation"] == "bicubic"
    images, labels = splits.batch("val", [4])
    file = image_folder / "val" / "dog" / "b.PNG"
    np.testing.assert_array_equal(images[0], Preprocessing.from_dict(splits.preprocessing)(file))
    assert labels.tolist() == [1] and labels.dtype == np.int32
    assert str(image_folder) in splits.describe()


def test_training_crops_differ_by_epoch_and_not_by_threads(image_folder):
    one, three = load(image_folder, workers=1), load(image_folder, workers=3)
    first = [list(splits.training(5).epoch(1)) for splits in (one, three)]
    assert [images.shape for images, _ in first[0]] == [(5, 3, 16, 16)] * 3
    for (images, labels), (same_images, same_labels) in zip(*first, strict=True):
        np.testing.assert_array_equal(images, same_images)
        np.testing.assert_array_equal(labels, same_labels)
    other = next(one.training(5).epoch(2))
    assert not np.array_equal(other[0], first[0][0][0])


def test_an_image_looks_the_same_in_an_epoch_whatever_the_batch_size(image_folder):
    splits = load(image_folder)
    by_six = np.concatenate([images for images, _ in splits.training(6).epoch(0)])
    by_nine = np.concatenate([images for images, _ in splits.training(9).epoch(0)])
    np.testing.assert_array_equal(by_six, by_nine)


def test_grey_and_transparent_files_become_rgb(image_folder):
    write_image(image_folder / "val" / "cat" / "g.png", (30, 30), mode="L")
    write_image(image_folder / "val" / "cat" / "h.png", (30, 30), mode="RGBA")
    write_image(image_folder / "val" / "cat" / "i.jpg", (30, 30), mode="CMYK")
    images, _ = load(image_folder).batch("val", np.arange(12))
    assert images.shape == (12, 3, 16, 16)


def no_folder(root):
    shutil.rmtree(root)


def no_val(root):
    shutil.rmtree(root / "val")


def no_classes(root):
    shutil.rmtree(root / "val")
    (root / "val").mkdir()


def empty_class(root):
    shutil.rmtree(root / "train" / "dog")
    (root / "train" / "dog").mkdir()


def empty_val_class(root):
    for file in (root / "val" / "owl").iterdir():
        file.unlink()


def other_val_class(root):
    (root / "val" / "owl").rename(root / "val" / "eagle")


def missing_val_class(root):
    shutil.rmtree(root / "val" / "owl")


def one_class(root):
    for part in ("train", "val"):
        for name in ("dog", "owl"):
            shutil.rmtree(root / part / name)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_folder, ["photos is not a folder"]),
        (no_val, ["no folder val/", "holds: train"]),
        (no_classes, ["val has no class folders"]),
        (empty_class, ["no images", "train", "dog"]),
        (empty_val_class, ["no images", "val", "owl"]),
        (other_val_class, ["only in val: eagle", "only in train: owl"]),
        (missing_val_class, ["differ (only in train: owl)"]),
        (one_class, ["one class only (cat)"]),
    ],
)
def test_faults_of_the_folder_are_named_before_anything_is_read(image_folder, spoil, words):
    spoil(image_folder)
    with pytest.raises(DataError) as error:
        load(image_folder)
    for word in words:
        assert word in str(error.value)


def test_imagenet_as_downloaded_is_recognised(image_folder):
    for i in range(1, 4):
        write_image(image_folder / "val" / "cat" / f"ILSVRC2012_val_{i:08d}.jpg", (9, 9))
    assert load(image_folder).sizes["val"] == 12  # sorted, they are as others
    flat = image_folder / "flat" / "val"
    for i in range(1, 4):
        write_image(flat / f"{i}.jpg", (9, 9)).rename(flat / f"ILSVRC2012_val_{i:08d}.JPEG")
    for folder in (flat, flat.parent):
        with pytest.raises(DataError, match=rf"val holds 3 of ImageNet's .*scripts/sort_imagenet_val.py {flat} LABELS"):
            load_validation(DataSection(path=str(folder)), 16)


def test_no_path_given():
    with pytest.raises(DataError, match=r"data\.path is not set"):
        load_splits(DataSection(), 16, 0)


@pytest.mark.parametrize("workers", [1, 3])
def test_an_unreadable_image_is_named(image_folder, workers):
    (image_folder / "train" / "dog" / "c.webp").write_text("not an image")
    splits = load(image_folder, workers=workers)
    with pytest.raises(DataError, match=r"dog/c\.webp cannot be read"):
        list(splits.batches("train", 6))
    with pytest.raises(DataError, match=r"dog/c\.webp cannot be read"):
        list(splits.training(6).epoch(0))


def test_flips_and_crops_come_from_the_image(tmp_path):
    """An image whose left half is black and right half white is shown in both orientations, and with nothing else."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, 32:] = 255
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(30):
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    images = np.concatenate([images for images, _ in load(tmp_path).training(60).epoch(0)])
    contrast = images[:, 0, :, -1].mean(axis=1) - images[:, 0, :, 0].mean(axis=1)
    assert (contrast > 1).sum() > 8 and (contrast < -1).sum() > 8
