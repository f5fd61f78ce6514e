"""Manifests: read back as written, and bad bundles refused with what is wrong with them."""

import contextlib
import functools
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image
from sklearn.datasets import load_sample_image

from dvt.deploy import Cascade
from dvt.deploy.manifest import (
    GraphSet,
    Manifest,
    Setting,
    check_files,
    describe_file,
    exit_values,
    named_settings,
    read_manifest,
    write_manifest,
)
from dvt.early_exit.certify import Certificate
from dvt.errors import BundleError, ConfigError

CONFIG = tiny.patch_config(grid_sizes=(2, 4))
CERTIFICATE = Certificate((0.7, -1e8), "changes", 5.0, 0.95, 100, 65, "test", 1.5, 4.5, 5.0, 0.2, 0.25, 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle whose files hold a few bytes."""
    for index in range(2):
        (tmp_path / f"exit_{index}.onnx").write_bytes(bytes(range(index, index + 9)))
    entries = tuple(describe_file(tmp_path / f"exit_{index}.onnx", *exit_values(CONFIG, index)) for index in range(2))
    manifest = Manifest(
        model=CONFIG,
        class_names=[*"abcdef", "ü"],
        preprocessing=None,
        cumulative_gmacs=[0.1, 0.3],
        batch_sizes=[1, 8],
        thresholds={"recommended": Setting((0.7, -1e8), 0.2, 81.5, CERTIFICATE), "fast": Setting((0.1, -1e8))},
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
    write_manifest(folder, manifest)
    assert read_manifest(folder) == manifest
    assert list(manifest.thresholds) == ["recommended", "fast"]
    assert manifest.settings("ONNX") == manifest.thresholds
    assert manifest.class_names[-1] == "ü" and "ü" in (folder / "manifest.json").read_text(encoding="utf-8")
    check_files(folder, manifest.graphs["ONNX"])


def test_a_certificate_is_of_the_outputs_that_it_was_made_from(folder: Path):
    manifest = read_manifest(folder)
    assert manifest.thresholds["recommended"].certificate == CERTIFICATE
    assert manifest.settings("ONNX")["recommended"].promise == CERTIFICATE.promise()
    assert manifest.settings("ONNX")["fast"].promise == "not certified"
    (entries,) = (graphs.exits for graphs in manifest.graphs.values())
    manifest.graphs["LITE"] = GraphSet("float32", entries, details={"converted_from": "ONNX"})
    manifest.graphs["OTHER"] = GraphSet("float16", entries)
    for name in ("LITE", "OTHER"):
        setting = manifest.settings(name)["recommended"]
        assert setting.values == (0.7, -1e8) and setting.certificate is None
        assert setting.promise.startswith("not certified: the certificate is of the float32 files")


def test_a_promise_says_where_images_are_turned_otherwise_than_for_the_certificate():
    said = CERTIFICATE.promise()
    for stored, exif, note in (
        *((None, "honour", ""), (None, "ignore", ""), (False, "ignore", ""), (True, "honour", "")),
        (False, "honour", " (measured with EXIF orientation ignored, here it is honoured: "),
        (True, "ignore", " (measured with EXIF orientation honoured, here it is ignored: "),
    ):
        found = Setting((0.7, -1e8), certificate=replace(CERTIFICATE, exif=stored)).promise_for(exif)
        assert found == said if not note else found.startswith(said + note)
    assert Setting((0.7, -1e8)).promise_for("honour") == "not certified"


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=1), "has format 1; this version of the package reads format 2. Export"),
        (lambda m: m.update(format=3), "has format 3; .* Update the package"),
        (lambda m: m.pop("graphs"), "is damaged: graphs is missing"),
        (lambda m: m["graphs"]["ONNX"]["exits"][0].pop("sha256"), "graphs.ONNX.exits.0.sha256 is missing"),
        (lambda m: m["graphs"]["ONNX"]["exits"][0].update(file="../exit_0.onnx"), "not the name of a file in the bun"),
        (lambda m: m["model"].update(embed_dim=17), "is damaged: .*model.embed_dim 17 is not a multiple"),
        (lambda m: m["graphs"]["ONNX"]["exits"].pop(), "graphs.ONNX.exits are 1 files for 2 exits"),
        (
            lambda m: m["graphs"]["ONNX"]["exits"][1]["inputs"].pop(),
            r"exits.1.inputs are not those of the model, which",
        ),
        (lambda m: m.update(thresholds={"x": {"values": [0.5]}}), r"thresholds 'x': .* 2 exits need"),
        (lambda m: m.update(thresholds={"x": {"values": [-0.5, 0]}}), r"thresholds.x: values .* none may be negative"),
        (
            lambda m: m["thresholds"]["recommended"].update(values=[0.6, -1e8]),
            r"thresholds.recommended: certificate is of the thresholds \[0.7, .*\], not of \[0.6,",
        ),
        (
            lambda m: m["thresholds"]["recommended"]["certificate"].update(limit=101),
            "thresholds.recommended.certificate.limit is 101; it must be a number of at least 0 and at most 100",
        ),
        (
            lambda m: m["thresholds"]["recommended"]["certificate"].pop("risk"),
            "thresholds.recommended.certificate.risk is missing",
        ),
        (lambda m: m.update(batch_sizes=[]), r"batch_sizes is \[\]; give one or more"),
        (lambda m: m.update(class_names=["\x1b[2J"] * 7), r"class_names.0 is '\\x1b\[2J'; .* control characters"),
    ],
)
def test_manifests_that_cannot_be_used(change: Callable[[dict], None], message: str, folder: Path):
    edit(folder, change)
    with pytest.raises(BundleError, match=message):
        read_manifest(folder)


WRONG = [
    None,
    "",
    "abc",
    "\ud800",
    "x" * 5000,
    "../manifest.json",
    "exit_1.onnx",
    True,
    -1,
    0,
    1,
    7,
    2.5,
    10**9,
    10**30,
]
WRONG += [10**30, float("inf"), float("-inf"), float("nan"), 1e308, [], {}, [[]], [1e9], ["abc"], [-1.0], {"a": 1}]
LACKS = object()


def places(content: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths to all that a manifest holds."""
    for key, each in content.items() if isinstance(content, dict) else enumerate(content):
        yield (*path, key)
        if isinstance(each, dict | list):
            yield from places(each, (*path, key))


def edited(content: dict, path: tuple, value: Any) -> dict:
    """A copy with another value at one place, or without it."""
    content = json.loads(json.dumps(content))
    parent = functools.reduce(lambda part, key: part[key], path[:-1], content)
    parent.pop(path[-1]) if value is LACKS else parent.__setitem__(path[-1], value)
    return content


def use(folder: Path, picture: Image.Image) -> None:
    """What `dvt infer` and the service do with a bundle."""
    with Cascade(folder, threads=1) as cascade:
        images = np.zeros((1, 3, 24, 24), np.float32)
        if cascade.preprocessing is not None:
            images = cascade.preprocessing(picture)[None]
        found = cascade.predict(images, None if cascade.thresholds else [0.5, 0.5, 0.0])
        assert np.isfinite(found.probabilities).all() and 0 <= found.confidence[0] <= 1
        model = cascade.manifest.model
        assert (cascade.class_names or range(model.num_classes))[found.labels[0]] is not None
        answer = [cascade.class_names, cascade.thresholds, cascade.manifest.cumulative_gmacs[found.exit_index[0]]]
        json.dumps(answer, ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize("share", [0.06, pytest.param(1, marks=pytest.mark.soak)])
def test_every_edit_is_refused_by_its_key_or_leaves_a_bundle_that_works(share: float, bundle: Path, tmp_path: Path):
    content = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    content["graphs"] = {"ONNX": content["graphs"]["ONNX"]}
    folder = shutil.copytree(bundle, tmp_path / "copy", ignore=shutil.ignore_patterns("*.mindir", "*.int8.onnx"))
    picture = Image.fromarray(load_sample_image("china.jpg"))
    edits, rng = [(path, value) for path in places(content) for value in (LACKS, *WRONG)], random.Random(0)
    chosen = [[edit] for edit in rng.sample(edits, int(share * len(edits)))]
    chosen += [rng.sample(edits, 2) for _ in range(int(2000 * share))]
    usable = 0
    for several in chosen:
        made, named = content, []
        for path, value in several:
            with contextlib.suppress(KeyError, TypeError, AttributeError, IndexError):  # the first took its place away
                made = edited(made, path, value)
                named += [*[str(key) for key in path if not isinstance(key, int)][-2:], str(value)]
        (folder / "manifest.json").write_text(json.dumps(made))
        try:
            use(folder, picture)
            usable += 1
        except BundleError as error:
            assert any(name in str(error) for name in named), (several, str(error))
        except Exception as error:
            pytest.fail(f"{several!r:.300}: {error!r}")
    assert 0.02 < usable / len(chosen) < 0.5


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
    with pytest.raises(BundleError, match=r"exit_1.onnx was altered or cut short: its bytes and sha256"):
        check_files(folder, graphs)
    path.write_bytes(original[:-1] + b"x")
    with pytest.raises(BundleError, match=r"exit_1.onnx was altered or cut short"):
        check_files(folder, graphs)
    path.unlink()
    with pytest.raises(BundleError, match=r"is incomplete: exit_1.onnx is missing"):
        check_files(folder, graphs)
    shutil.copy(folder / "exit_0.onnx", path)
    with pytest.raises(BundleError, match="sha256"):
        check_files(folder, graphs)


def test_a_manifest_of_brackets(tmp_path: Path):
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(BundleError, match=r"manifest\.json is damaged: .*recursion"):
        read_manifest(tmp_path)


def test_named_settings():
    assert named_settings([0.5, 0.0], 2) == {"default": Setting((0.5, 0.0))}
    named = named_settings({"b": np.float32([0.25, -np.inf]), "a": Setting((0.1, 0.0), 2.0, 90.0)}, 2)
    assert list(named.items()) == [("b", Setting((0.25, -1e8))), ("a", Setting((0.1, 0.0), 2.0, 90.0))]
    assert named_settings(None, 2) == {}
    with pytest.raises(ConfigError, match=r"thresholds 'fast': thresholds has shape \(3,\); 2 exits need"):
        named_settings({"fast": [0.1, 0.2, 0.3]}, 2)
    with pytest.raises(ConfigError, match="NaN cannot be compared"):
        named_settings([np.nan, 0.0], 2)
