"""Evaluation preprocessing against PIL and torchvision's arithmetic, and the errors of unreadable files."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from data_files import photographs, write_image
from PIL import Image, ImageOps

from dvt.data.decode import read_image, to_mode
from dvt.data.preprocess import Preprocessing, centre_box, default_resize_size, resized_size
from dvt.errors import ConfigError, DataError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make(image_size=224, resize_size=256, **overrides):
    values = {"dataset": "image_folder", "in_channels": 3, "mean": MEAN, "std": STD} | overrides
    return Preprocessing(image_size=image_size, resize_size=resize_size, **values)


def by_pil(image, resize, crop):
    """The published evaluation, step by step."""
    width, height = image.size
    short, long = sorted((width, height))
    long = int(resize * long / short)
    size = (resize, long) if width <= height else (long, resize)
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = int(round((size[0] - crop) / 2)), int(round((size[1] - crop) / 2))
    return np.asarray(image.crop((left, top, left + crop, top + crop)))


@pytest.mark.parametrize(("crop", "resize"), [(224, 256), (224, 248), (55, 64)])
def test_photographs_equal_pil_bit_for_bit(crop, resize):
    files = photographs()
    if not files:
        pytest.skip("neither scikit-learn nor matplotlib is installed: no real photographs")
    for file in files:
        expected = by_pil(Image.open(file).convert("RGB"), resize, crop)
        prepared = make(crop, resize)
        np.testing.assert_array_equal(prepared.pixels(read_image(file)), expected, err_msg=str(file))
        exact = (expected.transpose(2, 0, 1) / 255.0 - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
        got = prepared(file)
        assert got.dtype == np.float32 and got.shape == (3, crop, crop)
        np.testing.assert_allclose(got, exact, atol=1e-6)


@pytest.mark.parametrize(
    "size", [(31, 97), (97, 31), (64, 64), (64, 65), (65, 64), (33, 400), (127, 85), (7, 8), (1, 1), (1, 40)]
)
def test_odd_sizes_equal_pil_bit_for_bit(size):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    np.testing.assert_array_equal(make(55, 64).pixels(image), by_pil(image, 64, 55))


def test_sizes_are_those_of_the_published_evaluation():
    assert default_resize_size(224) == 256
    assert resized_size(500, 375, 256) == (341, 256)
    assert resized_size(375, 500, 256) == (256, 341)
    # Margins of 159 and 117: halves go to the even neighbour, up in one case and down in the other.
    assert centre_box(383, 341, 224) == (80, 58, 304, 282)


def test_grey_images_have_one_channel():
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    prepared = make(8, 8, in_channels=1, mean=(0.5,), std=(0.5,), interpolation="bilinear")
    np.testing.assert_allclose(prepared(image)[0], (np.asarray(image) / 255 - 0.5) / 0.5, atol=1e-6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I"])
def test_every_mode_becomes_rgb(mode):
    grey = Image.fromarray(np.arange(0, 250, 10, dtype=np.uint8).reshape(5, 5))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 256 + 7)
    elif mode == "I":
        image = Image.fromarray(np.asarray(grey).astype(np.int32) * 256)
    else:
        image = grey.convert(mode) if mode == "P" else grey.convert("RGB").convert(mode)
    assert image.mode == mode
    converted = to_mode(image, "RGB")
    assert converted.mode == "RGB"
    if mode != "1":
        np.testing.assert_array_equal(np.asarray(converted)[..., 0], np.asarray(grey))


def test_transparent_palette_is_read_without_a_warning(tmp_path, recwarn):
    file = tmp_path / "p.png"
    Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8)).convert("P").save(file, transparency=bytes([0, 100, 200]))
    assert read_image(file).mode == "RGB"
    assert not [w for w in recwarn if "alette" in str(w.message)]


def oriented(file, orientation, size=(48, 32)):
    """A photograph of `size` as a camera stores it that is held in one of eight ways."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(write_image(file.with_suffix(".bmp"), size, seed=3)).save(file, exif=exif)
    return file


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured_where_that_is_asked_for(tmp_path, orientation, ending):
    file = oriented(tmp_path / f"a.{ending}", orientation)
    stored = Image.open(file).convert("RGB")
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)).convert("RGB"))
    assert expected.shape == ((32, 48, 3) if orientation < 5 else (48, 32, 3))
    np.testing.assert_array_equal(np.asarray(read_image(file)), np.asarray(stored))
    np.testing.assert_array_equal(np.asarray(read_image(file, exif="honour")), expected)
    np.testing.assert_array_equal(np.asarray(read_image(io.BytesIO(file.read_bytes()), exif="honour")), expected)
    prepared = make(24, 32)
    np.testing.assert_array_equal(prepared(file, "honour"), prepared(Image.fromarray(expected)))
    np.testing.assert_array_equal(prepared(Image.open(file), "honour"), prepared(file, "honour"))
    np.testing.assert_array_equal(prepared(file), prepared(stored))


def test_a_tiff_file_is_turned_once_and_damaged_exif_data_count_as_none(tmp_path):
    file = oriented(tmp_path / "a.tif", 6)
    assert read_image(file, exif="honour").size == read_image(file).size == (32, 48)  # by PIL itself
    for value in (0, 9, 77):
        assert read_image(oriented(tmp_path / "b.jpg", value), exif="honour").size == (48, 32)
    jpeg = oriented(tmp_path / "c.jpg", 6)
    content = jpeg.read_bytes()
    start = content.index(b"Exif\0\0") + 6
    for damaged in (content[:start] + b"\xff" * 8 + content[start + 8 :], content.replace(b"Exif\0\0", b"Exiv\0\0")):
        jpeg.write_bytes(damaged)
        assert read_image(jpeg, exif="honour").size == (48, 32)
    jpeg.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(DataError, match=r"c\.jpg cannot be read"):
        read_image(jpeg, exif="honour")


def test_a_stored_dict_gives_the_same_input(tmp_path):
    file = write_image(tmp_path / "x.png", (50, 40))
    prepared = make(24, 32)
    stored = json.loads(json.dumps(prepared.to_dict()))
    assert set(stored) == {"dataset", "image_size", "resize_size", "in_channels", "mean", "std", "interpolation"}
    np.testing.assert_array_equal(Preprocessing.from_dict(stored)(file), prepared(file))
    with pytest.raises(ConfigError, match="colour"):
        Preprocessing.from_dict(stored | {"colour": 1})


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jpg does not exist"):
        read_image(tmp_path / "gone.jpg")
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    with pytest.raises(DataError, match=r"text\.jpg cannot be read"):
        read_image(text)
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"empty\.png"):
        read_image(tmp_path / "empty.png")


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "cut.webp", "cut.bmp"])
def test_truncated_files_are_named(tmp_path, name):
    file = write_image(tmp_path / name, (90, 70))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(DataError, match=rf"{name} cannot be read"):
        read_image(file)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"resize_size": 200}, "data.resize_size is 200"),
        ({"mean": (0.5,)}, "data.mean has 1 entries"),
        ({"std": (0.5,) * 4}, "data.std has 4 entries"),
        ({"in_channels": 2}, "in_channels is 2"),
        ({"interpolation": "nearest"}, "nearest"),
        ({"image_size": 0}, "image_size is 0"),
    ],
)
def test_wrong_values_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        make(**overrides)


def test_importing_the_data_package_does_not_import_mindspore():
    code = "import sys, dvt.data.preprocess, dvt.data; sys.exit('mindspore' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
