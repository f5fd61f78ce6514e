"""CIFAR-10 and CIFAR-100 from their *binary* files (Krizhevsky, 2009): records of one byte of label (CIFAR-100: coarse,
then fine) and 3 x 32 x 32 bytes of pixels. Mean and standard deviation are those of the published transfer recipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dvt.config.sections import DataSection
from dvt.data.images import PARTS, ArrayImages, Source, checked_labels, configured, required_folder
from dvt.data.preprocess import Preprocessing
from dvt.errors import DataError

SIDE = 32
DEFAULTS = Preprocessing("cifar10", SIDE, SIDE, 3, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), "bilinear")


class Layout(NamedTuple):
    """Files of one of the two data sets."""

    folder: str  # in the published archive
    train: tuple[str, ...]
    val: str
    names: str  # a text file with one class name per line
    num_classes: int
    label_bytes: int  # before the pixels of a record; the last one is the label


TEN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
LAYOUTS = {
    "cifar10": Layout("cifar-10-batches-bin", TEN_FILES, "test_batch.bin", "batches.meta.txt", 10, 1),
    "cifar100": Layout("cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", 100, 2),
}


def open_cifar(data: DataSection, image_size: int, parts: Sequence[str] = PARTS) -> Source:
    """Reads CIFAR-10 or CIFAR-100 into memory. Raises DataError for a file that is missing, cut short or damaged."""
    layout = LAYOUTS[data.dataset]
    given = required_folder(data.path, f"the folder {layout.folder} or the one it lies in")
    folder = given / layout.folder if (given / layout.folder).is_dir() else given
    train_files = layout.train if "train" in parts else ()
    missing = [name for name in (*train_files, layout.val, layout.names) if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder} lacks {', '.join(missing)}; it must hold the files of the *binary* version ({layout.folder})"
        )
    lines = (folder / layout.names).read_text(encoding="utf-8", errors="replace").splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != layout.num_classes:
        raise DataError(f"{folder / layout.names} lists {len(names)} class names; {layout.num_classes} are needed")
    records = [_read_records(folder / name, layout) for name in train_files]
    train = ArrayImages(*(np.concatenate(arrays) for arrays in zip(*records, strict=True))) if records else None
    val = ArrayImages(*_read_records(folder / layout.val, layout))
    preprocessing = configured(DEFAULTS, data, image_size, image_size)
    return Source(train, val, names, preprocessing, [f"binary files of {folder}"])


def _read_records(file: Path, layout: Layout) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    content = np.fromfile(file, np.uint8)
    record = layout.label_bytes + 3 * SIDE * SIDE
    if content.size == 0 or content.size % record:
        raise DataError(
            f"{file} has {content.size} bytes, which is not a whole number of records of {record} bytes; it is cut"
            f" short or not a file of {layout.folder}"
        )
    records = content.reshape(-1, record)
    labels = checked_labels(file, records[:, layout.label_bytes - 1], layout.num_classes)
    images = records[:, layout.label_bytes :].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)  # (n, 32, 32, 3)
    return np.ascontiguousarray(images), labels
