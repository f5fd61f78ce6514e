"""The body of a request, which must not be too large nor take too long."""

import asyncio

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect


async def read_body(request: Request, max_bytes: int, seconds: float) -> bytes:
    """What a client sends as the body of its request: an image file, or a request with images in it.

    Raises HTTPException: 411 without Content-Length, 413 for more than `max_bytes`, stated or sent, 415 for a form, 400
    for nothing or for two statements of the length, 408 if it takes longer than `seconds`.
    """
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise HTTPException(415, "send the image file itself as the body, not a form: curl --data-binary @photo.jpg")
    length = request.headers.get("content-length")
    if length is None:
        raise HTTPException(411, "state the size of the body in Content-Length")
    if "transfer-encoding" in request.headers:  # which goes over the length, so that two servers may see two bodies
        raise HTTPException(400, "give Content-Length or Transfer-Encoding, not both")
    if int(length) > max_bytes:
        raise _too_large(int(length), max_bytes)
    try:
        body = await asyncio.wait_for(_read(request, max_bytes), seconds)
    except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
        raise HTTPException(408, f"the body did not arrive within {seconds:g} seconds") from None
    except ClientDisconnect:
        raise HTTPException(400, "the client left before its body had arrived") from None
    if not body:
        raise HTTPException(400, "the body is empty; send an image file")
    return body


async def _read(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise _too_large(len(body), max_bytes)
    return bytes(body)


def _too_large(count: int, max_bytes: int) -> HTTPException:
    return HTTPException(413, f"the body has {count:,} bytes; at most {max_bytes:,} are allowed")
