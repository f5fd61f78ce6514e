"""Photographs in the ImageFolder layout: `train/CLASS/*` and `val/CLASS/*`; or the MindRecord files made of them.

A class is a folder; labels follow the sorted class names. What an image is says `dvt.data.image_files`; pixels become
RGB. Hidden files and folders are left out, and so are files beside the class folders unless they are images. All else
that is no image is an error, as other faults of the layout are, whatever `data.on_bad_image` says.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dvt.config.sections import IMAGENET_MEAN, IMAGENET_STD, DataSection
from dvt.data.image_files import DANGLING, ENDINGS, HIDDEN, Listing, images_below, look_into
from dvt.data.images import PhotoImages
from dvt.data.preprocess import default_resize_size
from dvt.data.sources.records import RecordSet, holds_records
from dvt.data.sources.source import PARTS, Defaults, Source, required_folder
from dvt.errors import DataError, listing

ROOT = "the folder that holds train/CLASS/ and val/CLASS/"
LAYOUT = "images belong in train/CLASS/ and val/CLASS/ below data.path"
DEFAULTS = Defaults(IMAGENET_MEAN, IMAGENET_STD, "bicubic")


@dataclass(frozen=True)
class ClassFolders:
    """The images of one part, class by class and by name."""

    class_names: list[str]  # sorted
    found: Listing
    labels: list[int]  # of `found.images`


def open_image_folder(data: DataSection, image_size: int, parts: Sequence[str] = PARTS) -> Source:
    """Lists the images of `parts`, which are both or val alone; no image is opened yet.

    Raises:
        DataError: A missing folder, fewer than two classes, a class without images, a file that is no image, or other
            classes in val than in train; the message names the folder, class or file. Or a missing or damaged record
            file.
    """
    root = required_folder(data.path, ROOT)
    if holds_records(root):
        records = {part: RecordSet.open(root, part) for part in parts}
        class_names = records[parts[0]].class_names
        check_same_classes(class_names, records["val"].class_names, root)
        images = {part: PhotoImages(found, found.labels) for part, found in records.items()}
        unread = " and ".join(f"{part}/" for part in PARTS if (root / part).is_dir())
        notes = [f"images of the record files in {root}" + (f"; {unread} beside them: not read" if unread else "")]
    else:
        folders = open_parts(root, parts)
        class_names = folders[parts[0]].class_names
        images = {name: PhotoImages(part.found.images, part.labels) for name, part in folders.items()}
        notes = [f"images of {root}"]
        for name, part in folders.items():
            notes += part.found.notes(root / name)
    preprocessing = DEFAULTS.preprocessing(data, image_size, data.resize_size or default_resize_size(image_size))
    notes += _alike_notes(class_names)
    return Source(images.get("train"), images["val"], tuple(class_names), preprocessing, notes)


def open_parts(root: Path, parts: Sequence[str] = PARTS) -> dict[str, ClassFolders]:
    """Lists train/ and val/ below `root`, or val/ alone.

    Raises:
        DataError: A part or its classes are missing, there is only one class, the parts have different ones, or what
            `class_folders` refuses.
    """
    for part in parts:
        if not (root / part).is_dir():
            found = ", ".join(sorted(entry.name for entry in root.iterdir())[:5]) or "nothing"
            raise DataError(f"{root} has no folder {part}/ (it holds: {found}); {LAYOUT}")
    names = [_class_names(look_into(root / part), root / part) for part in parts]
    check_same_classes(names[0], names[-1], root)
    return {part: class_folders(root / part) for part in parts}


def class_folders(folder: Path) -> ClassFolders:
    """The images in the class folders of `folder`.

    Raises:
        DataError: There are no class folders, an image lies beside them, a class is without images, or something in a
            class folder is no image file.
    """
    found = look_into(folder)
    names, labels, empty = _class_names(found, folder), [], []
    for label, name in enumerate(names):
        here = look_into(folder / name)
        for reason, paths in {"a folder": here.folders, **here.left_out}.items():
            if paths and reason != HIDDEN:
                if reason == DANGLING:
                    reason = f"a link to {os.readlink(paths[0])}, which does not exist"
                raise DataError(
                    f"{paths[0]} is {reason}; a class folder must hold image files only ({', '.join(ENDINGS)}): move or"
                    " remove it"
                )
        if not here.images:
            empty.append(name)
        _check_encodable(here.images)
        found.take(here)
        labels += [label] * len(here.images)
    if empty:
        raise DataError(f"no images in {len(empty)} class folder(s) of {folder}: {listing(empty, shown=5)}")
    return ClassFolders(names, found, labels)


def _class_names(found: Listing, folder: Path) -> list[str]:
    """Names of the class folders in `folder`, sorted."""
    if found.images:
        raise DataError(f"image {found.images[0]} lies outside of a class folder; images belong in {folder}/CLASS/")
    if not found.folders:
        raise DataError(f"{folder} has no class folders; {LAYOUT}")
    _check_encodable(found.folders)
    return [Path(each).name for each in found.folders]


def images_to_classify(
    path: str | Path, class_names: Sequence[str] | None
) -> tuple[list[str], list[int] | None, list[str]]:
    """The images at `path`, which is an image, a folder of images, or one of class folders (also below `val/`).

    Args:
        path: File or folder.
        class_names: Those of the model, if it knows them.

    Returns:
        The files; the index of the class of each, or None where folders do not say; and notes on what is left out.

    Raises:
        DataError: There are no images, some lie beside class folders, or in folders that are no classes of the model.
    """
    path = Path(path)
    if path.is_file():
        return [str(path)], None, []
    if not path.is_dir():
        raise DataError(f"{path} is neither a file nor a folder")
    root = path / "val" if (path / "val").is_dir() else path
    found = images_below(root)
    if look_into(root).images == found.images:
        return found.images, None, found.notes(root)
    classes = class_folders(root)
    files, notes = classes.found.images, classes.found.notes(root)
    if class_names is None:
        return files, None, notes
    unknown = [name for name in classes.class_names if name not in class_names]
    if unknown:
        raise DataError(
            f"the folders of {root} must be classes of the bundle; these are not: {listing(unknown, shown=5)}. For"
            " images without known classes, put them into one folder"
        )
    return files, [list(class_names).index(classes.class_names[label]) for label in classes.labels], notes


def check_same_classes(train: list[str], val: list[str], root: Path) -> None:
    """Raises DataError unless both parts have the same classes, and more than one."""
    only_train, only_val = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if only_train or only_val:
        only = {"val": only_val, "train": only_train}
        differ = "; ".join(f"only in {part}: {listing(names, shown=5)}" for part, names in only.items() if names)
        same = {_folded(name) for name in only_train} & {_folded(name) for name in only_val}
        hint = "; some differ by case or by the Unicode form of accents alone: rename those" if same else ""
        raise DataError(f"the classes of {root}/train and {root}/val differ ({differ}); they must be the same{hint}")
    if len(train) < 2:
        raise DataError(f"{root}/train has one class only ({train[0]}); a classifier needs at least two")


def _check_encodable(paths: list[str]) -> None:
    """Raises DataError for a name that cannot be written to logs and checkpoints."""
    for path in paths:
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
