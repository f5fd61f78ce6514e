"""scripts/make_mindrecord.py: MindRecord files of an image folder."""

from collections.abc import Sequence
from pathlib import Path

from dvt.cli.support import Parser, run_command, set_up_logging
from dvt.config.sections import DataSection
from dvt.data.sources.image_folder import PARTS
from dvt.data.sources.record_writer import DEFAULT_SHARDS, write_records


def main(argv: Sequence[str], prog: str = "make_mindrecord.py") -> int:
    """The command; returns its exit code."""
    return run_command(lambda words: _run(words, prog), argv)


def _run(argv: Sequence[str], prog: str) -> None:
    parser = Parser(prog, "Make MindRecord files of an image folder, to be given as data.path in its place.")
    parser.add_argument("data_path", help="folder that holds train/CLASS/* and val/CLASS/*")
    parser.add_argument("output", help="folder for the record files; made if need be")
    parser.add_argument("--shards", type=int, default=DEFAULT_SHARDS, help="files per part")
    parser.add_argument("--part", default=",".join(PARTS), help="parts to write, separated by commas")
    parser.add_argument(
        "--on_bad_image",
        choices=("fail", "skip"),
        default=DataSection.on_bad_image,
        help="what an image that cannot be read does: ends the work, or is named and left out",
    )
    parser.add_argument(
        "--max_bad_images",
        type=float,
        default=DataSection.max_bad_images,
        help="with skip, the most bad images of a part: below 1 a share, from 1 up a number",
    )
    given = parser.parse(argv)
    set_up_logging()
    data = DataSection(on_bad_image=given["on_bad_image"], max_bad_images=given["max_bad_images"])
    source, output = Path(given["data_path"]), Path(given["output"])
    counts = write_records(source, output, given["shards"], given["part"].split(","), data)
    for part, count in counts.items():
        print(f"{part}: {count:,} images in {output}")
