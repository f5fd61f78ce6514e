"""Makes MindRecord files of an image folder; `dvt.data.records` reads them. The command of scripts/make_mindrecord.py.

Files are written into a hidden folder, read back and compared, and only then moved to their place; the description that
makes them count comes last. Whatever ends the work before leaves nothing that looks whole.
"""

import io
import json
import os
import shutil
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from dvt.cli_support import PlainParser, run_command
from dvt.data.image_folder import PARTS, check_layout, check_same_classes, list_classes, list_images
from dvt.data.preprocess import read_image
from dvt.data.records import (
    FORMAT,
    INDEXED,
    SCHEMA,
    RecordSet,
    holds_records,
    metadata_file,
    record_file_name,
)
from dvt.data.workers import available_cores
from dvt.errors import ConfigError, DataError

IMAGES_AT_ONCE = 128
MAX_SHARDS = 1000
"""Most files that MindRecord divides a data set into."""
MAX_IMAGE_BYTES = 30 * 2**20
"""An image must fit a page of MindRecord, 32 MiB."""
DEFAULT_SHARDS = 8


def main(arguments: Sequence[str], prog: str | None = None) -> int:
    """The command: parses, writes, and returns the exit code."""
    return run_command(lambda words: _run(words, prog), arguments)


def _run(arguments: list[str], prog: str | None) -> None:
    parser = PlainParser(
        prog=prog, description="Make MindRecord files of an image folder, to be given as data.path in its place."
    )
    parser.add_argument("data_path", type=Path, help="folder that holds train/CLASS/* and val/CLASS/*")
    parser.add_argument("output", type=Path, help="folder for the record files; made if need be")
    parser.add_argument("--shards", type=int, default=DEFAULT_SHARDS, help="files per part (%(default)s)")
    parser.add_argument("--part", default=",".join(PARTS), help="parts to write, separated by commas (%(default)s)")
    options = parser.parse_args(arguments)
    counts = write_records(options.data_path, options.output, options.shards, options.part.split(","))
    for part, count in counts.items():
        print(f"{part}: {count:,} images in {options.output}")


def write_records(
    data_path: str | Path, output: str | Path, shards: int = DEFAULT_SHARDS, parts: Sequence[str] = PARTS
) -> dict[str, int]:
    """Writes the record files of some parts, and checks them by reading all of them back.

    Args:
        data_path: Folder in the layout of `dvt.data.image_folder`.
        output: Folder for the files; made if need be.
        shards: Files per part; fewer if there are fewer images.
        parts: "train", "val" or both.

    Returns:
        Part -> number of images.

    Raises:
        DataError: The image folder is faulty, a file is no image, records are there already, or writing failed.
        ConfigError: Another number of shards or another part.
    """
    root, output = Path(data_path).expanduser(), Path(output).expanduser()
    if not 1 <= shards <= MAX_SHARDS:
        raise ConfigError(f"the number of shards is {shards}; it must lie between 1 and {MAX_SHARDS}")
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise ConfigError(f"there is no part {', '.join(unknown)!r}; there are {', '.join(PARTS)}")
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give the one that holds train/CLASS/ and val/CLASS/")
    try:
        if holds_records(root):
            raise DataError(f"{root} holds records already; give a folder of images")
        check_layout(root, PARTS)
        class_names = list_classes(root / "train")
        check_same_classes(class_names, list_classes(root / "val"), root)
        photos = {part: list_images(root / part, class_names) for part in parts}
        for part in parts:
            if metadata_file(output, part).exists():
                raise DataError(f"{output} holds the records of {part} already; remove them or choose another folder")
        output.mkdir(parents=True, exist_ok=True)
        for part, (files, labels) in photos.items():
            _write_part(output, part, files, labels, class_names, min(shards, len(files)))
    except OSError as error:
        raise DataError(f"{error.filename or output}: {error.strerror or error}") from error
    return {part: len(files) for part, (files, _) in photos.items()}


def _write_part(
    output: Path, part: str, files: list[str], labels: list[int], class_names: list[str], shards: int
) -> None:
    draft = output / f".{part}.unfinished"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        checksums = _write_files(draft / record_file_name(part), files, labels, shards)
        names = sorted(entry.name for entry in draft.iterdir())
        metadata = {
            "format": FORMAT,
            "class_names": class_names,
            "images": len(files),
            "files": {name: (draft / name).stat().st_size for name in names},
        }
        metadata_file(draft, part).write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
        _verify(draft, part, labels, checksums)
        for leftover in output.glob(f"{record_file_name(part)}*"):  # of a move that was cut off
            leftover.unlink()
        for name in (*names, metadata_file(draft, part).name):
            os.replace(draft / name, output / name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_files(target: Path, files: list[str], labels: list[int], shards: int) -> list[int]:
    """Writes target0, target1, ... and returns the checksum of each image."""
    from mindspore.mindrecord import FileWriter  # seconds to import; what was wrong has been told by now

    checksums = []
    try:
        # MindRecord numbers the files only if there are several.
        writer = FileWriter(f"{target}0" if shards == 1 else str(target), shard_num=shards)
        writer.add_schema(SCHEMA, "photographs")
        writer.add_index(list(INDEXED))
        bar = tqdm(total=len(files), unit="img", desc=f"writing {target.name}")
        with bar, ThreadPoolExecutor(available_cores()) as threads:
            for start in range(0, len(files), IMAGES_AT_ONCE):
                rows = []
                chunk = files[start : start + IMAGES_AT_ONCE]
                for index, (file, content) in enumerate(zip(chunk, threads.map(_encoded, chunk), strict=True), start):
                    checksums.append(zlib.crc32(content))
                    name = "/".join(Path(file).parts[-2:])
                    rows.append({"index": index, "label": labels[index], "file_name": name, "image": content})
                writer.write_raw_data(rows)
                bar.update(len(rows))
        writer.commit()
    except RuntimeError as error:  # how MindSpore reports a full disk, among others
        raise DataError(f"MindSpore cannot write {target}: {str(error).strip().splitlines()[0]}") from error
    return checksums


def _encoded(file: str) -> bytes:
    """The bytes of an image file, which training must be able to decode."""
    content = Path(file).read_bytes()
    read_image(io.BytesIO(content), name=lambda: file)
    if len(content) > MAX_IMAGE_BYTES:
        raise DataError(
            f"image file {file} has {len(content) / 2**20:.0f} MiB; a record holds at most"
            f" {MAX_IMAGE_BYTES // 2**20}: make it smaller or remove it"
        )
    return content


def _verify(folder: Path, part: str, labels: list[int], checksums: list[int]) -> None:
    """Raises DataError unless every image can be read back as it was."""
    records = RecordSet.open(folder, part)
    for index in tqdm(range(len(labels)), unit="img", desc=f"reading back {record_file_name(part)}"):
        record = records[index]
        if records.labels[index] != labels[index] or zlib.crc32(record.read()) != checksums[index]:
            raise DataError(f"{record.name} was not read back as it was written to {record.file}; check the disk")
