"""Photographs in the ImageFolder layout: `train/CLASS/*` and `val/CLASS/*`; or the MindRecord files made of them.

Labels follow the sorted class names. Hidden files are left out, and so are those beside the class folders unless they
are images. All else that is no image (`dvt.data.image_files`) is an error, whatever `data.on_bad_image` says.
"""

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dvt.config.sections import IMAGENET_MEAN, IMAGENET_STD, DataSection
from dvt.data.classes import CLASS_MAP, ModelClasses, imagenet_classes
from dvt.data.image_files import DANGLING, ENDINGS, HIDDEN, images_below, look_into
from dvt.data.images import PARTS, PhotoImages, Source, configured, required_folder
from dvt.data.preprocess import Preprocessing, default_resize_size
from dvt.data.sources.records import RecordSet, holds_records
from dvt.errors import DataError, listing

ROOT = "the folder that holds train/CLASS/ and val/CLASS/"
LAYOUT = "images belong in train/CLASS/ and val/CLASS/ below data.path"
DEFAULTS = Preprocessing("image_folder", 224, 256, 3, IMAGENET_MEAN, IMAGENET_STD, "bicubic")


@dataclass(frozen=True)
class ClassFolders:
    """The images of one part, class by class and by name."""

    class_names: list[str]  # sorted
    files: list[str]
    labels: list[int]
    notes: list[str]  # on what is left out


def open_image_folder(
    data: DataSection, image_size: int, parts: Sequence[str] = PARTS, classes: ModelClasses | None = None
) -> Source:
    """Lists the images; none is opened yet. Raises DataError as `open_parts` and `RecordSet.open`. With the `classes`
    of a model, labels are these, and there need not be images of all."""
    root, some_classes = required_folder(data.path, ROOT), classes is not None
    if holds_records(root):
        found = {part: RecordSet.open(root, part) for part in parts}
        if not some_classes:
            check_same_classes(found[parts[0]].class_names, found["val"].class_names, root)
        items = found
        unread = " and ".join(f"{part}/" for part in PARTS if (root / part).is_dir())
        notes = [f"images of the record files in {root}" + (f"; {unread} beside them: not read" if unread else "")]
    else:
        found = open_parts(root, parts, some_classes)
        items = {part: folders.files for part, folders in found.items()}
        notes = [f"images of {root}", *(note for folders in found.values() for note in folders.notes)]
    names, labels = found["val"].class_names, {part: each.labels for part, each in found.items()}
    if some_classes:
        for part, each in found.items():
            places, names = classes.matched(each.class_names, root / part)
            labels[part] = np.asarray(places)[labels[part]]
    images = {part: PhotoImages(items[part], labels[part]) for part in parts}
    preprocessing = configured(DEFAULTS, data, image_size, default_resize_size(image_size))
    return Source(images.get("train"), images["val"], tuple(names), preprocessing, notes)


def open_parts(root: Path, parts: Sequence[str] = PARTS, some_classes: bool = False) -> dict[str, ClassFolders]:
    """Lists train/ and val/ below `root`, or val/ alone. Raises DataError if one is missing, as `class_folders`, and
    but for `some_classes` if there is only one class or the parts have different ones."""
    for part in parts:
        if not (root / part).is_dir():
            _check_sorted(root, look_into(root).images)
            held = ", ".join(sorted(entry.name for entry in root.iterdir())[:5]) or "nothing"
            raise DataError(f"{root} has no folder {part}/ (it holds: {held}); {LAYOUT}")
    found = {part: class_folders(root / part, some_classes) for part in parts}
    if not some_classes:
        check_same_classes(found[parts[0]].class_names, found["val"].class_names, root)
    return found


def class_folders(folder: Path, some_classes: bool = False) -> ClassFolders:
    """The images in the class folders of `folder`. Raises DataError if there are none, a class has none (with
    `some_classes`: all have none), an image lies beside them, or something in them is no image."""
    found = look_into(folder)
    _check_sorted(folder, found.images)
    if found.images:
        raise DataError(f"image {found.images[0]} lies outside of a class folder; images belong in {folder}/CLASS/")
    if not found.folders:
        raise DataError(f"{folder} has no class folders; {LAYOUT}")
    labels, empty = [], []
    for label, class_folder in enumerate(found.folders):
        here = look_into(class_folder)
        for reason, paths in {"a folder": here.folders, **here.left_out}.items():
            if paths and reason != HIDDEN:
                if reason == DANGLING:
                    reason = f"a link to {os.readlink(paths[0])}, which does not exist"
                raise DataError(
                    f"{paths[0]} is {reason}; a class folder must hold image files only ({', '.join(ENDINGS)}): move or"
                    " remove it"
                )
        if not here.images:
            empty.append(Path(class_folder).name)
        found.take(here)
        labels += [label] * len(here.images)
    _check_encodable([*found.folders, *found.images])
    if empty and not (some_classes and found.images):
        raise DataError(f"no images in {len(empty)} class folder(s) of {folder}: {listing(empty, shown=5)}")
    return ClassFolders([Path(each).name for each in found.folders], found.images, labels, found.notes(folder))


def images_to_classify(path: str | Path, classes: ModelClasses) -> tuple[list[str], list[int] | None, list[str]]:
    """The images at `path`, which is an image, a folder of images, or one of class folders (also below `val/`): the
    files; the class of each, or None where folders do not say; and notes on what is left out. Raises DataError if there
    are none, some lie beside class folders, or in folders that are no classes of the model."""
    path = Path(path)
    if path.is_file():
        return [str(path)], None, []
    if not path.is_dir():
        raise DataError(f"{path} is neither a file nor a folder")
    root = path / "val" if (path / "val").is_dir() else path
    found = images_below(root)
    if look_into(root).images == found.images:
        return found.images, None, found.notes(root)
    folders = class_folders(root, some_classes=True)
    by_wnid = classes.imagenet and set(folders.class_names) <= set(imagenet_classes())
    if not (classes.names or classes.class_map or by_wnid):
        return folders.files, None, folders.notes
    remedy = f"put images without known classes into one folder, or give --{CLASS_MAP}"
    places, _ = classes.matched(folders.class_names, root, remedy)
    return folders.files, [places[label] for label in folders.labels], folders.notes


def _check_sorted(folder: Path, images: list[str]) -> None:
    """Raises DataError for ImageNet's validation images as they are downloaded."""
    if images and re.fullmatch(r"ILSVRC2012_val_\d{8}\.JPEG", Path(images[0]).name):
        raise DataError(
            f"{folder} holds {len(images):,} of ImageNet's validation images as they are downloaded, without folders of"
            f" classes; sort them with `python scripts/sort_imagenet_val.py {folder} LABELS` (--help says what LABELS"
            " can be), in a folder val/ below data.path"
        )


def check_same_classes(train: list[str], val: list[str], root: Path) -> None:
    """Raises DataError unless both parts have the same classes, and more than one."""
    only = {"val": sorted(set(val) - set(train)), "train": sorted(set(train) - set(val))}
    if any(only.values()):
        differ = "; ".join(f"only in {part}: {listing(names, shown=5)}" for part, names in only.items() if names)
        same = set(map(_folded, only["train"])) & set(map(_folded, only["val"]))
        hint = "; some differ by case or by the Unicode form of accents alone: rename those" if same else ""
        raise DataError(f"the classes of {root}/train and {root}/val differ ({differ}); they must be the same{hint}")
    if len(train) < 2:
        raise DataError(f"{root}/train has one class only ({train[0]}); a classifier needs at least two")


def _folded(name: str) -> str:
    """The name without what some file systems ignore: case and the Unicode form of accents."""
    return unicodedata.normalize("NFC", name).casefold()


def _check_encodable(paths: list[str]) -> None:
    """Raises DataError for a name that cannot be written to logs and checkpoints."""
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError:
            shown = path.encode(errors="backslashreplace").decode()
            raise DataError(f"the name of {shown} is not valid UTF-8; rename it") from None
