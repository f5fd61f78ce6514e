"""What an upload may be: formats, sizes, damage, and images that would grow."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile
from service import photographs, png

pytest.importorskip("fastapi", reason="FastAPI is not installed: pip install -r requirements-serve.txt")
from fastapi import HTTPException

from dvt.data.preprocess import Preprocessing
from dvt_service.uploads import FORMATS, decode

PREPROCESSING = Preprocessing("test", 24, 28, 3, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
MAX_PIXELS = 1_000_000


def refusal(data: bytes) -> HTTPException:
    with pytest.raises(HTTPException) as caught:
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


@pytest.mark.parametrize("size", [(1001, 1000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_before_they_are_decoded(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *args: pytest.fail("it was decoded"))
    assert refusal(png_header(*size)).status_code == 413


@pytest.mark.parametrize("kind", FORMATS)
def test_the_header_is_enough_in_every_format(kind: str, monkeypatch: pytest.MonkeyPatch):
    file = io.BytesIO()
    Image.new("RGB", (1001, 1000)).save(file, kind)
    plugin = type(Image.open(file))  # each may load in its own way
    monkeypatch.setattr(plugin, "load", lambda *args: pytest.fail("it was decoded"))
    assert refusal(file.getvalue()).status_code == 413


@pytest.mark.parametrize("shape", [(1, 30_000), (30_000, 1)])
def test_a_thin_image_that_the_resize_would_make_enormous_is_refused(shape: tuple[int, int]):
    refused = refusal(png(np.zeros(shape, np.uint8)))
    assert refused.status_code == 413 and re.search("28 x 840000|840000 x 28", refused.detail)


@pytest.mark.parametrize(
    "data",
    [b"not an image", photographs(1)[0][:300], png_header(0, 5), b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(20)],
    ids=["text", "cut short", "no pixels", "no header", "empty GIF"],
)
def test_what_is_no_image_is_refused(data: bytes):
    assert refusal(data).status_code == 400


def test_other_decoders_are_not_reached():
    file = io.BytesIO()
    Image.new("RGB", (10, 10)).save(file, "TIFF")
    refused = refusal(file.getvalue())
    assert refused.status_code == 400 and "JPEG, PNG" in refused.detail
