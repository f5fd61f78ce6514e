"""Makes MindRecord files of an image folder (scripts/make_mindrecord.py); `records` reads them.

Files are written into a hidden folder, read back and compared, and only then moved to their place; the description that
makes them count comes last, so that work that is cut off leaves nothing that looks complete. Images that cannot be read
are an error or, with `on_bad_image` skip, left out as `dvt.data.bad_images` allows.
"""

import io
import json
import logging
import os
import shutil
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from dvt.config.sections import DataSection
from dvt.data.bad_images import BadImagePolicy
from dvt.data.decode import read_image
from dvt.data.images import class_and_name
from dvt.data.progress import progress
from dvt.data.sources.image_folder import ROOT, ClassFolders, open_parts
from dvt.data.sources.records import FORMAT, INDEXED, SCHEMA, RecordSet, holds_records, metadata_file, record_file_name
from dvt.data.sources.source import PARTS, required_folder
from dvt.data.workers import available_cores
from dvt.errors import ConfigError, DataError, work_begun

IMAGES_AT_ONCE = 128
MAX_SHARDS = 1000
"""Most files that MindRecord divides a data set into."""
MAX_IMAGE_BYTES = 30 * 2**20
"""An image must fit a page of MindRecord, 32 MiB."""
DEFAULT_SHARDS = 8

log = logging.getLogger(__name__)


def write_records(
    data_path: str | Path,
    output: str | Path,
    shards: int = DEFAULT_SHARDS,
    parts: Sequence[str] = PARTS,
    data: DataSection | None = None,
) -> dict[str, int]:
    """Writes the record files of some parts, and checks them by reading all of them back.

    Args:
        data_path: Folder in the layout of `dvt.data.sources.image_folder`.
        output: Folder for the files; made if need be.
        shards: Files per part; fewer if there are fewer images.
        parts: "train", "val" or both.
        data: Of it, `on_bad_image` and `max_bad_images` say what becomes of images that cannot be read or stored; None:
            they are an error.

    Returns:
        Part -> number of images written.

    Raises:
        DataError: The image folder is faulty, images are bad or too many of them are, a class has no others, records
            are there already, or writing failed.
        ConfigError: Another number of shards or another part.
    """
    if not 1 <= shards <= MAX_SHARDS:
        raise ConfigError(f"the number of shards is {shards}; it must lie between 1 and {MAX_SHARDS}")
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise ConfigError(f"there is no part {', '.join(unknown)!r}; there are {', '.join(PARTS)}")
    root, output = required_folder(data_path, ROOT), Path(output).expanduser()
    try:
        if holds_records(root):
            raise DataError(f"{root} holds records already; give a folder of images")
        for name in PARTS:
            if (output / name).exists():
                raise DataError(
                    f"{output} holds the folder {name}/, which is not read where records lie beside it; give another"
                    " folder for the records"
                )
        for name in parts:
            if metadata_file(output, name).exists():
                raise DataError(f"{output} holds the records of {name} already; remove them or choose another folder")
        photos = open_parts(root)
        for name in parts:
            for note in photos[name].found.notes(root / name):
                log.info("%s", note)
        output.mkdir(parents=True, exist_ok=True)
        policy = BadImagePolicy(data or DataSection(), {name: len(photos[name].labels) for name in parts})
        return {name: _write_part(name, photos[name], Target(output, shards, policy)) for name in parts}
    except OSError as error:
        raise DataError(f"{error.filename or output}: {error.strerror or error}") from error


@dataclass(frozen=True)
class Target:
    """Where records go, in how many files, and what becomes of bad images."""

    folder: Path
    shards: int
    policy: BadImagePolicy


@work_begun()
def _write_part(part: str, photos: ClassFolders, target: Target) -> int:
    """Writes a part and returns its number of images."""
    output, policy = target.folder, target.policy
    fewest = len(photos.labels) - (policy.limit(part) if policy.skips else 0)
    draft = output / f".{part}.unfinished"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        written = _write_files(part, photos, replace(target, folder=draft, shards=min(target.shards, fewest)))
        if empty := set(range(len(photos.class_names))) - {label for label, _ in written}:
            name = photos.class_names[min(empty)]
            raise DataError(f"no image of {part}/{name} can be read; replace them or remove the class")
        names = sorted(entry.name for entry in draft.iterdir())
        metadata = {
            "format": FORMAT,
            "class_names": photos.class_names,
            "images": len(written),
            "files": {name: (draft / name).stat().st_size for name in names},
        }
        metadata_file(draft, part).write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
        _verify(draft, part, written)
        for leftover in output.glob(f"{record_file_name(part)}*"):  # of a move that was cut off
            leftover.unlink()
        for name in (*names, metadata_file(draft, part).name):
            os.replace(draft / name, output / name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return len(written)


def _write_files(part: str, photos: ClassFolders, target: Target) -> list[tuple[int, int]]:
    """Writes the record files and returns class and checksum of each image in them, in the order of the folder."""
    from mindspore.mindrecord import FileWriter  # takes seconds to import, after the checks

    written: list[tuple[int, int]] = []
    files = target.folder / record_file_name(part)
    try:
        # MindRecord numbers the files only if there are several.
        writer = FileWriter(f"{files}0" if target.shards == 1 else str(files), shard_num=target.shards)
        writer.add_schema(SCHEMA, "photographs")
        writer.add_index(list(INDEXED))
        bar = progress(total=len(photos.labels), unit="img", desc=f"writing {files.name}")
        with bar, ThreadPoolExecutor(available_cores()) as threads:
            for start in range(0, len(photos.labels), IMAGES_AT_ONCE):
                rows = []
                chunk = photos.found.images[start : start + IMAGES_AT_ONCE]
                for place, (file, content) in enumerate(zip(chunk, threads.map(_encoded, chunk), strict=True), start):
                    if isinstance(content, DataError):
                        target.policy.note(part, place, str(content))
                        continue
                    label, name = photos.labels[place], class_and_name(file)
                    rows.append({"index": len(written), "label": label, "file_name": name, "image": content})
                    written.append((label, zlib.crc32(content)))
                if rows:
                    writer.write_raw_data(rows)
                bar.update(len(chunk))
        writer.commit()
    except RuntimeError as error:  # how MindSpore reports a full disk, among others
        raise DataError(f"MindSpore cannot write {files}: {str(error).strip().splitlines()[0]}") from error
    return written


def _encoded(file: str) -> bytes | DataError:
    """The bytes of an image file, or why training could not decode it or a record not hold it."""
    try:
        content = Path(file).read_bytes()
        read_image(io.BytesIO(content), name=lambda: file)
    except OSError as error:
        return DataError(f"image file {file} cannot be read: {error.strerror}; replace or remove it")
    except DataError as error:
        return error
    if len(content) > MAX_IMAGE_BYTES:
        return DataError(
            f"image file {file} has {len(content) / 2**20:.0f} MiB; a record holds at most"
            f" {MAX_IMAGE_BYTES // 2**20}: make it smaller or remove it"
        )
    return content


def _verify(folder: Path, part: str, written: list[tuple[int, int]]) -> None:
    """Raises DataError unless every image can be read back as it was."""
    records = RecordSet.open(folder, part)
    for index, expected in enumerate(progress(written, unit="img", desc=f"reading back {record_file_name(part)}")):
        record = records[index]
        if (records.labels[index], zlib.crc32(record.read())) != expected:
            raise DataError(f"{record.name} was not read back as it was written to {record.file}; check the disk")
