"""Exports that are killed: the folder holds the earlier bundle or the new one, and the next export tidies up."""

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from dvt.deploy import publish
from dvt.deploy.manifest import GraphSet, Manifest, describe_file, exit_values, read_manifest, write_manifest
from dvt.errors import ConfigError
from reliability.faults import ended, forked

CONFIG = tiny.patch_config(grid_sizes=(2, 4))
SUFFIXES = {"ONNX": "onnx", "MINDIR": "mindir", "ONNX_INT8": "int8.onnx"}
CHANGES = ("open", "os.", "shutil.", "tempfile.")  # audited by Python before they happen


def export(folder: Path, weights: str, formats: tuple[str, ...], replaces: bool = False) -> None:
    """Publishes files whose content is the name of the weights and their own."""
    with publish.staged(folder) as stage:
        graphs = {}
        for name in formats:
            entries = []
            for index in range(2):
                path = stage / f"exit_{index}.{SUFFIXES[name]}"
                path.write_text(f"{weights} {path.name}")
                entries.append(describe_file(path, *exit_values(CONFIG, index)))
                if name == "MINDIR":
                    (stage / f"exit_{index}.ascend.ini").write_text(weights)
            graphs[name] = GraphSet("float32", tuple(entries))
        write_manifest(stage, Manifest(CONFIG, None, None, [0.1, 0.3], [1], {}, graphs, {}, weights))
        publish.publish(stage, folder, replaces)


def held(folder: Path) -> tuple[str, frozenset[str]] | None:
    """Weights and formats of the bundle, read as by a program that knows the manifest alone; None if there is none."""
    if not (folder / "manifest.json").exists():
        return None
    manifest = json.loads((folder / "manifest.json").read_text())
    for graphs in manifest["graphs"].values():
        for entry in graphs["exits"]:
            content = (folder / entry["file"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == entry["sha256"]
            assert content.decode().startswith(manifest["fingerprint"])
    return manifest["fingerprint"], frozenset(manifest["graphs"])


def files(*formats: str) -> set[str]:
    names = {f"exit_{index}.{SUFFIXES[name]}" for name in formats for index in range(2)}
    return names | ({"exit_0.ascend.ini", "exit_1.ascend.ini"} if "MINDIR" in formats else set())


def killed_at(operation: int, work: Callable[[], None]) -> bool:
    """A child that does `work` is killed before a file operation; False if it ended before."""
    seen = 0

    def count(event: str, _: tuple) -> None:
        nonlocal seen
        seen += event.startswith(CHANGES)
        if seen == operation:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted() -> None:
        sys.addaudithook(count)
        work()

    end = ended(forked(counted))
    assert end in (0, -signal.SIGKILL)
    return end != 0


@pytest.mark.parametrize(
    ("before", "after", "replaces"),
    [
        pytest.param(None, ("new", ("ONNX", "MINDIR")), False, marks=pytest.mark.slow),
        pytest.param(("old", ("ONNX",)), ("old", ("MINDIR",)), False, marks=pytest.mark.slow),
        pytest.param(("old", ("ONNX", "MINDIR")), ("old", ("MINDIR",)), False, marks=pytest.mark.slow),
        (("old", ("ONNX", "MINDIR")), ("new", ("ONNX", "ONNX_INT8")), True),
    ],
    ids=["first", "added", "again", "other weights"],
)
def test_the_earlier_bundle_or_the_new_one(
    before: tuple | None, after: tuple, replaces: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # takes long, and processes that are killed need none
    start, folder = tmp_path / "start", tmp_path / "folder"
    start.mkdir()
    (start / "notes.txt").touch()
    if before:
        export(start, *before)
    old, operation, ends, finished = held(start), 0, set(), False
    export(shutil.copytree(start, tmp_path / "done"), *after, replaces)
    new = held(tmp_path / "done")
    while not finished:
        operation += 1
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(start, folder)
        finished = not killed_at(operation, lambda: export(folder, *after, replaces))
        ends.add(held(folder))
        weights, formats = after if operation % 2 else ("other", ("ONNX_INT8",))
        export(folder, weights, formats, replaces=True)  # tidies up, whatever it writes
        assert held(folder) == (weights, set(formats))
        assert set(os.listdir(folder)) == {"manifest.json", "notes.txt", *files(*formats)}
    assert operation > 30 and ends == {old, new}


def test_formats_are_added_to_the_same_weights_and_others_refused(tmp_path: Path):
    export(tmp_path, "a", ("ONNX",))
    export(tmp_path, "a", ("MINDIR",))
    assert held(tmp_path) == ("a", {"ONNX", "MINDIR"})
    with pytest.raises(ConfigError, match=r"holds a bundle \(ONNX, MINDIR\) that is of other weights: .* --replace"):
        export(tmp_path, "b", ("ONNX",))
    assert held(tmp_path) == ("a", {"ONNX", "MINDIR"})
    export(tmp_path, "b", ("ONNX",), replaces=True)
    assert held(tmp_path) == ("b", {"ONNX"}) and set(os.listdir(tmp_path)) == {"manifest.json", *files("ONNX")}

    write_manifest(tmp_path, replace(read_manifest(tmp_path), fingerprint=None))  # as version 0.1.0 wrote them
    with pytest.raises(ConfigError, match="does not say of which weights it is"):
        export(tmp_path, "b", ("MINDIR",))
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="has format None.*write over it with --replace"):
        export(tmp_path, "b", ("MINDIR",))


def test_files_of_lite_stay_while_they_fit(tmp_path: Path):
    """They are made of another format, for the batch sizes in the manifest."""
    export(tmp_path, "a", ("ONNX",))
    entries = []
    for index in range(2):
        (tmp_path / f"exit_{index}.ms").write_text("a")
        entries.append(describe_file(tmp_path / f"exit_{index}.ms", *exit_values(CONFIG, index)))
    manifest = read_manifest(tmp_path)
    lite = GraphSet("float32", tuple(entries), details={"target": "cpu", "converted_from": "ONNX"})
    write_manifest(tmp_path, replace(manifest, graphs={**manifest.graphs, "LITE": lite}))
    export(tmp_path, "a", ("MINDIR",))
    assert held(tmp_path) == ("a", {"ONNX", "LITE", "MINDIR"})
    export(tmp_path, "a", ("ONNX",))
    assert held(tmp_path) == ("a", {"ONNX", "MINDIR"}) and not (tmp_path / "exit_0.ms").exists()
