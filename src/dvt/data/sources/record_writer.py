"""Makes MindRecord files of an image folder (scripts/make_mindrecord.py); `records` reads them.

Files are written into a hidden folder, read back and compared, and only then moved to their place; the description that
makes them count comes last, so that work that is cut off leaves nothing that looks complete.
"""

import json
import logging
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dvt.config.sections import DataSection
from dvt.data.bad_images import BadImagePolicy
from dvt.data.decode import read_image
from dvt.data.images import PARTS, class_and_name, required_folder
from dvt.data.progress import progress
from dvt.data.sources.image_folder import ROOT, ClassFolders, open_parts
from dvt.data.sources.records import FORMAT, SCHEMA, RecordSet, holds_records, metadata_file
from dvt.data.workers import available_cores
from dvt.errors import ConfigError, DataError, reason_of, work_begun
from dvt.safe_files import put_in_place, scratch_folder

IMAGES_AT_ONCE = 128
MAX_SHARDS = 1000  # files that MindRecord divides a data set into
MAX_IMAGE_BYTES = 30 * 2**20  # an image must fit a page of MindRecord, 32 MiB
DEFAULT_SHARDS = 8

log = logging.getLogger(__name__)


def write_records(
    data_path: str | Path,
    output: str | Path,
    shards: int = DEFAULT_SHARDS,
    parts: Sequence[str] = PARTS,
    data: DataSection | None = None,
) -> dict[str, int]:
    """Writes the record files of some parts of the image folder `data_path` into `output`; reads them back as a check.

    `shards` are the files per part, fewer if there are fewer images; `on_bad_image` and `max_bad_images` of `data` say
    what becomes of images that cannot be read or stored. Returns part -> number of images written. Raises DataError if
    the image folder is faulty, too many images are bad, records are there already, or writing failed; ConfigError for
    unknown parts.
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
            if (output / name).exists() or output.resolve().is_relative_to((root / name).resolve()):
                where = f"holds the folder {name}/" if (output / name).exists() else f"lies among the images of {name}"
                raise DataError(f"{output} {where}: records must not lie beside images; give another folder for them")
            if name in parts and metadata_file(output, name).exists():
                raise DataError(f"{output} holds the records of {name} already; remove them or choose another folder")
        photos = open_parts(root)
        for name in parts:
            for note in photos[name].notes:
                log.info("%s", note)
        output.mkdir(parents=True, exist_ok=True)
        policy = BadImagePolicy(data or DataSection(), {name: len(photos[name].labels) for name in parts})
        return {name: _write_part(output / name, photos[name], shards, policy) for name in parts}
    except OSError as error:
        raise DataError(f"{error.filename or output}: {error.strerror or error}") from error


@work_begun()
def _write_part(target: Path, photos: ClassFolders, shards: int, policy: BadImagePolicy) -> int:
    output, part = target.parent, target.name
    with scratch_folder(output, part) as draft:
        written = _write_files(draft / f"{part}.mindrecord", photos, shards, policy)
        if empty := set(range(len(photos.class_names))) - {label for label, _ in written}:
            name = photos.class_names[min(empty)]
            raise DataError(f"no image of {part}/{name} can be read; replace them or remove the class")
        names = sorted(entry.name for entry in draft.glob(f"{part}.mindrecord*"))
        metadata = {
            "format": FORMAT,
            "class_names": photos.class_names,
            "images": len(written),
            "files": {name: (draft / name).stat().st_size for name in names},
        }
        metadata_file(draft, part).write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
        _verify(draft, part, written)
        for leftover in output.glob(f"{part}.mindrecord*"):  # of a move that was cut off
            leftover.unlink()
        for name in (*names, metadata_file(draft, part).name):
            put_in_place(draft / name, output / name)
    return len(written)


def _write_files(files: Path, photos: ClassFolders, shards: int, policy: BadImagePolicy) -> list[tuple[int, int]]:
    """Class and checksum of each image written, in the order of the folder."""
    from mindspore.mindrecord import FileWriter  # takes seconds to import, after the checks

    part, count, written = files.stem, len(photos.labels), []
    shards = min(shards, count - (policy.limit(part) if policy.skips else 0))  # no more than images
    try:
        # MindRecord numbers the files only if there are several.
        writer = FileWriter(f"{files}0" if shards == 1 else str(files), shard_num=shards)
        writer.add_schema(SCHEMA, "photographs")
        writer.add_index(["index", "label", "file_name"])
        bar = progress(total=count, unit="img", desc=f"writing {files.name}")
        with bar, ThreadPoolExecutor(available_cores()) as threads:
            for start in range(0, count, IMAGES_AT_ONCE):
                rows, chunk = [], photos.files[start : start + IMAGES_AT_ONCE]
                for place, (file, content) in enumerate(zip(chunk, threads.map(_encoded, chunk), strict=True), start):
                    if isinstance(content, DataError):
                        policy.note(part, place, str(content))
                        continue
                    label, name = photos.labels[place], class_and_name(file)
                    rows.append({"index": len(written), "label": label, "file_name": name, "image": content})
                    written.append((label, zlib.crc32(content)))
                if rows:
                    writer.write_raw_data(rows)
                bar.update(len(chunk))
        writer.commit()
    except RuntimeError as error:  # how MindSpore reports a full disk, among others
        raise DataError(f"MindSpore cannot write {files}: {reason_of(error)}") from error
    return written


def _encoded(file: str) -> bytes | DataError:
    """The bytes of an image file, or why it cannot be stored."""
    try:
        read_image(file)
    except DataError as error:
        return error
    content = Path(file).read_bytes()
    if len(content) > MAX_IMAGE_BYTES:
        return DataError(
            f"image file {file} has {len(content) / 2**20:.0f} MiB; a record holds at most"
            f" {MAX_IMAGE_BYTES // 2**20}: make it smaller or remove it"
        )
    return content


def _verify(folder: Path, part: str, written: list[tuple[int, int]]) -> None:
    """Raises DataError unless every image can be read back as it was."""
    records = RecordSet.open(folder, part)
    for index, expected in enumerate(progress(written, unit="img", desc=f"reading back {part}.mindrecord")):
        record = records[index]
        if (records.labels[index], zlib.crc32(record.read())) != expected:
            raise DataError(f"{record.name} was not read back as it was written to {record.file}; check the disk")
