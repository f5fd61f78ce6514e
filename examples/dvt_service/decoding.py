"""Images of clients become model inputs in processes of their own, which end when an image takes too long.

Imports no web framework, so that these processes start quickly.
"""

import atexit
import io
import json
import logging
import multiprocessing
import signal
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from queue import SimpleQueue

import numpy as np
from PIL import Image, UnidentifiedImageError

from dvt.data.decode import Exif
from dvt.data.preprocess import Preprocessing, resized_size
from dvt.errors import reason_of

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # every further decoder is one more that can be attacked
LARGEST_EFFORT = (
    16  # pixels of all scans of a JPEG file, as a multiple of `max_pixels`; usual files have up to ten scans
)

log = logging.getLogger(__name__)


class RefusedError(Exception):
    """What is wrong with an image, and the HTTP status for it."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


def decode(data: bytes, preprocessing: Preprocessing, max_pixels: int, exif: Exif = "honour") -> np.ndarray:
    """The model input, float32 (C, S, S), of an image file.

    Raises RefusedError: 413 if its header states more than `max_pixels`, or it would have more after the resize, or its
    scans go over too many, all before a pixel is decoded; 400 if it is no image of `FORMATS`, or is damaged.
    """
    kind = "image"
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # reads the header alone
            kind = image.format
            _check_size(image.width, image.height, preprocessing, max_pixels)
            scans = data.count(b"\xff\xda") if kind in ("JPEG", "MPO") else 1  # the mark never occurs in coded pixels
            if scans * image.width * image.height > LARGEST_EFFORT * max_pixels:
                raise RefusedError(413, f"the image has {scans} scans of {image.width} x {image.height} pixels")
            return preprocessing(image, exif)
    except RefusedError:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit, which holds whatever `max_pixels` is
        raise RefusedError(413, "the image has too many pixels") from None
    except UnidentifiedImageError:
        detail = f"the body cannot be read as an image; {', '.join(FORMATS)} files are understood"
        raise RefusedError(400, detail) from None
    except Exception as error:  # decoders fail in many ways on damaged files, and never because of this service
        raise RefusedError(400, f"the {kind} file is damaged: {reason_of(error)}") from None


def _check_size(width: int, height: int, preprocessing: Preprocessing, max_pixels: int) -> None:
    # The resize makes the shorter side a fixed length, and so an image of 1 x 1,000,000 pixels enormous.
    resized_width, resized_height = resized_size(width, height, preprocessing.resize_size)
    if max(width * height, resized_width * resized_height) > max_pixels:
        raise RefusedError(
            413,
            f"the image has {width} x {height} pixels, {resized_width} x {resized_height} after the resize; at most "
            f"{max_pixels:,} in all are allowed",
        )


class Decoders:
    """Processes that decode images, one at a time each.

    Args:
        count: Number of processes.
        preprocessing, max_pixels, exif: As for `decode`.
        seconds: How long one image may take; then its process is killed and replaced.
    """

    def __init__(
        self, count: int, preprocessing: Preprocessing, max_pixels: int, seconds: float, exif: Exif = "honour"
    ) -> None:
        self._preprocessing, self._max_pixels, self._seconds, self._exif = preprocessing, max_pixels, seconds, exif
        self._shape = (preprocessing.in_channels, preprocessing.image_size, preprocessing.image_size)
        self.threads = ThreadPoolExecutor(count, thread_name_prefix="decoder")  # each waits for one process
        self._idle: SimpleQueue = SimpleQueue()
        self._processes: set[multiprocessing.Process] = set()
        for started in [self._start() for _ in range(count)]:
            self._put_when_ready(started)
        atexit.register(self._kill)  # multiprocessing would wait for them

    def decode(self, data: bytes) -> np.ndarray:
        """As the function `decode`, in one of the processes; also raises RefusedError with 413 if it takes too long."""
        process, connection = self._idle.get()
        answer = None
        try:
            connection.send_bytes(data)
            if connection.poll(self._seconds):
                answer = connection.recv_bytes()
        except (EOFError, OSError) as error:
            log.warning("a decoder ended: %r", error)
        finally:
            if answer is None:
                process.kill()
                process.join()
                connection.close()
                self._processes.remove(process)
                self._put_when_ready(self._start())
            else:
                self._idle.put((process, connection))
        if answer is None:
            raise RefusedError(413, f"the image cannot be decoded within {self._seconds:g} seconds")
        if answer[:1] == b"{":
            raise RefusedError(**json.loads(answer))
        return np.frombuffer(answer, np.float32, offset=1).reshape(self._shape)

    def close(self) -> None:
        """Waits for the images that are being decoded, and ends the processes."""
        self.threads.shutdown()
        self._kill()

    def _start(self) -> tuple[multiprocessing.Process, Connection]:
        context = multiprocessing.get_context("spawn")  # this process has threads, which a fork would not survive
        ours, theirs = context.Pipe()
        arguments = theirs, self._preprocessing, self._max_pixels, self._exif
        process = context.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        theirs.close()
        self._processes.add(process)
        return process, ours

    def _put_when_ready(self, started: tuple[multiprocessing.Process, Connection]) -> None:
        started[1].recv_bytes()
        self._idle.put(started)

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()


def _serve(connection: Connection, preprocessing: Preprocessing, max_pixels: int, exif: Exif) -> None:
    """Answers image files with b"=" and the bytes of the model input, or with a refusal as JSON, until the end."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the service, which closes the connection at its end
        signal.signal(number, signal.SIG_IGN)
    connection.send_bytes(b"ready")
    while True:
        try:
            data = connection.recv_bytes()
        except EOFError:
            return
        try:
            answer = b"=" + decode(data, preprocessing, max_pixels, exif).tobytes()
        except RefusedError as refused:
            answer = json.dumps({"status": refused.status, "detail": refused.detail}).encode()
        connection.send_bytes(answer)
