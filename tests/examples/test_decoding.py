"""What an image may be: formats, sizes, damage, images that would grow, and those that take long."""

import io
import os
import re
import signal
import struct
import time
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageFile
from service import photographs, png

from dvt.data.preprocess import Preprocessing
from dvt_service.decoding import FORMATS, Decoders, RefusedError, decode

PREPROCESSING = Preprocessing("test", 24, 28, 3, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
MAX_PIXELS = 1_000_000


def refusal(data: bytes) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        decode(data, PREPROCESSING, MAX_PIXELS)
    return caught.value


def png_header(width: int, height: int) -> bytes:
    """A PNG file of some hundred bytes that states any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_becomes_the_input_that_preprocessing_makes(kind: str):
    file = io.BytesIO()
    with Image.open(io.BytesIO(photographs(1)[0])) as image:
        image.save(file, kind)
    with Image.open(file) as image:
        expected = PREPROCESSING(image)
    np.testing.assert_array_equal(decode(file.getvalue(), PREPROCESSING, MAX_PIXELS), expected)


def test_a_photograph_on_its_side_is_turned_unless_exif_is_ignored():
    stored = Image.open(io.BytesIO(photographs(1)[0]))
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    stored.save(file, "PNG", exif=exif)
    upright = PREPROCESSING(stored.transpose(Image.Transpose.ROTATE_270))
    assert not np.array_equal(upright, PREPROCESSING(stored))
    np.testing.assert_array_equal(decode(file.getvalue(), PREPROCESSING, MAX_PIXELS), upright)
    np.testing.assert_array_equal(decode(file.getvalue(), PREPROCESSING, MAX_PIXELS, "ignore"), PREPROCESSING(stored))
    decoders = Decoders(1, PREPROCESSING, MAX_PIXELS, 60, "ignore")
    try:
        np.testing.assert_array_equal(decoders.decode(file.getvalue()), PREPROCESSING(stored))
    finally:
        decoders.close()


@pytest.mark.parametrize("size", [(1001, 1000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_before_they_are_decoded(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *args: pytest.fail("it was decoded"))
    assert refusal(png_header(*size)).status == 413


@pytest.mark.parametrize("kind", FORMATS)
def test_the_header_is_enough_in_every_format(kind: str, monkeypatch: pytest.MonkeyPatch):
    file = io.BytesIO()
    Image.new("RGB", (1001, 1000)).save(file, kind)
    plugin = type(Image.open(file))  # each may load in its own way
    monkeypatch.setattr(plugin, "load", lambda *args: pytest.fail("it was decoded"))
    assert refusal(file.getvalue()).status == 413


@pytest.mark.parametrize("shape", [(1, 30_000), (30_000, 1)])
def test_a_thin_image_that_the_resize_would_make_enormous_is_refused(shape: tuple[int, int]):
    refused = refusal(png(np.zeros(shape, np.uint8)))
    assert refused.status == 413 and re.search("28 x 840000|840000 x 28", refused.detail)


def jpeg_of_scans(count: int, side: int = 800) -> bytes:
    """A progressive JPEG file whose last scan comes again and again."""
    file = io.BytesIO()
    Image.new("L", (side, side)).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rfind(b"\xff\xda")
    return content[:last] + content[last:-2] * count + content[-2:]


def test_scans_are_counted_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch):
    np.testing.assert_array_equal(
        decode(jpeg_of_scans(10), PREPROCESSING, MAX_PIXELS), decode(jpeg_of_scans(1), PREPROCESSING, MAX_PIXELS)
    )
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *args: pytest.fail("it was decoded"))
    refused = refusal(jpeg_of_scans(40))
    assert refused.status == 413 and "scans of 800 x 800" in refused.detail


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"not an image", "cannot be read as an image; JPEG, PNG"),
        (jpeg_of_scans(1)[:300], "the JPEG file is damaged: .*truncated"),
        (photographs(1)[0][:300], "the PNG file is damaged: .*truncated"),
        (png_header(0, 5), "."),
        (b"\x89PNG\r\n\x1a\n", "."),
        (b"GIF89a" + bytes(20), "."),
    ],
    ids=["text", "JPEG cut short", "PNG cut short", "no pixels", "no header", "empty GIF"],
)
def test_what_is_no_image_is_refused_with_the_reason(data: bytes, words: str):
    refused = refusal(data)
    assert refused.status == 400 and re.search(words, refused.detail)


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    started = Decoders(1, PREPROCESSING, MAX_PIXELS, 2.0)
    yield started
    started.close()


def test_a_process_decodes_as_this_one_does(decoders: Decoders):
    file = photographs(1)[0]
    np.testing.assert_array_equal(decoders.decode(file), decode(file, PREPROCESSING, MAX_PIXELS))
    with pytest.raises(RefusedError, match="cannot be read as an image") as caught:
        decoders.decode(b"no image")
    assert caught.value.status == 400


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL], ids=["hangs", "dies"])
def test_a_decoder_that_does_not_answer_is_replaced(decoders: Decoders, number: int):
    (before,) = decoders._processes
    os.kill(before.pid, number)
    started = time.monotonic()
    with pytest.raises(RefusedError, match="cannot be decoded within 2 seconds") as caught:
        decoders.decode(photographs(1)[0])
    assert caught.value.status == 413 and time.monotonic() - started < 20
    assert not before.is_alive()
    assert decoders.decode(photographs(1)[0]).shape == (3, 24, 24)


def test_other_decoders_are_not_reached():
    file = io.BytesIO()
    Image.new("RGB", (10, 10)).save(file, "TIFF")
    refused = refusal(file.getvalue())
    assert refused.status == 400 and "JPEG, PNG" in refused.detail
