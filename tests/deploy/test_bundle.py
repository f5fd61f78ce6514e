"""Export: files compute what the model does, the manifest describes them, and nothing half-written stays."""

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import bundles
import mindspore as ms
import numpy as np
import onnx
import onnxruntime
import pytest
from mindspore import Tensor, nn
from PIL import Image
from sklearn.datasets import load_sample_images

from dvt.checkpoint import load_model, read_checkpoint, save_checkpoint
from dvt.cli import main as cli
from dvt.config import DataSection, RunConfig
from dvt.config.files import config_to_dict
from dvt.cost import cumulative_gmacs
from dvt.data import load_splits
from dvt.deploy import Cascade, export_bundle
from dvt.deploy.bundle import _calibration_of_run, export_checkpoint, stored_settings
from dvt.deploy.lite import write_ascend_configs
from dvt.deploy.manifest import (
    GraphSet,
    Setting,
    check_files,
    describe_file,
    exit_values,
    read_manifest,
)
from dvt.deploy.onnx.exits import OnnxWriter
from dvt.deploy.writers import MindirWriter, check
from dvt.early_exit.certify import Certificate
from dvt.errors import CheckpointError, ConfigError, DVTError

METADATA = {
    "class_names": bundles.CLASS_NAMES,
    "preprocessing": bundles.PREPROCESSING,
    "thresholds": [0.21, -1e8],
    "results": {
        "flops": [1.0, 2.0],
        "dynamic_threshold": [[0.9, -1e8], [0.21, -1e8], [0.1, -1e8]],
        "budgeted_batch_classification": [[2.0, 1.5, 1.0], [70.0, 65.0, 50.0]],
    },
}
SMALL = {"grid_sizes": (2, 4), "depth": 1}


def make_checkpoint(path: Path, name: str = "dvt_deit_small", **overrides: object) -> Path:
    model = bundles.model(name, **{**SMALL, **overrides})
    save_checkpoint(path, model, METADATA | {"preprocessing": preprocessing_of(model.config.image_size)})
    return path


def preprocessing_of(image_size: int) -> dict[str, object]:
    return bundles.PREPROCESSING | {"image_size": image_size, "resize_size": image_size + 4}


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def run_exits(folder: Path, graph_format: str, images: np.ndarray) -> list[np.ndarray]:
    """Probabilities of every exit as a program computes them that has the manifest and the files alone."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    values, probabilities = {"images": images}, []
    for entry in manifest["graphs"][graph_format]["exits"]:
        inputs = [values[described["role"]] for described in entry["inputs"]]
        for described, value in zip(entry["inputs"], inputs, strict=True):
            assert list(value.shape[1:]) == described["shape"][1:] and str(value.dtype) == described["dtype"]
        if graph_format == "MINDIR":
            outputs = nn.GraphCell(ms.load(str(folder / entry["file"])))(*[Tensor(value) for value in inputs])
            outputs = [out.asnumpy() for out in (outputs if isinstance(outputs, tuple) else (outputs,))]
        else:
            outputs = run_onnx(folder / entry["file"], inputs)
        for described, output in zip(entry["outputs"], outputs, strict=True):
            assert list(output.shape[1:]) == described["shape"][1:] and str(output.dtype) == described["dtype"]
            values[described["role"]] = output
        probabilities.append(values["probabilities"])
    return probabilities


def run_onnx(path: Path, inputs: list[np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: each for value, each in zip(session.get_inputs(), inputs, strict=True)})


def expected_probabilities(checkpoint: Path, images: np.ndarray) -> list[np.ndarray]:
    """From a model as users build it, by way of its logits."""
    model, _ = load_model(checkpoint)
    model.set_train(False)
    logits = [part.asnumpy() for part in model(Tensor(images))]
    exponentials = [np.exp(part - part.max(axis=1, keepdims=True)) for part in logits]
    return [part / part.sum(axis=1, keepdims=True) for part in exponentials]


T2T = {"image_size": 32, "soft_splits": ((6, 4, 1), (3, 2, 1))}


@pytest.mark.parametrize(
    ("name", "overrides"), [("dvt_deit_small", {}), pytest.param("dvt_t2t_vit_12", T2T, marks=pytest.mark.slow)]
)
def test_an_exported_checkpoint(name: str, overrides: dict, tmp_path: Path, graph_mode: None):
    checkpoint = make_checkpoint(tmp_path / "model.ckpt", name, **overrides)
    folder = tmp_path / "some" / "where"
    paths = export_checkpoint(str(checkpoint), folder, ["MINDIR", "ONNX"], "CPU")
    exits = [f"exit_{index}{suffix}" for index in range(2) for suffix in (".ascend.ini", ".mindir", ".onnx")]
    assert [path.name for path in paths] == [*exits, "manifest.json"]
    assert names_in(folder) == {path.name for path in paths}
    plain = tmp_path / "plain"
    plain.touch()
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {stat.S_IMODE(plain.stat().st_mode)}

    image_size = overrides.get("image_size", 24)
    images = bundles.photographs(6, image_size)
    expected = expected_probabilities(checkpoint, images)
    assert np.ptp(expected[0][:, 0]) > 1e-3  # images differ
    for graph_format in ("MINDIR", "ONNX"):
        for result, value in zip(run_exits(folder, graph_format, images), expected, strict=True):
            np.testing.assert_allclose(result, value, atol=1e-5)

    manifest = read_manifest(folder)
    model, _ = load_model(checkpoint)
    assert manifest.model == model.config
    assert manifest.class_names == bundles.CLASS_NAMES and manifest.preprocessing == preprocessing_of(image_size)
    assert manifest.thresholds["recommended"] == Setting((0.21, -1e8), 1.5, 65.0)
    assert manifest.cumulative_gmacs == cumulative_gmacs(model.config)
    assert manifest.versions["mindspore"] == ms.__version__
    for graphs in manifest.graphs.values():
        check_files(folder, graphs)
    for path in folder.glob("*.onnx"):
        onnx.checker.check_model(str(path), full_check=True)


@pytest.mark.parametrize("reuse", [{}, {"feature_reuse": False}, {"relation_reuse": False, "average_exits": True}])
def test_mindir_files_and_the_configuration_of_the_converter_have_the_names_of_the_manifest(
    reuse: dict, tmp_path: Path, graph_mode: None
):
    from mindspore.train import mind_ir_pb2

    model = bundles.model(**SMALL, **reuse)
    inputs, outputs = exit_values(model.config, 1)
    path = tmp_path / "exit_1.mindir"
    MindirWriter(model).save(1, inputs, path)
    message = mind_ir_pb2.ModelProto()
    message.ParseFromString(path.read_bytes())
    assert [value.name.rpartition(":")[2] for value in message.graph.input] == [value.name for value in inputs]

    given = [f"{value.name}:[-1,{','.join(map(str, value.shape[1:]))}]" for value in inputs]
    for precision, mode in (("float32", "preferred_fp32"), ("float16", "enforce_origin")):
        write_ascend_configs(tmp_path, GraphSet(precision, (describe_file(path, inputs, outputs),)), [1, 8])
        assert (tmp_path / "exit_1.ascend.ini").read_text().splitlines() == [
            "[ascend_context]",
            "input_shape=" + ";".join(given),
            "dynamic_dims=" + ";".join(["[1],[8]"] * len(given)),
            f"precision_mode={mode}",
        ]


def test_a_fixed_batch_replaces_an_earlier_export_and_nothing_else(tmp_path: Path, graph_mode: None):
    folder = tmp_path / "export"
    export_bundle(bundles.model(), folder, ["ONNX"])
    assert "exit_2.onnx" in names_in(folder)
    (folder / "exit_7.mindir").write_text("not of the manifest")
    (folder / "notes.txt").write_text("mine")
    checkpoint = make_checkpoint(tmp_path / "model.ckpt", relation_reuse=False)
    command = ["export", "--checkpoint", str(checkpoint), "--output", str(folder), "--batch_size", "2", "--replace"]
    assert cli.main(command) == 0
    assert names_in(folder) == {"exit_0.mindir", "exit_1.mindir", "manifest.json", "exit_7.mindir", "notes.txt"}

    images = bundles.photographs(5)  # padded to 6
    entry = read_manifest(folder).graphs["MINDIR"].exits[1]
    assert (entry.inputs[1].name, entry.inputs[1].shape) == ("features", (2, 5, 16))
    probabilities = expected_probabilities(checkpoint, images)
    threshold = float(np.median(probabilities[0].max(axis=1))) + 1e-5
    result = Cascade(folder, "mindspore").predict(images, [threshold, 0.0])
    leaves = probabilities[0].max(axis=1) >= threshold
    np.testing.assert_array_equal(result.exit_index, np.where(leaves, 0, 1))
    expected = np.where(leaves[:, None], probabilities[0], probabilities[1])
    np.testing.assert_allclose(result.probabilities, expected, atol=1e-5)


@pytest.mark.slow
def test_float16(tmp_path: Path, graph_mode: None):
    checkpoint = make_checkpoint(tmp_path / "model.ckpt")
    folder = tmp_path / "half"
    export_checkpoint(str(checkpoint), folder, ["MINDIR", "ONNX"], "CPU", precision="float16")
    images = bundles.photographs(6)
    expected = expected_probabilities(checkpoint, images)
    for graph_format in ("MINDIR", "ONNX"):
        assert read_manifest(folder).graphs[graph_format].precision == "float16"
        for result, value in zip(run_exits(folder, graph_format, images), expected, strict=True):
            np.testing.assert_allclose(result, value, atol=2e-2)


def test_a_file_that_computes_something_else_is_not_kept(
    tmp_path: Path, graph_mode: None, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "export"
    plain = OnnxWriter.__init__

    def slightly_off(self, config, weights, precision):
        other = {name: value * np.float32(1.001) if "head.weight" in name else value for name, value in weights.items()}
        plain(self, config, other, precision)

    monkeypatch.setattr(OnnxWriter, "__init__", slightly_off)
    model = bundles.model(grid_sizes=(2,))
    with pytest.raises(DVTError, match=r"exit_0\.onnx does not compute what the model does: its probabilities"):
        export_bundle(model, folder)
    assert not folder.exists()

    folder.mkdir()
    (folder / "manifest.json").write_text("of an earlier export")
    with pytest.raises(DVTError, match="Nothing was exported"):
        export_bundle(model, folder, replace=True)
    assert names_in(folder) == {"manifest.json"}


def test_the_largest_deviation_counts(tmp_path: Path, graph_mode: None, monkeypatch: pytest.MonkeyPatch):
    """A check that passes reports how far off the files were, relative to the largest value where that is above 1."""
    model = bundles.model()
    export_bundle(model, tmp_path / "export")
    cascade = Cascade(tmp_path / "export")
    plain = cascade.run_exit

    def slightly_off(index: int, *inputs: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        probabilities, handed_on = plain(index, *inputs)
        if index == 1:
            handed_on["relations"].ravel()[7] += 5e-6 * np.abs(handed_on["relations"]).max()
        return probabilities, handed_on

    monkeypatch.setattr(cascade, "run_exit", slightly_off)
    assert check(cascade, model) == pytest.approx(5e-6, rel=0.2)


def test_settings_of_a_checkpoint():
    settings = stored_settings(METADATA)
    assert list(settings) == ["recommended", "1_gmacs", "1.5_gmacs", "2_gmacs"]
    assert settings["1_gmacs"] == Setting((0.1, -1e8), 1.0, 50.0)
    without = {key: value for key, value in METADATA.items() if key != "thresholds"}
    assert next(iter(stored_settings(without))) == "2_gmacs"  # the most accurate
    assert list(stored_settings({"thresholds": [0.3, -np.inf]}).values()) == [Setting((0.3, -1e8))]
    assert stored_settings({}) == {}


def test_recommended_thresholds_that_are_none_of_the_sweep_keep_their_results():
    found = {"thresholds": [0.42, -1e8], "accuracy": 61.5, "expected_gmacs": 1.25, "exit_rule": {}}
    settings = stored_settings(METADATA | {"thresholds": found["thresholds"], "early_exit": found})
    assert settings["recommended"] == Setting((0.42, -1e8), 1.25, 61.5)
    assert settings["1_gmacs"] == Setting((0.1, -1e8), 1.0, 50.0)
    # Those of another rule than the confidence are not given to programs that compare confidences.
    assert "recommended" not in stored_settings(METADATA | {"thresholds": None, "early_exit": found})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"formats": ["TFLITE"]}, "unknown format TFLITE; give a list of MINDIR, ONNX, ONNX_INT8"),
        ({"formats": []}, "unknown format none"),
        ({"formats": "ONNX"}, "unknown format ONNX; give a list"),
        ({"precision": "int4"}, "precision is 'int4'; choose from float32, float16"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_sizes": [0]}, "batch_sizes is \\[0\\]"),
        ({"class_names": ["a"]}, "1 class_names for 5 classes"),
        ({"thresholds": [0.5]}, "3 exits need shape"),
        ({"formats": ["ONNX_INT8"]}, "made of float32 ONNX files: ask for both formats"),
        ({"formats": ["ONNX", "ONNX_INT8"]}, "give calibration images"),
        ({"formats": ["ONNX", "ONNX_INT8"], "precision": "float16"}, "with precision float32"),
    ],
)
def test_requests_that_cannot_be_met(arguments: dict, message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        export_bundle(bundles.model(), tmp_path / "x", **arguments)
    assert not (tmp_path / "x").exists()


def test_outputs_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    checkpoint = make_checkpoint(tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        export_checkpoint(str(tmp_path / "other.ckpt"), tmp_path / "x", ["MINDIR"], "CPU")
    assert not (tmp_path / "x").exists()
    for output in (checkpoint, checkpoint / "below", Path("/proc/export")):
        assert cli.main(["export", "--checkpoint", str(checkpoint), "--output", str(output)]) == 2
        assert f"cannot write to the output folder {output}" in capsys.readouterr().err
    command = ["export", "--checkpoint", str(checkpoint), "--format", "ONNX,ONNX_INT8"]
    assert cli.main(command) == 2
    assert "does not say which data set it was trained on" in capsys.readouterr().err


def test_int8_takes_the_calibration_images_of_the_training_run(
    tmp_path: Path, graph_mode: None, capsys: pytest.CaptureFixture[str]
):
    data = tmp_path / "data"
    for part in ("train", "val"):
        for name, picture in zip("ab", load_sample_images().images, strict=True):
            (data / part / name).mkdir(parents=True)
            for index in range(8):
                Image.fromarray(picture[30 * index :][:160, :200]).save(data / part / name / f"{index}.png")
    config = RunConfig(data=DataSection(dataset="image_folder", path="/moved/away", calibration_images=10))
    model = bundles.model(grid_sizes=(2, 4), num_classes=2)
    certificate = Certificate((0.6, -1e8), "changes", 5.0, 0.95, 100, 65, "test", 1.5, 4.5, 5.0, 0.2, 0.25, 0)
    found = {"thresholds": [0.6, -1e8], "accuracy": 61.5, "expected_gmacs": 1.25, "certificate": certificate.to_json()}
    saved = {"thresholds": [0.6, -1e8], "early_exit": found, "config": config_to_dict(config)}
    save_checkpoint(tmp_path / "model.ckpt", model, saved)
    command = ["export", "--checkpoint", str(tmp_path / "model.ckpt"), "--format", "ONNX,ONNX_INT8"]
    command += ["--calibration_path", str(data), "--calibration_images", "6"]
    assert cli.main(command) == 0

    folder = tmp_path / "export"
    splits = load_splits(DataSection(dataset="image_folder", path=str(data), calibration_images=10), 24, 0)
    images, labels = splits.batch("calibration", [0, 1, 3, 5, 7, 9])  # six of ten, evenly spread
    measured = read_manifest(folder).graphs["ONNX_INT8"].details["measured"]
    assert measured["calibration_images"] == 6
    exact, quantised = (Cascade(folder, graph_format=name).all_exits(images) for name in ("ONNX", "ONNX_INT8"))
    for key, probabilities in (("float32", exact), ("this", quantised)):
        accuracy = 100 * (probabilities.argmax(axis=2) == labels).mean(axis=1)
        np.testing.assert_allclose(measured["accuracy_per_exit"][key], accuracy)
    assert np.abs(exact - quantised).max() < 0.2

    # The float32 files compute what was certified; the others do not, and the model was trained on these images.
    capsys.readouterr()
    assert cli.main(["info", str(folder)]) == 0
    onnx, int8 = capsys.readouterr().out.split("settings of ")[1:]
    assert certificate.promise() in onnx and certificate.evidence() in onnx
    assert "certified: trained on these images" in int8 and certificate.promise() not in int8
    config.data.hold_out_calibration = True
    for count, expected in ((16, None), (15, "the images are not those of the run: train had 15 images and has 16")):
        saved |= {"config": config_to_dict(config), "images": {"train": splits.identity()["train"] | {"images": count}}}
        save_checkpoint(tmp_path / "model.ckpt", model, saved)
        assert _calibration_of_run("model", read_checkpoint(tmp_path / "model.ckpt"), str(data), 6)[2] == expected


@pytest.mark.slow
def test_the_entry_script(tmp_path: Path):
    checkpoint = make_checkpoint(tmp_path / "model.ckpt")
    script = Path(__file__).parents[2] / "export.py"
    command = [sys.executable, str(script), "--checkpoint", str(checkpoint), "--device-target", "CPU"]
    done = subprocess.run(
        [*command, "--format", "ONNX"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert names_in(tmp_path / "export") == {"exit_0.onnx", "exit_1.onnx", "manifest.json"}
    assert names_in(tmp_path) == {"model.ckpt", "export"}
