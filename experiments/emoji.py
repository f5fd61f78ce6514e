"""Emoji as a data set: 1,906 coloured drawings of 64 x 64 pixels in 9 categories, as an image folder.

The drawings and their categories are those of the npm package `emoji-datasource-google` (Noto Color Emoji, Apache-2.0),
one per emoji: variants of skin colour, near copies of it, are left out, and so is the category of skin colours
themselves. Emoji that begin with the same code point (a person running, a man running, a woman running; flags of one
first letter) go to the same side of the split, or the test set would hold near copies of training images. They are
drawn on white.
"""

import hashlib
import io
import json
import logging
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from dvt.errors import DataError

PACKAGE, VERSION = "emoji-datasource-google", "16.0.0"
SHA256 = "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
"""Of the package's archive."""
LEFT_OUT = "Component"
VAL_SHARE = 0.3
FOLDERS = {
    "Activities": "activities",
    "Animals & Nature": "animals_nature",
    "Flags": "flags",
    "Food & Drink": "food_drink",
    "Objects": "objects",
    "People & Body": "people_body",
    "Smileys & Emotion": "smileys_emotion",
    "Symbols": "symbols",
    "Travel & Places": "travel_places",
}

log = logging.getLogger("dvt.experiments")


def prepare(folder: Path, archive: Path | None = None) -> None:
    """Makes the image folder `folder` with `train/` and `val/`, unless it is there.

    Args:
        folder: Where to.
        archive: The package's archive; None has npm fetch it.

    Raises:
        DataError: There is no npm, it failed, or the archive is another one.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        content = _checked(archive or _fetched(Path(scratch)))
        made = Path(scratch) / "images"
        count = _unpack(content, made)
        os.replace(made, folder)
    log.info("%s: %d drawings in %s", PACKAGE, count, folder)


def split(emoji: Mapping[str, str]) -> dict[str, str]:
    """Which side each emoji is on: code points ("1F3C3-200D-2640-FE0F") with their categories -> "train" or "val".

    Per category, those that share their first code point stay together; such groups go to val, in an order that looks
    random, while they fit into a share of `VAL_SHARE`.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for points, category in emoji.items():
        groups.setdefault((category, points.split("-")[0]), []).append(points)
    room: dict[str, float] = {}
    for category in emoji.values():
        room[category] = room.get(category, 0.0) + VAL_SHARE
    sides = {}
    for category, first in sorted(groups, key=lambda key: hashlib.sha256(key[1].encode()).hexdigest()):
        members = groups[category, first]
        side = "val" if len(members) <= room[category] else "train"
        room[category] -= len(members) if side == "val" else 0
        sides |= dict.fromkeys(members, side)
    return sides


def _fetched(scratch: Path) -> Path:
    remedy = (
        f"Run `npm pack {PACKAGE}@{VERSION}` where that works and give the archive with --emoji FILE, or name the "
        "experiments that do without"
    )
    if shutil.which("npm") is None:
        raise DataError(f"the emoji come from an npm package, and there is no npm here. {remedy}")
    log.info("fetching %s %s with npm (74 MB)", PACKAGE, VERSION)
    command = ["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}"]
    try:
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired:
        raise DataError(f"npm did not fetch {PACKAGE} within 10 minutes. {remedy}") from None
    found = list(scratch.glob("*.tgz"))
    if done.returncode or not found:
        raise DataError(
            f"npm cannot fetch {PACKAGE}: {(done.stderr.strip() or 'no archive').splitlines()[-1]}. {remedy}"
        )
    return found[0]


def _checked(archive: Path) -> bytes:
    try:
        content = archive.read_bytes()
    except OSError as error:
        raise DataError(f"{archive} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise DataError(f"{archive} is not the archive of {PACKAGE} {VERSION} (wrong SHA-256); fetch it again")
    return content


def _unpack(content: bytes, folder: Path) -> int:
    """Writes the images below `folder`; how many."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        entries = json.load(archive.extractfile("package/emoji.json"))
        chosen = {entry["unified"]: entry for entry in entries if entry["category"] != LEFT_OUT}
        sides = split({points: entry["category"] for points, entry in chosen.items()})
        for side in ("train", "val"):
            for name in FOLDERS.values():
                (folder / side / name).mkdir(parents=True)
        for points, entry in chosen.items():
            drawing = Image.open(archive.extractfile(f"package/img/google/64/{entry['image']}")).convert("RGBA")
            paper = Image.new("RGBA", drawing.size, "white")
            paper.alpha_composite(drawing)
            paper.convert("RGB").save(folder / sides[points] / FOLDERS[entry["category"]] / f"{points.lower()}.png")
    return len(chosen)
