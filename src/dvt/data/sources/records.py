"""MindRecord files that `scripts/make_mindrecord.py` makes of an image folder: encoded images, read at random.

A part ("train" or "val") is some files PART.mindrecordK, each with its index PART.mindrecordK.db, and last of all
PART.records.json: class names, number of images, and the size of every file. Without it the part counts as missing.
The layout is that of MindRecord 3.0: a file begins with the length of its header (8 bytes, little-endian) and the
header, JSON with `header_size` and `page_size` among others; the index, an SQLite table, gives for each image the page
and the offsets in it, at which 8 bytes of length precede the image. Reading needs no MindSpore.
"""

import heapq
import io
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dvt.data.decode import read_image
from dvt.errors import DataError, reason_of

FORMAT = 1  # of PART.records.json and of the fields below
SCHEMA = {
    "index": {"type": "int32"},  # in the order of the image folder
    "label": {"type": "int32"},
    "file_name": {"type": "string"},  # CLASS/NAME
    "image": {"type": "bytes"},  # the file as it is
}
LENGTH_BYTES = 8
REMEDY = "make the records again with scripts/make_mindrecord.py"


def metadata_file(folder: Path, part: str) -> Path:
    return folder / f"{part}.records.json"


def holds_records(folder: Path) -> bool:
    """Of any part, whole or not."""
    return any(folder.glob("*.mindrecord*"))


class RecordImage(NamedTuple):
    """One image in a record file; picklable."""

    file: str
    offset: int  # of its first byte
    length: int  # in bytes
    index: int  # its number in the part

    def read(self) -> bytes:
        """The encoded image. Raises DataError if the file is missing, cut short or damaged."""
        with _readable(f"record file {self.file}"), open(self.file, "rb", buffering=0) as file:
            # Without a file position of its own, so that nothing is read ahead.
            content = os.pread(file.fileno(), LENGTH_BYTES + self.length, self.offset - LENGTH_BYTES)
        if len(content) < LENGTH_BYTES + self.length:
            raise DataError(f"record file {self.file} is cut short in image {self.name}; {REMEDY}")
        if int.from_bytes(content[:LENGTH_BYTES], "little") != self.length:
            raise DataError(f"record file {self.file} does not fit its index at image {self.name}; {REMEDY}")
        return content[LENGTH_BYTES:]

    def image(self) -> Image.Image:
        """The decoded image in RGB. Raises DataError as `read` and `read_image` do."""
        return read_image(io.BytesIO(self.read()), name=lambda: f"{self.name} in {self.file}")

    @property
    def name(self) -> str:
        """CLASS/NAME of the file it was made of; looked up for messages, so that millions of names need no memory."""
        found = _query(self.file, "SELECT file_name_0 FROM INDEXES WHERE index_0 = ?", self.index)
        return next((name for (name,) in found), f"number {self.index}")


@dataclass(frozen=True, eq=False)
class RecordSet(Sequence):
    """The images of one part, in the order of the image folder."""

    class_names: list[str]  # in the order of the labels
    files: list[str]
    shards: NDArray[np.int16]  # (N,) in which of the files each image lies
    offsets: NDArray[np.int64]  # (N,) its first byte there
    lengths: NDArray[np.int64]  # (N,) in bytes
    labels: NDArray[np.int32]  # (N,)

    @classmethod
    def open(cls, folder: Path, part: str) -> "RecordSet":
        """Reads the index of a part. Raises DataError for a file that is missing, cut short, or not of this part."""
        metadata = _metadata(folder, part)
        for name, size in metadata["files"].items():
            file = folder / name
            if not file.is_file():
                raise DataError(f"record file {file} is missing; {REMEDY}")
            if (found := file.stat().st_size) != size:
                raise DataError(f"record file {file} has {found:,} bytes, but {size:,} were written; {REMEDY}")
        files = [str(folder / name) for name in metadata["files"] if not name.endswith(".db")]
        tables = [_table(file) for file in files]
        shards = np.repeat(np.arange(len(files), dtype=np.int16), [len(table) for table in tables])
        index, labels, offsets, lengths = np.concatenate(tables).T
        order, here = np.argsort(index), f"the record files of {folder}/{part}.mindrecord* hold"
        if not np.array_equal(index[order], np.arange(metadata["images"])):
            described = f"the {metadata['images']} of {metadata_file(folder, part)}"
            raise DataError(f"{here} {len(index)} images, which are not {described}; {REMEDY}")
        labels = labels[order].astype(np.int32)
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(metadata["class_names"]):
            raise DataError(f"{here} labels of no class; {REMEDY}")
        return cls(metadata["class_names"], files, shards[order], offsets[order], lengths[order], labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> RecordImage:
        file = self.files[self.shards[index]]
        return RecordImage(file, int(self.offsets[index]), int(self.lengths[index]), index)

    def names(self) -> Iterator[str]:
        """CLASS/NAME of the file that each image was made of, in their order."""
        rows = (_query(file, "SELECT index_0, file_name_0 FROM INDEXES ORDER BY index_0") for file in self.files)
        return (name for _, name in heapq.merge(*rows))


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """What goes wrong in the block becomes a DataError: `what` cannot be read."""
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, OverflowError, sqlite3.Error) as error:
        raise DataError(f"{what} cannot be read: {reason_of(error)}; {REMEDY}") from error


def _metadata(folder: Path, part: str) -> dict[str, Any]:
    file = metadata_file(folder, part)
    if not file.exists():
        raise DataError(f"{folder} holds no complete records of {part}: {file.name} is missing; {REMEDY}")
    with _readable(str(file)):
        metadata = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(metadata, dict) or not {"format", "class_names", "images", "files"} <= metadata.keys():
        raise DataError(f"{file} does not describe records; {REMEDY}")
    if metadata["format"] != FORMAT:
        raise DataError(f"{file} has format {metadata['format']}; this version reads format {FORMAT}; {REMEDY}")
    return metadata


def _table(file: str) -> NDArray[np.int64]:
    """(N, 4): index, label, offset and length of each image of a record file."""
    with _readable(f"the MindRecord header of {file}"), open(file, "rb") as content:
        size = os.path.getsize(file)
        header = json.loads(content.read(min(int.from_bytes(content.read(LENGTH_BYTES), "little"), size)))
        start, page_size = int(header["header_size"]), int(header["page_size"])
    rows = _query(file, "SELECT index_0, label_0, PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END FROM INDEXES")
    with _readable(f"the index {file}.db"):
        # Number by number: a list of millions of rows would take a hundred times the memory.
        table = np.fromiter((number for row in rows for number in row), np.int64).reshape(-1, 5)
    index, label, page, first, last = table.T
    offset, length = start + page * page_size + first + LENGTH_BYTES, last - first - LENGTH_BYTES
    if len(table) and (offset.min() < 0 or length.min() < 0 or (offset + length).max() > size):
        raise DataError(f"the index {file}.db does not fit {file}; {REMEDY}")
    return np.stack([index, label, offset, length], axis=1)


def _query(file: str, statement: str, *values: int) -> Iterator[tuple]:
    """The rows that the index of a record file answers."""
    # Never written to: no lock is taken, which network file systems may not offer.
    address = f"file:{quote(os.path.abspath(f'{file}.db'))}?mode=ro&immutable=1"
    with _readable(f"the index {file}.db"), closing(sqlite3.connect(address, uri=True)) as opened:
        yield from opened.execute(statement, values)
