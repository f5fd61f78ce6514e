"""Fashion-MNIST (Xiao et al., 2017): 60,000 + 10,000 grey images of 28 x 28 pixels, 10 balanced classes, IDX files.

The four files, gzip or plain, are taken from `data.path` if it is given. If not, they are looked for in the folder of
the Debian/Ubuntu package `dataset-fashion-mnist` and in the cache folder, into which they are downloaded if they are in
neither. The test images are the split "val".

A download is checked by the SHA-256 of its decompressed content, so neither a mirror nor an unencrypted connection
needs to be trusted.
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
from dvt.data.images import ArrayImages
from dvt.data.sources.source import PARTS, Defaults, Source, checked_labels
from dvt.errors import DataError
from dvt.safe_files import replacing

CLASS_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
DEFAULTS = Defaults(mean=(0.2860,), std=(0.3530,))
"""Mean and standard deviation of all pixels of the 60,000 training images, in 0..1."""
SIDE = 28
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "val": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
"""Part -> names of its files of images and of labels, without .gz."""
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""Of the decompressed files, as the Debian package dataset-fashion-mnist 0.0~git20200523 holds them."""
MOST_BYTES = 50_000_000
"""Somewhat more than the largest of the files holds; nothing beyond it is downloaded, decompressed or read."""
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CACHE_FOLDER = Path("~/.cache/dvt/fashion-mnist")
BASE_URLS = (
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
"""The publisher's two locations."""
TIMEOUT = 30
"""Seconds without a byte before a download is given up."""

log = logging.getLogger(__name__)


def open_fashion_mnist(data: DataSection, image_size: int, parts: Sequence[str] = PARTS) -> Source:
    """Fashion-MNIST as it is, resized bilinearly to the image size; augmentation is that of `ArrayImages`. Both parts,
    or "val" alone.

    Raises:
        DataError: The files are not in `data.path`, or nowhere and cannot be downloaded; or one of them is damaged.
    """
    folder = find_files(data.path, parts)
    images = {part: ArrayImages(*read_part(folder, part)) for part in parts}
    preprocessing = DEFAULTS.preprocessing(data, image_size, data.resize_size or image_size)
    notes = [f"Fashion-MNIST files of {folder}"]
    return Source(images.get("train"), images["val"], CLASS_NAMES, preprocessing, notes)


def find_files(path: str | None, parts: Sequence[str] = PARTS) -> Path:
    """The folder that holds the files of `parts`: `path`, or where it is None one of the usual places, with all four
    files, downloaded if need be.

    Raises:
        DataError: `path` lacks one of them, and the message says which; or they are nowhere and cannot be downloaded,
            and the message lists what was tried.
    """
    if path is not None:
        given = Path(path).expanduser()
        if lack := _lack(given, parts):
            raise DataError(
                f"data.path: {lack}. It must hold the four files of Fashion-MNIST, gzip or plain; correct it, or leave"
                " it out to have them looked for in the usual places and downloaded if need be"
            )
        return given
    if _lack(DEBIAN_FOLDER) is None:
        return DEBIAN_FOLDER
    try:
        cache = CACHE_FOLDER.expanduser()
    except RuntimeError as error:
        raise DataError(f"data.path is not set, and no home folder is known for {CACHE_FOLDER}; give it") from error
    lack = _lack(cache)
    return cache if lack is None else fetch_fashion_mnist(cache, [_lack(DEBIAN_FOLDER), lack])


def _lack(folder: Path, parts: Sequence[str] = PARTS) -> str | None:
    """What is missing in `folder`; None if the files of `parts` are there."""
    missing = missing_files(folder, parts)
    if not missing:
        return None
    if folder.is_dir():
        return f"{folder} lacks {missing[0]}[.gz]"
    return f"{folder} is not a folder" if folder.exists() else f"there is no folder {folder}"


def missing_files(folder: Path, parts: Sequence[str] = PARTS) -> list[str]:
    """Names, without .gz, of those of the files of `parts` that are not in `folder`, gzip or plain."""
    names = [name for part in parts for name in FILES[part]]
    return [name for name in names if not any((folder / f"{name}{end}").is_file() for end in ("", ".gz"))]


def fetch_fashion_mnist(folder: Path, tried: Sequence[str] = (), base_urls: Sequence[str] = BASE_URLS) -> Path:
    """Downloads those of the four files that are not in `folder`, and returns it.

    Args:
        folder: Made if need be.
        tried: What was tried before, for the message.
        base_urls: Locations to download from, in this order.

    Raises:
        DataError: All locations failed; the message lists them and says what to do.
    """
    tried = list(tried)
    for base in base_urls:
        url = ""
        try:
            for name in missing_files(folder):
                url = f"{base.rstrip('/')}/{name}.gz"
                _download(url, folder / f"{name}.gz", SHA256[name])
            return folder
        # URLError and timeouts are OSErrors; EOFError and zlib.error come from gzip that is cut short or damaged.
        except (OSError, http.client.HTTPException, EOFError, ValueError, zlib.error) as error:
            tried.append(f"{url}: {error}")
    raise DataError(
        f"Fashion-MNIST is not here and cannot be downloaded (tried: {'; '.join(tried)}). Install the Debian package"
        f" with 'sudo apt-get install dataset-fashion-mnist', or put {', '.join(f'{name}.gz' for name in SHA256)} into"
        " a folder and give it as data.path"
    )


def _download(url: str, file: Path, sha256: str) -> None:
    """The file is there whole or not at all. Raises ValueError if what comes is something else."""
    log.info("downloading %s", url)
    file.parent.mkdir(parents=True, exist_ok=True)
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
        content = answer.read(MOST_BYTES + 1)
    values = gzip.GzipFile(fileobj=io.BytesIO(content)).read(MOST_BYTES + 1)
    if hashlib.sha256(values).hexdigest() != sha256:
        raise ValueError("the content is not that of Fashion-MNIST (wrong SHA-256)")
    with replacing(file) as part:
        part.write_bytes(content)


def read_part(folder: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Images (N, 28, 28) and labels (N,) of "train" or "val".

    Raises:
        DataError: A damaged file; the message names it.
    """
    image_file, label_file = (
        folder / name if (folder / name).is_file() else folder / f"{name}.gz" for name in FILES[part]
    )
    images, labels = read_idx(image_file), read_idx(label_file)
    if images.shape[1:] != (SIDE, SIDE):
        raise DataError(f"{image_file} holds an array of shape {images.shape}; images of {SIDE} x {SIDE} are needed")
    if labels.shape != images.shape[:1]:
        raise DataError(f"{label_file} holds labels of shape {labels.shape} for {len(images)} images")
    if len(labels) == 0:
        raise DataError(f"{image_file} holds no images")
    return images, checked_labels(label_file, labels, len(CLASS_NAMES))


def read_idx(file: Path) -> NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file, gzip or plain; no more is decompressed than its header states.

    Raises:
        DataError: Not such a file, cut short, longer than its header states, or larger than `MOST_BYTES`.
    """
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
