"""Which files of a folder are images: by the ending of their names, in any case; links count as what they lead to."""

import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from dvt.errors import DataError, listing, reason_of

ENDINGS = (  # of the formats that `dvt.data.decode` reads
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
HIDDEN = "hidden"
NO_IMAGE = "not an image by the ending of its name"
NO_FILE = "not a file"
DANGLING = "a link to nothing"
AGAIN = "a link to a folder above it"
_BY_FILE_MANAGERS = ("thumbs.db", "desktop.ini")  # hidden where they are made


@dataclass
class Listing:
    """What a folder holds: paths, sorted by name."""

    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    left_out: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # reason -> paths

    def take(self, other: "Listing") -> None:
        self.images += other.images
        for reason, paths in other.left_out.items():
            self.left_out[reason] += paths

    def notes(self, folder: str | Path) -> list[str]:
        """A line for the log, if anything was left out."""
        shown = []
        for reason, paths in self.left_out.items():
            names = listing((os.path.relpath(path, folder) for path in paths), shown=2)
            shown.append(f"{len(paths):,} {reason} ({names})")
        return [f"left out in {folder}: {', '.join(shown)}"] if shown else []


def look_into(folder: str | Path) -> Listing:
    """What lies directly in a folder. Raises DataError if it cannot be read."""
    found = Listing()
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"cannot read {folder}: {reason_of(error)}") from error
    for entry in entries:
        if entry.name.startswith(".") or entry.name.lower() in _BY_FILE_MANAGERS:
            found.left_out[HIDDEN].append(entry.path)
        elif entry.is_dir():
            found.folders.append(entry.path)
        elif not entry.is_file():
            found.left_out[NO_FILE if os.path.exists(entry.path) else DANGLING].append(entry.path)
        elif entry.name.lower().endswith(ENDINGS):
            found.images.append(entry.path)
        else:
            found.left_out[NO_IMAGE].append(entry.path)
    return found


def images_below(folder: str | Path) -> Listing:
    """All images in a folder and below it, sorted by path. Raises DataError if there are none."""
    found, waiting = Listing(), [(str(folder), (os.path.realpath(folder),))]
    while waiting:
        here, above = waiting.pop()
        listed = look_into(here)
        for child in listed.folders:
            real = os.path.realpath(child)
            if real in above:
                listed.left_out[AGAIN].append(child)
            else:
                waiting.append((child, (*above, real)))
        found.take(listed)
    if not found.images:
        also = "".join(f"; {note}" for note in found.notes(folder))
        raise DataError(f"the folder {folder} holds no images; files must end in {', '.join(ENDINGS)}{also}")
    found.images.sort()
    return found
