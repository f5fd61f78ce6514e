"""Sort ImageNet's validation images, all in one folder as they are downloaded, into folders of their classes.

Files are moved within FOLDER, to FOLDER/WNID/NAME, after all of them have a class; none is copied, replaced or removed,
so that a run that was interrupted is completed by calling the script again.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

NAME = re.compile(r"ILSVRC2012_val_(\d{8})\b")
WNID = re.compile(r"\bn\d{8}\b")
TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder that holds ILSVRC2012_val_00000001.JPEG and so on")
    parser.add_argument(
        "labels",
        type=Path,
        help="the development kit, ILSVRC2012_devkit_t12 (needs SciPy); or a text file with a line `name wnid` for each"
        " image, such as LOC_val_solution.csv, or with the wnids alone, in the order of the images",
    )
    parser.add_argument("--dry_run", action="store_true", help="say what would be moved, and move nothing")
    asked = parser.parse_args()
    if not asked.folder.is_dir():
        parser.error(f"{asked.folder} is not a folder; give the one with the images")
    try:
        wnids = dict(read_labels(asked.labels))
    except (OSError, ValueError, KeyError, ImportError) as error:
        parser.error(f"{asked.labels} does not say the classes: {error}; see --help")
    moves = {}
    for file in sorted(asked.folder.iterdir()):
        if found := NAME.match(file.name):
            moves[file] = asked.folder / wnids.get(int(found[1]), "?") / file.name
    if unknown := [file.name for file, target in moves.items() if target.parent.name == "?"]:
        parser.error(
            f"{asked.labels} has no class for {len(unknown):,} images, such as {unknown[0]}; nothing was moved"
        )
    if taken := [target for target in moves.values() if target.exists()]:
        parser.error(f"{taken[0]} is there already, and so is the image outside of it; compare them; none was moved")
    for file, target in moves.items():
        if not asked.dry_run:
            target.parent.mkdir(exist_ok=True)
            file.rename(target)
    done = sum(1 for _ in asked.folder.glob("n*/ILSVRC2012_val_*"))
    print(
        f"{'would move' if asked.dry_run else 'moved'} {len(moves):,} images; {done:,} are in folders of their classes"
    )


def read_labels(path: Path) -> Iterator[tuple[int, str]]:
    """Number and wnid of each image. Raises ValueError for a line that has none."""
    if path.is_dir():
        path = path / "data" / TRUTH
    lines, by_id = path.read_text(encoding="utf-8").splitlines(), {}
    if path.name == TRUTH:
        from scipy.io import loadmat

        synsets = loadmat(path.with_name("meta.mat"), squeeze_me=True)["synsets"]
        by_id = dict(zip(map(str, synsets["ILSVRC2012_ID"]), synsets["WNID"], strict=True))
    for number, line in enumerate(lines, start=1):
        if found := WNID.search(by_id.get(line.strip(), line)):
            name = NAME.search(line)
            yield int(name[1]) if name else number, found[0]
        elif line.strip() and not line.startswith("ImageId"):
            raise ValueError(f"line {number} is {line!r}")


if __name__ == "__main__":
    sys.exit(main())
