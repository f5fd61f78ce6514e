"""Image files to PIL images: every image that this package reads is decoded, and turned upright if asked for, here."""

import io
import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from dvt.errors import DataError, reason_of

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # PIL knows more, of which EPS starts other programs
MAX_PIXELS = 89_478_485  # where PIL begins to warn of decompression bombs; checked before an image takes memory
Exif = Literal["honour", "ignore"]
"""Turn images as their EXIF orientation says, as photographs of phones need; or take them as stored, as published."""
TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# PIL warns of damaged metadata, such as EXIF, that nothing here looks at, and does not name the file. The filter is for
# good, because those that can be taken back (`warnings.catch_warnings`) are not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


def read_image(
    file: str | Path | BinaryIO, mode: str = "RGB", name: Callable[[], str] | None = None, exif: Exif = "ignore"
) -> Image.Image:
    """The decoded image of a path or open file in PIL mode "RGB" or "L"; of an animation, the first frame. Raises
    DataError if the file is missing, no image, cut short or larger than `MAX_PIXELS`; it calls the file by its path, or
    `name()`."""
    try:
        with open(file, "rb") if isinstance(file, str | os.PathLike) else nullcontext(file) as opened:
            return _decoded(opened, mode, exif)
    except MemoryError:  # not the file's fault
        raise
    except Exception as error:  # decoders report broken files in more ways than can be listed
        called = file if name is None else name()
        if isinstance(error, FileNotFoundError):
            link = f": it is a link to {os.readlink(file)}" if os.path.islink(file) else ""
            raise DataError(f"image file {called} does not exist{link}") from error
        raise DataError(f"image file {called} cannot be read: {reason_of(error)}; replace or remove it") from error


def _decoded(file: BinaryIO, mode: str, exif: Exif) -> Image.Image:
    start = file.read(len(PNG_SIGNATURE))
    if not start:
        raise DataError("it is empty")
    content = io.BytesIO(_pixels_alone(start + file.read())) if start == PNG_SIGNATURE else file
    content.seek(0)
    try:
        with Image.open(content, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(f"it has {width:,} x {height:,} pixels, more than {MAX_PIXELS:,}")
            return to_mode(upright(image) if exif == "honour" else image, mode)
    except UnidentifiedImageError:
        raise DataError(f"it is none of {', '.join(FORMATS)}") from None


def _pixels_alone(png: bytes) -> bytes:
    """A PNG file with the chunks that its pixels, transparency and orientation need. PIL refuses files whose texts or
    colour profile are large, and decompresses them before it can tell."""
    kept, start = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while start < len(png):
        stop = start + 12 + int.from_bytes(png[start : start + 4], "big")  # length, name, content, checksum
        name = png[start + 4 : start + 8]
        if name[:1].isupper() or name in (b"tRNS", b"eXIf"):  # critical chunks are those with a capital letter
            kept.append(png[start:stop])
        start = stop
    return b"".join(kept)


def upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says that it is to be shown; damaged EXIF data count as none."""
    image.load()  # after which PIL has turned a TIFF file by itself
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # damaged data fail in many ways; the pixels are there
        return image
    return image if turn is None else image.transpose(turn)


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image in PIL mode "RGB" or "L", without transparency. 16-bit grey keeps its upper 8 bits; PIL would cut
    everything above 255 to white. Raises DataError for floats and 32-bit numbers, whose white is not known."""
    if image.mode == mode:
        image.load()
        return image
    if image.mode == "F" or (image.mode == "I" and not 0 <= image.getextrema()[0] <= image.getextrema()[1] < 2**16):
        raise DataError("its pixels are floats or 32-bit numbers; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("P", "L", "RGB") and "transparency" in image.info:
        # A palette with transparency warns when converted straight to RGB; RGBA in between gives the same colours.
        image = image.convert("RGBA")
    return image.convert(mode)
