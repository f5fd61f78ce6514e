"""scripts/make_mindrecord.py: MindRecord files of an image folder."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dvt.cli.support import Parser, run_command
from dvt.config.sections import DataSection
from dvt.data.sources.image_folder import PARTS
from dvt.data.sources.record_writer import DEFAULT_SHARDS, write_records
from dvt.value_checks import PATH


@dataclass
class RecordOptions:
    """Make MindRecord files of an image folder, to be given as data.path in its place.

    Args:
        data_path: Folder that holds train/CLASS/* and val/CLASS/*.
        output: Folder for the record files; made if need be.
        shards: Files per part.
        part: Parts to write, with commas in between.
        on_bad_image: What an image that cannot be read does: fail ends the work; skip names it and leaves it out.
        max_bad_images: With skip, the most bad images of a part: below 1 a share, from 1 up a number.
    """

    data_path: Path = field(metadata=PATH)
    output: Path = field(metadata=PATH)
    shards: int = DEFAULT_SHARDS
    part: str = ",".join(PARTS)
    on_bad_image: Literal["fail", "skip"] = DataSection.on_bad_image
    max_bad_images: float = DataSection.max_bad_images


def main(argv: Sequence[str], prog: str = "make_mindrecord.py") -> int:
    """The command; returns its exit code."""

    def run(words: list[str]) -> None:
        options, _ = Parser(prog, RecordOptions, log_level="info").parse(words)
        data = DataSection(on_bad_image=options.on_bad_image, max_bad_images=options.max_bad_images)
        parts = options.part.split(",")
        for part, count in write_records(options.data_path, options.output, options.shards, parts, data).items():
            print(f"{part}: {count:,} images in {options.output}")

    return run_command(run, argv)
