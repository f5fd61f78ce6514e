"""Manifests: read back as written, and bad bundles refused with what is wrong with them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny

from dvt.deploy.manifest import (
    GraphSet,
    Manifest,
    Setting,
    check_files,
    describe_file,
    exit_values,
    manifest_from_dict,
    named_settings,
    read_manifest,
    write_manifest,
)
from dvt.errors import BundleError, ConfigError

CONFIG = tiny.patch_config(grid_sizes=(2, 4))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle whose files hold a few bytes."""
    for index in range(2):
        (tmp_path / f"exit_{index}.onnx").write_bytes(bytes(range(index, index + 9)))
    entries = tuple(describe_file(tmp_path / f"exit_{index}.onnx", *exit_values(CONFIG, index)) for index in range(2))
    manifest = Manifest(
        model=CONFIG,
        class_names=[*"abcdef", "ü"],
        preprocessing={"mean": [0.5]},
        cumulative_gmacs=[0.1, 0.3],
        batch_sizes=[1, 8],
        thresholds={"recommended": Setting((0.7, -1e8), 0.2, 81.5), "fast": Setting((0.1, -1e8))},
        graphs={"ONNX": GraphSet("float32", entries, details={"opset": 17})},
        versions={"dvt": "0"},
    )
    write_manifest(tmp_path, manifest)
    return tmp_path


def edit(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_a_manifest_is_read_back(folder: Path):
    manifest = read_manifest(folder)
    assert manifest.model == CONFIG
    assert manifest_from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest
    assert list(manifest.thresholds) == ["recommended", "fast"]
    assert manifest.settings("ONNX") == manifest.thresholds
    assert manifest.class_names[-1] == "ü" and "ü" in (folder / "manifest.json").read_text(encoding="utf-8")
    check_files(folder, manifest.graphs["ONNX"])


def test_inputs_and_outputs():
    first, second = (exit_values(CONFIG, index, "float16", 8) for index in range(2))
    assert [(v.name, v.shape, v.dtype) for v in first[0]] == [("images", (8, 3, 24, 24), "float32")]
    assert [(v.role, v.name, v.shape, v.dtype) for v in first[1]] == [
        ("probabilities", "probabilities", (8, 7), "float32"),
        ("features", "next_features", (8, 5, 16), "float16"),
        ("relations", "next_relations", (8, 2, 5, 5), "float16"),
    ]
    assert [(v.name, v.shape) for v in second[0][1:]] == [("features", (8, 5, 16)), ("relations", (8, 2, 5, 5))]
    assert [v.role for v in second[1]] == ["probabilities"]
    assert exit_values(CONFIG, None)[1][0].shape == (None, 2, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=1), "has format 1; this version of the package reads format 2. Export"),
        (lambda m: m.update(format=3), "has format 3; .* Update the package"),
        (lambda m: m.pop("format"), "has format None"),
        (lambda m: m.pop("graphs"), "is damaged: it lacks 'graphs'"),
        (lambda m: m["graphs"]["ONNX"]["exits"][0].pop("sha256"), "it lacks 'sha256'"),
        (lambda m: m["graphs"]["ONNX"]["exits"][0].update(file="../exit_0.onnx"), "not the name of a file in the bun"),
        (lambda m: m["model"].update(embed_dim=17), "is damaged: model.embed_dim 17 is not a multiple"),
        (lambda m: m.update(cumulative_gmacs="x"), "cumulative_gmacs is 'x'; it must be a list"),
        (lambda m: m.update(batch_sizes=[1, 8.5]), "batch_sizes.1 is 8.5; it must be a whole number"),
        (lambda m: m.update(thresholds=[]), "thresholds is .*; it must be an object"),
        (lambda m: m["graphs"]["ONNX"]["exits"][1].update(bytes="9"), r"graphs.ONNX.exits.1.bytes is '9'; it must be"),
        (lambda m: m["graphs"]["ONNX"].update(whole=3), "graphs.ONNX.whole is 3"),
    ],
)
def test_manifests_that_cannot_be_used(change: Callable[[dict], None], message: str, folder: Path):
    edit(folder, change)
    with pytest.raises(BundleError, match=message):
        read_manifest(folder)


def test_folders_that_are_no_bundle(folder: Path, tmp_path: Path):
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest.json"):
        read_manifest(tmp_path / "nowhere")
    (folder / "manifest.json").write_text('{"format": 2,')
    with pytest.raises(BundleError, match="is damaged: .* Copy the bundle again"):
        read_manifest(folder)


def test_files_that_are_not_those_of_the_manifest(folder: Path):
    graphs = read_manifest(folder).graphs["ONNX"]
    path = folder / "exit_1.onnx"
    original = path.read_bytes()
    path.write_bytes(original[:-1])
    with pytest.raises(BundleError, match=r"exit_1.onnx has 8 bytes, its manifest says 9"):
        check_files(folder, graphs)
    path.write_bytes(original[:-1] + b"x")
    with pytest.raises(BundleError, match=r"exit_1.onnx was altered: its SHA-256 is not that of its manifest"):
        check_files(folder, graphs)
    path.unlink()
    with pytest.raises(BundleError, match=r"is incomplete: exit_1.onnx is missing"):
        check_files(folder, graphs)
    shutil.copy(folder / "exit_0.onnx", path)
    with pytest.raises(BundleError, match="SHA-256"):
        check_files(folder, graphs)


def test_named_settings():
    assert named_settings([0.5, 0.0], 2) == {"default": Setting((0.5, 0.0))}
    named = named_settings({"b": np.float32([0.25, -np.inf]), "a": Setting((0.1, 0.0), 2.0, 90.0)}, 2)
    assert list(named.items()) == [("b", Setting((0.25, -1e8))), ("a", Setting((0.1, 0.0), 2.0, 90.0))]
    assert named_settings(None, 2) == {}
    with pytest.raises(ConfigError, match=r"thresholds 'fast': thresholds has shape \(3,\); 2 exits need"):
        named_settings({"fast": [0.1, 0.2, 0.3]}, 2)
    with pytest.raises(ConfigError, match="NaN cannot be compared"):
        named_settings([np.nan, 0.0], 2)
