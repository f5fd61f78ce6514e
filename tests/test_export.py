"""Export: the files compute what the model does, the manifest describes them, and nothing half-written stays."""

import hashlib
import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from dvt import cli, export
from dvt.checkpoint import load_model, save_checkpoint
from dvt.cost import cumulative_gmacs
from dvt.errors import CheckpointError, ConfigError, DVTError
from dvt.inference import AdaptiveClassifier
from dvt.models.cascade import build_model
from dvt.variants import ModelConfig

SIZES = {"embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_hidden": 24, "num_classes": 5}
PATCH = {"image_size": 24, "grid_sizes": (2, 4), **SIZES}
T2T = {"image_size": 32, "grid_sizes": (2, 4), "soft_splits": ((6, 4, 1), (3, 2, 1)), **SIZES}
METADATA = {
    "class_names": ["a", "b", "c", "d", "é"],
    "preprocessing": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    "thresholds": [0.21, -1e8],
    "results": {"flops": [1.0, 2.0]},
}


def make_checkpoint(path: Path, name: str = "dvt_deit_small", **overrides: Any) -> Path:
    ms.set_seed(1)
    model = build_model(name, **{**(PATCH if name == "dvt_deit_small" else T2T), **overrides})
    for parameter in model.trainable_params():  # away from the initial near-zero, where all outputs look alike
        parameter.set_data(parameter * 5)
    save_checkpoint(path, model, METADATA)
    return path


def run_cascade(folder: Path, images: np.ndarray) -> tuple[dict[str, Any], list[np.ndarray]]:
    """What a program does that has the manifest and the files, and not this package: probabilities of every exit."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    values, probabilities = {"images": images}, []
    for entry in manifest["exits"]:
        content = (folder / entry["file"]).read_bytes()
        assert len(content) == entry["bytes"] and hashlib.sha256(content).hexdigest() == entry["sha256"]
        cell = nn.GraphCell(ms.load(str(folder / entry["file"])))
        inputs = []
        for described in entry["inputs"]:
            value = values[described["name"]]
            assert list(value.shape[1:]) == described["shape"][1:] and str(value.dtype) == described["dtype"]
            inputs.append(Tensor(value))
        outputs = cell(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for described, output in zip(entry["outputs"], outputs, strict=True):
            values[described["name"]] = output.asnumpy()
            assert list(output.shape[1:]) == described["shape"][1:]
        probabilities.append(values["probabilities"])
    return manifest, probabilities


def expected_probabilities(checkpoint: Path, images: np.ndarray) -> list[np.ndarray]:
    """From a model as users build it, by way of its logits."""
    model, _ = load_model(checkpoint)
    model.set_train(False)
    logits = [part.asnumpy() for part in model(Tensor(images))]
    exponentials = [np.exp(part - part.max(axis=1, keepdims=True)) for part in logits]
    return [part / part.sum(axis=1, keepdims=True) for part in exponentials]


def images_for(config: ModelConfig, count: int) -> np.ndarray:
    shape = (count, config.in_channels, config.image_size, config.image_size)
    return np.random.default_rng(8).standard_normal(shape, dtype=np.float32)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["dvt_deit_small", pytest.param("dvt_t2t_vit_12", marks=pytest.mark.slow)])
def test_an_open_batch(name: str, tmp_path: Path, graph_mode: None):
    checkpoint = make_checkpoint(tmp_path / "model.ckpt", name)
    folder = tmp_path / "some" / "where"
    paths = export.export_checkpoint(str(checkpoint), str(folder), ["MINDIR"], None, "CPU")
    assert [path.name for path in paths] == ["exit_0.mindir", "exit_1.mindir", "manifest.json"]
    assert names_in(folder) == {path.name for path in paths}
    plain = tmp_path / "plain"
    plain.touch()
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {stat.S_IMODE(plain.stat().st_mode)}

    model, _ = load_model(checkpoint)
    images = images_for(model.config, 6)
    manifest, probabilities = run_cascade(folder, images)
    assert np.ptp(probabilities[0][:, 0]) > 1e-3  # images differ
    for result, expected in zip(probabilities, expected_probabilities(checkpoint, images), strict=True):
        np.testing.assert_allclose(result, expected, atol=1e-5)

    assert ModelConfig.from_dict(manifest["model"]) == model.config
    assert {key: manifest[key] for key in METADATA} == METADATA
    assert manifest["cumulative_gmacs"] == cumulative_gmacs(model.config)
    assert manifest["versions"]["mindspore"] == ms.__version__
    assert manifest["batch_size"] is None
    first, second = manifest["exits"]
    size = model.config.image_size
    assert [part["name"] for part in first["inputs"]] == ["images"]
    assert [part["name"] for part in first["outputs"]] == ["probabilities", "features", "relations"]
    assert [part["shape"] for part in second["inputs"]] == [[None, 3, size, size], [None, 5, 16], [None, 2, 5, 5]]
    assert [part["name"] for part in second["outputs"]] == ["probabilities"]

    # The exported exits decide as the classifier does.
    classifier = AdaptiveClassifier(model, METADATA["thresholds"], batch_sizes=[6])
    predicted = classifier.predict(images)
    leaves = probabilities[0].max(axis=1) >= METADATA["thresholds"][0]
    np.testing.assert_array_equal(predicted.exit_index, np.where(leaves, 0, 1))


def test_a_fixed_batch_replaces_an_earlier_export_and_nothing_else(tmp_path: Path, graph_mode: None):
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "exit_7.mindir").write_text("not of the manifest")
    (folder / "notes.txt").write_text("mine")
    for name in ("exit_0.mindir", "exit_2.mindir"):
        (folder / name).write_text("old")
    old = {"exits": [{"file": name} for name in ("exit_0.mindir", "exit_2.mindir", "../model.ckpt", "notes.txt")]}
    (folder / "manifest.json").write_text(json.dumps(old))
    checkpoint = make_checkpoint(tmp_path / "model.ckpt", relation_reuse=False)
    assert cli.main(["export", "--checkpoint", str(checkpoint), "--output", str(folder), "--batch_size", "2"]) == 0
    assert names_in(folder) == {"exit_0.mindir", "exit_1.mindir", "manifest.json", "exit_7.mindir", "notes.txt"}
    assert checkpoint.exists() and (folder / "notes.txt").read_text() == "mine"

    images = images_for(load_model(checkpoint)[0].config, 2)
    manifest, probabilities = run_cascade(folder, images)
    assert manifest["exits"][1]["inputs"][1] == {"name": "features", "shape": [2, 5, 16], "dtype": "float32"}
    for result, expected in zip(probabilities, expected_probabilities(checkpoint, images), strict=True):
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_a_file_that_computes_something_else_is_not_kept(
    tmp_path: Path, graph_mode: None, monkeypatch: pytest.MonkeyPatch
):
    checkpoint = make_checkpoint(tmp_path / "model.ckpt", grid_sizes=(2,))
    folder = tmp_path / "export"
    plain = export._run

    def slightly_off(cell: nn.Cell, inputs: list[np.ndarray]) -> list[np.ndarray]:
        wrong = 1e-4 if isinstance(cell, nn.GraphCell) else 0.0
        return [value + np.float32(wrong) for value in plain(cell, inputs)]

    monkeypatch.setattr(export, "_run", slightly_off)
    with pytest.raises(DVTError, match=r"exit_0\.mindir does not compute what the model does: its probabilities"):
        export.export_checkpoint(str(checkpoint), str(folder), ["MINDIR"], 1, "CPU")
    assert not folder.exists()

    folder.mkdir()
    (folder / "manifest.json").write_text("of an earlier export")
    with pytest.raises(DVTError, match="Nothing was exported"):
        export.export_checkpoint(str(checkpoint), str(folder), ["MINDIR"], 1, "CPU")
    assert names_in(folder) == {"manifest.json"}


def test_refusals(tmp_path: Path, graph_mode: None, capsys: pytest.CaptureFixture[str]):
    checkpoint = make_checkpoint(tmp_path / "model.ckpt", grid_sizes=(2,))
    with pytest.raises(ConfigError, match="unknown format TFLITE; choose from MINDIR"):
        export.export_checkpoint(str(checkpoint), str(tmp_path / "x"), ["TFLITE"], 1, "CPU")
    with pytest.raises(ConfigError, match="batch_size is 0"):
        export.export_checkpoint(str(checkpoint), str(tmp_path / "x"), ["MINDIR"], 0, "CPU")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        export.export_checkpoint(str(tmp_path / "other.ckpt"), str(tmp_path / "x"), ["MINDIR"], 1, "CPU")
    assert not (tmp_path / "x").exists()
    for output in (checkpoint, checkpoint / "below", Path("/proc/export")):
        assert cli.main(["export", "--checkpoint", str(checkpoint), "--output", str(output)]) == 2
        assert f"cannot write to the output folder {output}" in capsys.readouterr().err


@pytest.mark.slow
def test_the_entry_script(tmp_path: Path):
    checkpoint = make_checkpoint(tmp_path / "model.ckpt")
    script = Path(__file__).parents[1] / "export.py"
    command = [sys.executable, str(script), "--checkpoint", str(checkpoint), "--device-target", "CPU"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert names_in(tmp_path / "export") == {"exit_0.mindir", "exit_1.mindir", "manifest.json"}
    assert names_in(tmp_path) == {"model.ckpt", "export"}
