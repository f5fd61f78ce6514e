"""scripts/make_mindrecord.py: MindRecord files of an image folder."""

from collections.abc import Sequence
from pathlib import Path

from dvt.cli.support import PlainParser, run_command, set_up_logging
from dvt.config.sections import DataSection
from dvt.data.sources.image_folder import PARTS
from dvt.data.sources.record_writer import DEFAULT_SHARDS, write_records


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
    parser.add_argument(
        "--on_bad_image",
        choices=("fail", "skip"),
        default=DataSection.on_bad_image,
        help="what an image that cannot be read does: ends the work, or is named and left out (%(default)s)",
    )
    parser.add_argument(
        "--max_bad_images",
        type=float,
        default=DataSection.max_bad_images,
        help="with skip, the most bad images of a part: below 1 a share, from 1 up a number (%(default)s)",
    )
    options = parser.parse_args(arguments)
    set_up_logging()
    data = DataSection(on_bad_image=options.on_bad_image, max_bad_images=options.max_bad_images)
    counts = write_records(options.data_path, options.output, options.shards, options.part.split(","), data)
    for part, count in counts.items():
        print(f"{part}: {count:,} images in {options.output}")
