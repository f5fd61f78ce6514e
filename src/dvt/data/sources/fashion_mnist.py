"""Fashion-MNIST (Xiao et al., 2017): 60,000 + 10,000 grey images of 28 x 28 pixels, 10 balanced classes, IDX files.

The four files, gzip or plain, are taken from `data.path` if it is given. If not, they are looked for in the folder of
the Debian/Ubuntu package `dataset-fashion-mnist` and in the cache folder, into which they are downloaded (`fetch`) if
they are in neither. The test images are the split "val".
"""

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dvt.config.sections import DataSection
from dvt.data.images import ArrayImages
from dvt.data.sources.fetch import fetch_fashion_mnist, is_present
from dvt.data.sources.source import Defaults, Source, checked_labels
from dvt.errors import DataError

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
DEFAULTS = Defaults(mean=(0.2860,), std=(0.3530,))
"""Mean and standard deviation of all pixels of the 60,000 training images, in 0..1."""
SIDE = 28
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "val": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CACHE_FOLDER = Path("~/.cache/dvt/fashion-mnist")


def open_fashion_mnist(data: DataSection, image_size: int) -> Source:
    """Fashion-MNIST as it is, resized bilinearly to the image size; augmentation is that of `ArrayImages`.

    Raises:
        DataError: The files are not in `data.path`, or nowhere and cannot be downloaded; or one of them is damaged.
    """
    folder = find_files(data.path)
    parts = {part: ArrayImages(*read_part(folder, part)) for part in FILES}
    preprocessing = DEFAULTS.preprocessing(data, image_size, data.resize_size or image_size)
    return Source(parts["train"], parts["val"], CLASS_NAMES, preprocessing, [f"Fashion-MNIST files of {folder}"])


def find_files(path: str | None) -> Path:
    """The folder that holds the four files: `path`, or where it is None one of the usual places, downloaded if need be.

    Raises:
        DataError: `path` lacks one of them, and the message says which; or they are nowhere and cannot be downloaded,
            and the message lists what was tried.
    """
    if path is not None:
        given = Path(path).expanduser()
        if lack := _lack(given):
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


def _lack(folder: Path) -> str | None:
    """What is missing in `folder`; None if all four files are there."""
    missing = missing_files(folder)
    if not missing:
        return None
    if folder.is_dir():
        return f"{folder} lacks {missing[0]}[.gz]"
    return f"{folder} is not a folder" if folder.exists() else f"there is no folder {folder}"


def missing_files(folder: Path) -> list[str]:
    """Names, without .gz, of those of the four files that are not in `folder`."""
    return [name for pair in FILES.values() for name in pair if not is_present(folder, name)]


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
    """The array of unsigned bytes in an IDX file, gzip or plain.

    Raises:
        DataError: Not such a file, or cut short.
    """
    try:
        content = file.read_bytes()
        if file.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read: {error}; remove it to have it downloaded again") from error
    # Two zero bytes, type 8 (unsigned byte), number of axes, and the length of each axis as big-endian int32.
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise DataError(f"{file} is not an IDX file of unsigned bytes; remove it to have it downloaded again")
    axes = content[3]
    shape = tuple(np.frombuffer(content[4 : 4 + 4 * axes], ">i4").tolist())
    values = np.frombuffer(content[4 + 4 * axes :], np.uint8)
    if len(shape) != axes or values.size != np.prod(shape, dtype=np.int64):
        raise DataError(f"{file} is cut short: {values.size} values, but its header says {shape}")
    return values.reshape(shape)
