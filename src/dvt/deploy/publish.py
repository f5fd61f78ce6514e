"""Putting exported files in place, so that the folder holds the earlier bundle or the new one, whenever it is killed.

Programs find files by the manifest, which is replaced in one step. New files first lie beside the earlier ones under
names of their own; a manifest that lists them there makes them the bundle; then they take their usual names, and what
only the earlier bundle listed goes. What a killed export has left to do is done by the next one.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dvt.deploy.manifest import CONVERTED, MANIFEST_FILE, Manifest, read_manifest, write_manifest
from dvt.errors import BundleError, ConfigError
from dvt.safe_files import explained, held, put_in_place, replacing, scratch_folder

FRESH = ".new"  # in the names of files that have not yet taken their usual ones
OURS = re.compile(rf"exit_\d+(\{FRESH})?(\.int8\.onnx|_ascend\.mindir|\.ascend\.ini|\.(mindir|onnx|ms))")
"""Names of exported files; nothing else in the folder is touched."""
GOING = ".going.json"  # names of files of the bundle that is replaced

log = logging.getLogger(__name__)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A hidden folder in `folder`, to be written to, for one export at a time; a failure leaves nothing. Raises
    ConfigError for a folder that cannot be written, or that another export holds."""
    with held(folder, "an export"):
        with explained(folder, ConfigError):
            _settle(folder)
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
    names = sorted(path.name for path in stage.iterdir() if OURS.fullmatch(path.name))
    fresh = {name: re.sub(r"^(exit_\d+)", rf"\1{FRESH}", name) for name in names}
    for name in names:
        put_in_place(stage / name, folder / fresh[name])
    with replacing(folder / GOING) as written:
        written.write_text(json.dumps(sorted(_files_of(_bundle_in(folder)))), encoding="utf-8")
    write_manifest(folder, _renamed(new, fresh))
    _settle(folder)
    return [*names, MANIFEST_FILE]


def _settle(folder: Path) -> None:
    """Gives the files of the bundle their usual names, and removes what is left of earlier ones and of killed exports.
    At every moment the manifest lists files that are there."""
    bundle = _bundle_in(folder)
    if bundle is None and (folder / MANIFEST_FILE).exists():
        return  # of a newer version, or damaged: what it lists is not known
    listed = _files_of(bundle)
    if usual := {name: name.replace(FRESH, "") for name in listed if FRESH in name}:
        for old, new in usual.items():
            (folder / new).unlink(missing_ok=True)
            try:
                os.link(folder / old, folder / new)
            except FileNotFoundError:  # a configuration of the converter that was not written
                continue
            except OSError:  # not every file system has links
                shutil.copy2(folder / old, folder / new)
        write_manifest(folder, _renamed(bundle, usual))
    going = {path.name for path in folder.glob(f"*{FRESH}*")}
    if (folder / GOING).exists():
        going |= set(json.loads((folder / GOING).read_text(encoding="utf-8")))
    for name in going - {usual.get(name, name) for name in listed}:
        if OURS.fullmatch(name):
            (folder / name).unlink(missing_ok=True)
    (folder / GOING).unlink(missing_ok=True)


def _renamed(bundle: Manifest, names: Mapping[str, str]) -> Manifest:
    """The bundle with other names of some files."""
    graphs = {
        name: replace(each, exits=tuple(replace(entry, file=names.get(entry.file, entry.file)) for entry in each.exits))
        for name, each in bundle.graphs.items()
    }
    return replace(bundle, graphs=graphs)


def _bundle_in(folder: Path) -> Manifest | None:
    """None where there is no bundle that can be read."""
    try:
        return read_manifest(folder)
    except BundleError:
        return None


def _files_of(bundle: Manifest | None) -> set[str]:
    """Names of the files that a manifest lists, and of the converter's configurations that go with them."""
    names = {entry.file for graphs in bundle.graphs.values() for entry in graphs.exits} if bundle else set()
    names |= {name.replace(".mindir", ".ascend.ini") for name in names}
    return {name for name in names if OURS.fullmatch(name)}
