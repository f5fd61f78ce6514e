"""From the body of a request to a model input; what is too large or no image is refused before it costs anything."""

import asyncio
import io
import logging

import numpy as np
from fastapi import HTTPException, Request
from PIL import Image
from starlette.requests import ClientDisconnect

from dvt.data.preprocess import Preprocessing, resized_size

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # every further decoder is one more that strangers can feed

log = logging.getLogger(__name__)


async def read_body(request: Request, max_bytes: int, seconds: float) -> bytes:
    """The image file that a client sends as the body of its request.

    Raises HTTPException: 411 without Content-Length, 413 if that is above `max_bytes`, 415 for a form, 400 for nothing,
    408 if it takes longer than `seconds`.
    """
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise HTTPException(415, "send the image file itself as the body, not a form: curl --data-binary @photo.jpg")
    length = request.headers.get("content-length")
    if length is None:  # the server holds clients to a stated length; one that is not stated has no bound
        raise HTTPException(411, "state the size of the image in Content-Length")
    if int(length) > max_bytes:
        raise _too_large(f"the image file has {int(length):,} bytes; at most {max_bytes:,} are allowed")
    if int(length) == 0:
        raise HTTPException(400, "the body is empty; send an image file")
    try:
        return await asyncio.wait_for(request.body(), seconds)
    except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
        detail = f"the image did not arrive within {seconds:g} seconds"
        raise HTTPException(408, detail, {"Connection": "close"}) from None
    except ClientDisconnect:
        raise HTTPException(400, "the client left before its image had arrived") from None


def decode(data: bytes, preprocessing: Preprocessing, max_pixels: int) -> np.ndarray:
    """The model input, float32 (C, S, S), of an image file.

    Raises HTTPException: 413 if its header states more than `max_pixels`, or it would have more after the resize, both
    before a pixel is decoded; 400 if it is no image of `FORMATS`, or is damaged.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # reads the header alone
            _check_size(image.width, image.height, preprocessing, max_pixels)
            return preprocessing(image)
    except HTTPException:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit, which holds whatever `max_pixels` is
        raise _too_large("the image has too many pixels") from None
    except Exception as error:  # decoders fail in many ways on damaged files, and never because of this service
        log.info("refused an image: %r", error)
        raise HTTPException(
            400, f"the body cannot be read as an image; {', '.join(FORMATS)} files are understood"
        ) from None


def _check_size(width: int, height: int, preprocessing: Preprocessing, max_pixels: int) -> None:
    # The resize makes the shorter side a fixed length, and so an image of 1 x 1,000,000 pixels enormous.
    resized_width, resized_height = resized_size(width, height, preprocessing.resize_size)
    if max(width * height, resized_width * resized_height) > max_pixels:
        raise _too_large(
            f"the image has {width} x {height} pixels, {resized_width} x {resized_height} after the resize; at most "
            f"{max_pixels:,} in all are allowed"
        )


def _too_large(detail: str) -> HTTPException:
    return HTTPException(413, detail, {"Connection": "close"})  # whatever else the client sends is not read
