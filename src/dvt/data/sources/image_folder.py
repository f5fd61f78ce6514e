"""Photographs in the ImageFolder layout: `train/CLASS/*` and `val/CLASS/*`; or the MindRecord files made of them.

A class is a folder; labels follow the sorted class names. JPEG, PNG, WebP and BMP files are read, whatever the case of
their extension, and turned into RGB. Everything else in a class folder is an error, except for files that file
managers leave behind: names with a leading dot (.DS_Store), Thumbs.db and desktop.ini are ignored. Files beside the
class folders are ignored too unless they are images. Faults of the layout are errors whatever `data.on_bad_image` says.
"""

import os
import unicodedata
from collections import Counter
from pathlib import Path

from dvt.config.sections import IMAGENET_MEAN, IMAGENET_STD, DataSection
from dvt.data.images import PhotoImages
from dvt.data.preprocess import default_resize_size
from dvt.data.sources.records import RecordSet, holds_records
from dvt.data.sources.source import Defaults, Source, required_folder
from dvt.errors import DataError, listing

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
IGNORED = ("thumbs.db", "desktop.ini")
PARTS = ("train", "val")
ROOT = "the folder that holds train/CLASS/ and val/CLASS/"
LAYOUT = "images belong in train/CLASS/ and val/CLASS/ below data.path"
DEFAULTS = Defaults(IMAGENET_MEAN, IMAGENET_STD, "bicubic")


def open_image_folder(data: DataSection, image_size: int) -> Source:
    """Lists the images of both parts; no image is opened yet.

    Raises:
        DataError: A missing folder, fewer than two classes, a class without images, a file that is no image, or other
            classes in val than in train; the message names the folder, class or file. Or a missing or damaged record
            file.
    """
    root = required_folder(data.path, ROOT)
    if holds_records(root):
        records = {part: RecordSet.open(root, part) for part in PARTS}
        class_names = records["train"].class_names
        check_same_classes(class_names, records["val"].class_names, root)
        parts = {part: PhotoImages(found, found.labels) for part, found in records.items()}
        note = f"images of the record files in {root}"
    else:
        class_names = classes_of_both_parts(root)
        parts = {part: PhotoImages(*list_images(root / part, class_names)) for part in PARTS}
        note = f"images of {root}"
    preprocessing = DEFAULTS.preprocessing(data, image_size, data.resize_size or default_resize_size(image_size))
    return Source(parts["train"], parts["val"], tuple(class_names), preprocessing, [note, *_alike_notes(class_names)])


def classes_of_both_parts(root: Path) -> list[str]:
    """Sorted names of the class folders below `root`.

    Raises:
        DataError: A part or its classes are missing, there is only one class, or the parts have different ones.
    """
    for part in PARTS:
        if not (root / part).is_dir():
            found = ", ".join(sorted(entry.name for entry in root.iterdir())[:5]) or "nothing"
            raise DataError(f"{root} has no folder {part}/ (it holds: {found}); {LAYOUT}")
    names = list_classes(root / "train")
    check_same_classes(names, list_classes(root / "val"), root)
    return names


def list_classes(folder: Path) -> list[str]:
    """Sorted names of the class folders in train/ or val/.

    Raises:
        DataError: There are none, or an image lies beside them.
    """
    names = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            if not entry.name.startswith("."):
                _check_encodable(entry.path)
                names.append(entry.name)
        elif _is_image_name(entry.name) and not _is_ignored(entry.name):
            raise DataError(f"image {entry.path} lies outside of a class folder; {LAYOUT}")
    if not names:
        raise DataError(f"{folder} has no class folders; {LAYOUT}")
    return names


def check_same_classes(train: list[str], val: list[str], root: Path) -> None:
    """Raises DataError unless both parts have the same classes, and more than one."""
    only_train, only_val = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if only_train or only_val:
        differ = [
            f"only in {part}: {listing(only, shown=5)}"
            for part, only in (("val", only_val), ("train", only_train))
            if only
        ]
        same = {_folded(name) for name in only_train} & {_folded(name) for name in only_val}
        hint = "; some differ by case or by the Unicode form of accents alone: rename those" if same else ""
        raise DataError(
            f"the classes of {root}/train and {root}/val differ ({'; '.join(differ)}); they must be the same{hint}"
        )
    if len(train) < 2:
        raise DataError(f"{root}/train has one class only ({train[0]}); a classifier needs at least two")


def list_images(folder: Path, class_names: list[str]) -> tuple[list[str], list[int]]:
    """Image files below `folder`, class by class and by name, and their labels.

    Raises:
        DataError: A class without images, or something in a class folder that is no image file.
    """
    files: list[str] = []
    labels: list[int] = []
    empty = []
    for label, name in enumerate(class_names):
        entries = [entry for entry in os.scandir(folder / name) if not _is_ignored(entry.name)]
        for entry in entries:
            _check_image_file(entry)
        if not entries:
            empty.append(name)
        files += sorted(entry.path for entry in entries)
        labels += [label] * len(entries)
    if empty:
        raise DataError(f"no images in {len(empty)} class folder(s) of {folder}: {listing(empty, shown=5)}")
    return files, labels


def _check_image_file(entry: os.DirEntry) -> None:
    """Raises DataError for something in a class folder that is no image file, by its name."""
    if not entry.is_file():
        kind = "a folder" if entry.is_dir() else "not a file"
        if entry.is_symlink() and not os.path.exists(entry.path):
            kind = f"a link to {os.readlink(entry.path)}, which does not exist"
        raise DataError(f"{entry.path} is {kind}; a class folder must hold image files only")
    if not _is_image_name(entry.name):
        raise DataError(
            f"{entry.path} is not an image: a class folder must hold {', '.join(EXTENSIONS)} files only; remove it"
        )
    _check_encodable(entry.path)


def _is_image_name(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in IGNORED


def _check_encodable(path: str) -> None:
    """Raises DataError for a name that cannot be written to logs and checkpoints."""
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = path.encode(errors="backslashreplace").decode()
        raise DataError(f"the name of {shown} is not valid UTF-8; rename it") from None


def _folded(name: str) -> str:
    """The name without what some file systems ignore: case and the Unicode form of accents."""
    return unicodedata.normalize("NFC", name).casefold()


def _alike_notes(class_names: list[str]) -> list[str]:
    """A note on classes that are easily mistaken for each other, if there are any."""
    counts = Counter(map(_folded, class_names))
    alike = [name for name in class_names if counts[_folded(name)] > 1]
    if not alike:
        return []
    return [f"classes that differ by case or by the Unicode form of accents alone: {listing(alike, shown=5)}"]
