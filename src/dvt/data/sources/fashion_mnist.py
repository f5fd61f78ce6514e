"""Fashion-MNIST (Xiao et al., 2017): 60,000 + 10,000 grey images of 28 x 28 pixels, 10 balanced classes, IDX files.

The four files, gzip or plain, are taken from `data.path`, or else from the Debian/Ubuntu package
`dataset-fashion-mnist` or the cache folder, into which they are downloaded. The test images are the split "val".
"""

import gzip
import hashlib
import http.client
import io
import logging
import math
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dvt.config.sections import DataSection
from dvt.data.images import PARTS, ArrayImages, Source, checked_labels, configured, required_folder
from dvt.data.preprocess import Preprocessing
from dvt.data.progress import progress
from dvt.errors import DataError
from dvt.safe_files import replacing

CLASS_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
SIDE = 28
DEFAULTS = Preprocessing("fashion_mnist", SIDE, SIDE, 1, (0.2860,), (0.3530,), "bilinear")  # of all training images
SHA256 = {  # of the decompressed files, as the Debian package dataset-fashion-mnist 0.0~git20200523 holds them
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
FILES = {"train": tuple(SHA256)[:2], "val": tuple(SHA256)[2:]}  # of images and of labels; gzip has .gz at the end
MOST_BYTES = 50_000_000  # somewhat more than the largest holds; nothing beyond is downloaded, decompressed or read
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CACHE_FOLDER = Path("~/.cache/dvt/fashion-mnist")
BASE_URLS = (  # the publisher's
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
USUAL = "the folder of the four files of Fashion-MNIST, or leave it out: they are found, or downloaded if need be"
TIMEOUT = 30  # seconds without a byte before a download is given up

log = logging.getLogger(__name__)


def open_fashion_mnist(data: DataSection, image_size: int, parts: Sequence[str] = PARTS) -> Source:
    """Fashion-MNIST as it is, resized bilinearly. Raises DataError as `find_files` and `read_part`."""
    folder = find_files(data.path, parts)
    images = {part: ArrayImages(*read_part(folder, part)) for part in parts}
    preprocessing = configured(DEFAULTS, data, image_size, image_size)
    return Source(images.get("train"), images["val"], CLASS_NAMES, preprocessing, [f"Fashion-MNIST files of {folder}"])


def find_files(path: str | None, parts: Sequence[str] = PARTS) -> Path:
    """The folder that holds the files of `parts`: `path`, or where it is None one of the usual places. Raises DataError
    if it lacks one, or they are nowhere and cannot be downloaded."""
    if path is not None:
        given = required_folder(path, USUAL)
        if missing := missing_files(given, parts):
            raise DataError(f"data.path {path} lacks {missing[0]}[.gz]; give {USUAL}")
        return given
    if not missing_files(DEBIAN_FOLDER):
        return DEBIAN_FOLDER
    try:
        cache = CACHE_FOLDER.expanduser()
    except RuntimeError as error:
        raise DataError(f"data.path is not set, and no home folder is known for {CACHE_FOLDER}; give it") from error
    return fetch_fashion_mnist(cache, [str(DEBIAN_FOLDER), str(cache)])


def missing_files(folder: Path, parts: Sequence[str] = PARTS) -> list[str]:
    """Names, without .gz, of those of the files of `parts` that are not in `folder`, gzip or plain."""
    names = [name for part in parts for name in FILES[part]]
    return [name for name in names if not any((folder / f"{name}{end}").is_file() for end in ("", ".gz"))]


def fetch_fashion_mnist(folder: Path, tried: Sequence[str] = (), base_urls: Sequence[str] = BASE_URLS) -> Path:
    """Downloads those of the four files that are not in `folder`, which is made if need be, and returns it. Raises
    DataError if all of `base_urls` failed, with them and what else was `tried` before."""
    tried = list(tried)
    for base in base_urls:
        url = ""
        try:
            for name in missing_files(folder):
                url = f"{base.rstrip('/')}/{name}.gz"
                log.info("downloading %s", url)
                content = _downloaded(url, name)
                values = gzip.GzipFile(fileobj=io.BytesIO(content)).read(MOST_BYTES + 1)
                if hashlib.sha256(values).hexdigest() != SHA256[name]:
                    raise ValueError("the content is not that of Fashion-MNIST (wrong SHA-256)")
                folder.mkdir(parents=True, exist_ok=True)
                with replacing(folder / f"{name}.gz") as written:
                    written.write_bytes(content)
            return folder
        # URLError and timeouts are OSErrors; EOFError and zlib.error come from gzip that is cut short or damaged.
        except (OSError, http.client.HTTPException, EOFError, ValueError, zlib.error) as error:
            tried.append(f"{url}: {error}")
    raise DataError(
        f"Fashion-MNIST is not here and cannot be downloaded (tried: {'; '.join(tried)}). Install the Debian package"
        f" with 'sudo apt-get install dataset-fashion-mnist', or put {', '.join(f'{name}.gz' for name in SHA256)} into"
        " a folder and give it as data.path"
    )


def _downloaded(url: str, name: str) -> bytes:
    content = b""
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
        total = int(answer.headers.get("Content-Length") or 0) or None
        with progress(total=total, unit="B", unit_scale=True, desc=name) as bar:
            while len(content) <= MOST_BYTES and (part := answer.read(2**16)):
                content += part
                bar.update(len(part))
    return content


def read_part(folder: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Images (N, 28, 28) and labels (N,) of "train" or "val". Raises DataError for a damaged file."""
    image_file, label_file = (
        folder / name if (folder / name).is_file() else folder / f"{name}.gz" for name in FILES[part]
    )
    images, labels = read_idx(image_file), read_idx(label_file)
    if images.shape[1:] != (SIDE, SIDE):
        raise DataError(f"{image_file} holds an array of shape {images.shape}; images of {SIDE} x {SIDE} are needed")
    if labels.shape != images.shape[:1]:
        raise DataError(f"{label_file} holds labels of shape {labels.shape} for {len(images)} images")
    return images, checked_labels(label_file, labels, len(CLASS_NAMES))


def read_idx(file: Path) -> NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file, gzip or plain; no more is decompressed than its header states."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as content:
            # Two zero bytes, type 8 (unsigned byte), number of axes, and the length of each axis as big-endian int32.
            start = content.read(4)
            if len(start) < 4 or start[:3] != b"\x00\x00\x08":
                raise DataError(f"{file} is not an IDX file of unsigned bytes; remove it to have it downloaded again")
            lengths = content.read(4 * start[3])
            shape = tuple(np.frombuffer(lengths[: len(lengths) // 4 * 4], ">i4").tolist())
            size = math.prod(shape)
            if len(shape) != start[3] or min(shape, default=0) < 0 or size > MOST_BYTES:
                raise DataError(f"{file} is no file of Fashion-MNIST: its header states an array of shape {shape}")
            values = np.frombuffer(content.read(size + 1), np.uint8)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read: {error}; remove it to have it downloaded again") from error
    if values.size != size:
        fault = "is cut short" if values.size < size else "is longer than it should be"
        raise DataError(f"{file} {fault}: its header states {size:,} values, of shape {shape}")
    return values.reshape(shape)
