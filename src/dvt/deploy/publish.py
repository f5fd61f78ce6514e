"""Putting exported files in place, so that the folder holds the earlier bundle or the new one, whenever it is killed.

Programs find files by the manifest, which is replaced in one step. Files that are to go first get other names, under
which the manifest lists them; then the new files take their places, and the new manifest is the last. What a killed
export has left is tidied up by the next one.
"""

import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dvt.deploy.manifest import CONVERTED, MANIFEST_FILE, GraphFile, Manifest, read_manifest, write_manifest
from dvt.errors import BundleError, ConfigError
from dvt.safe_files import explained, held, put_in_place, scratch_folder

ASIDE = ".previous"  # in the names of files that are to go
OURS = re.compile(rf"(exit_\d+|whole)(\{ASIDE})?(\.int8\.onnx|_ascend\.mindir|\.ascend\.ini|\.(mindir|onnx|ms))")
"""Names of exported files; nothing else in the folder is touched."""

log = logging.getLogger(__name__)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A hidden folder in `folder`, to be written to, for one export at a time; a failure leaves nothing. Raises
    ConfigError for a folder that cannot be written, or that another export holds."""
    with held(folder, "an export"):
        with explained(folder, ConfigError):
            _tidy_up(folder)
        with scratch_folder(folder, "export") as stage:
            yield stage


def merged(folder: Path, new: Manifest, replaces: bool) -> Manifest:
    """`new` with those formats of the bundle in `folder` that stay (with `replaces` none). Raises ConfigError if the
    bundle is of other weights."""
    if replaces or not (folder / MANIFEST_FILE).exists():
        return new
    try:
        earlier = read_manifest(folder)
    except BundleError as error:
        raise ConfigError(f"{error}, or write over it with --replace (in Python replace=True)") from error
    if earlier.fingerprint is None or earlier.fingerprint != new.fingerprint:
        which = "does not say of which weights it is" if earlier.fingerprint is None else "is of other weights"
        remedy = "choose another folder, or replace it with --replace (in Python replace=True)"
        raise ConfigError(f"{folder} holds a bundle ({', '.join(earlier.graphs)}) that {which}: {remedy}")
    kept = {name: graphs for name, graphs in earlier.graphs.items() if name not in new.graphs}
    for name, graphs in list(kept.items()):
        resized = name == CONVERTED and earlier.batch_sizes != new.batch_sizes  # it is made for these
        if resized or graphs.details.get("converted_from") in new.graphs:
            log.warning("%s is removed, since what it was made of is replaced: make it again", name)
            del kept[name]
    return replace(new, graphs={**kept, **new.graphs})


def publish(stage: Path, folder: Path, replaces: bool) -> list[str]:
    """Moves the bundle in `stage` into `folder`; returns the names of its files, the manifest last. Raises OSError, and
    ConfigError as `merged`."""
    new = merged(folder, read_manifest(stage), replaces)
    names = {path.name for path in stage.iterdir() if OURS.fullmatch(path.name)}
    if going := _files_listed_in(folder) - (_files_of(new) - names):
        _rename(folder, {name: re.sub(r"^(exit_\d+|whole)", rf"\1{ASIDE}", name) for name in going})
    write_manifest(stage, new)
    in_order = [*sorted(names), MANIFEST_FILE]
    for name in in_order:
        put_in_place(stage / name, folder / name)
    _tidy_up(folder)
    return in_order


def _tidy_up(folder: Path) -> None:
    """Gives the bundle its usual file names, and removes what killed exports have moved here and no manifest lists."""
    listed = _files_listed_in(folder)
    if not listed and (folder / MANIFEST_FILE).exists():
        return  # of a newer version, or damaged: what it lists is not known
    left = {path.name for path in folder.glob(f"*{ASIDE}*") if OURS.fullmatch(path.name)}
    for unfinished in folder.glob(f".export*/{MANIFEST_FILE}"):
        left |= _files_listed_in(unfinished.parent)
    for name in left - listed:
        (folder / name).unlink(missing_ok=True)
    if usual := {name: name.replace(ASIDE, "") for name in listed if ASIDE in name}:
        _rename(folder, usual)


def _rename(folder: Path, names: Mapping[str, str]) -> None:
    """Gives files of the bundle other names. At every moment its manifest lists files that are there."""
    for old, new in names.items():
        (folder / new).unlink(missing_ok=True)
        try:
            os.link(folder / old, folder / new)
        except FileNotFoundError:  # a configuration of the converter that was not written, or an incomplete bundle
            continue
        except OSError:  # not every file system has links
            shutil.copy2(folder / old, folder / new)

    def renamed(entry: GraphFile | None) -> GraphFile | None:
        return entry and replace(entry, file=names.get(entry.file, entry.file))

    bundle = read_manifest(folder)
    graphs = {
        name: replace(each, exits=tuple(map(renamed, each.exits)), whole=renamed(each.whole))
        for name, each in bundle.graphs.items()
    }
    write_manifest(folder, replace(bundle, graphs=graphs))
    for old in names:
        (folder / old).unlink(missing_ok=True)


def _files_of(bundle: Manifest) -> set[str]:
    """Names of the files that a manifest lists, and of the converter's configurations that go with them."""
    names = {entry.file for graphs in bundle.graphs.values() for entry in graphs.files}
    names |= {name.replace(".mindir", ".ascend.ini") for name in names}
    return {name for name in names if OURS.fullmatch(name)}


def _files_listed_in(folder: Path) -> set[str]:
    """`_files_of` the bundle in a folder; nothing where there is none that can be read."""
    try:
        return _files_of(read_manifest(folder))
    except BundleError:
        return set()
