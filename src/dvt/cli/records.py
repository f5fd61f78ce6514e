"""scripts/make_mindrecord.py: MindRecord files of an image folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dvt.cli.support import Parser, run_command, set_up_logging
from dvt.config.sections import DataSection
from dvt.data.sources.image_folder import PARTS
from dvt.data.sources.record_writer import DEFAULT_SHARDS, write_records


@dataclass
class RecordOptions:
    """How to write them.

    Args:
        shards: Files per part.
        part: Parts to write, with commas in between.
        on_bad_image: What an image that cannot be read does: fail ends the work; skip names it and leaves it out.
        max_bad_images: With skip, the most bad images of a part: below 1 a share, from 1 up a number.
    """

    shards: int = DEFAULT_SHARDS
    part: str = ",".join(PARTS)
    on_bad_image: Literal["fail", "skip"] = DataSection.on_bad_image
    max_bad_images: float = DataSection.max_bad_images


def main(argv: Sequence[str], prog: str = "make_mindrecord.py") -> int:
    """The command; returns its exit code."""
    return run_command(lambda words: _run(words, prog), argv)


def _run(argv: Sequence[str], prog: str) -> None:
    parser = Parser(
        prog,
        "Make MindRecord files of an image folder, to be given as data.path in its place.",
        usage=f"{prog} data_path output [--KEY VALUE ...]",
    )
    parser.add_path("data_path", "folder that holds train/CLASS/* and val/CLASS/*")
    parser.add_path("output", "folder for the record files; made if need be")
    parser.add_keys(RecordOptions)
    given = parser.parse(argv)
    set_up_logging()
    options, output = parser.options(RecordOptions, given), Path(given["output"])
    data = DataSection(on_bad_image=options.on_bad_image, max_bad_images=options.max_bad_images)
    counts = write_records(Path(given["data_path"]), output, options.shards, options.part.split(","), data)
    for part, count in counts.items():
        print(f"{part}: {count:,} images in {output}")
