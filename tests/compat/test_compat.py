"""Files that version 0.1.0 wrote still load, and mean what they meant.

The fixtures were made by `make_fixtures.py` on 0.1.0 and are never made again: checkpoints, the folders of two
interrupted runs, bundles, predictions and configurations, packed as 0.1.0 wrote them, and beside them what 0.1.0
computed with them. Only names that users import are imported, and the entry scripts are called as
users call them. Later versions may know more keys than 0.1.0; those that it knew must keep their values.
"""

import csv
import importlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import compat_recipes as recipes
import numpy as np
import pytest
import yaml
from dvt.exit_rules import ExitRule
from dvt.outcomes import Predictions
from dvt.variants import ModelConfig
from PIL import Image

import dvt
from dvt.checkpoint import load_model, read_checkpoint
from dvt.config import DataSection
from dvt.data import load_splits
from dvt.deploy import Cascade
from dvt.report import Results

ROOT = Path(__file__).parents[2]
FIXTURES = Path(__file__).parent / "fixtures"
TOLERANCE = 1e-6
RUNTIME_TOLERANCE = 1e-5  # of exported files, whose runtimes choose other kernels from release to release

EVALUATED = ("evaluated_plain", "evaluated_margin")
BUNDLES = (
    ("bundle", "onnxruntime", "ONNX"),
    ("bundle", "onnxruntime", "ONNX_INT8"),
    ("bundle", "mindspore", "MINDIR"),
    ("bundle_averaged", "mindspore", "MINDIR"),
)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what 0.1.0 wrote, unpacked; tests copy what they change."""
    folder = tmp_path_factory.mktemp("written_by_0_1_0")
    for name in ("runs", "models"):
        with tarfile.open(FIXTURES / f"{name}.tar.xz") as packed:
            packed.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of the runs, made again."""
    return recipes.write_images(tmp_path_factory.mktemp("data") / "images")


# ---------------------------------------------------------------------------------------------------- checkpoints


def test_weights_of_a_run_load(written: Path) -> None:
    model, loaded = load_model(written / "run/last.ckpt")
    assert set(model.parameters_dict()) == set(loaded.weights)
    assert loaded.metadata["class_names"] == list(recipes.CLASSES)
    assert loaded.metadata["step"] == recipes.STOPPED_AFTER
    assert loaded.model.grid_sizes == (2, 4)
    averages = {
        name.removeprefix("ema."): value for name, value in read_state(written / "run").items() if "ema." in name
    }
    for name, value in averages.items():
        np.testing.assert_array_equal(loaded.weights[name], value)


@pytest.mark.parametrize("run", ["run", "sgd_run"])
def test_state_of_a_run_loads(written: Path, run: str) -> None:
    checkpoint = read_checkpoint(written / run / "state.ckpt")
    assert checkpoint.metadata["step"] == recipes.STOPPED_AFTER
    assert checkpoint.metadata["unfinished_epoch"] is None
    assert checkpoint.metadata["config"]["output"] == run


@pytest.mark.parametrize("name", EVALUATED)
def test_evaluated_checkpoint_classifies_as_before(written: Path, name: str) -> None:
    model, loaded = load_model(written / name / "model.ckpt")
    stored, expected = loaded.metadata["early_exit"], load(f"{name}.npz")
    rule = ExitRule.from_dict(stored["exit_rule"])
    assert rule.name == {"evaluated_plain": "confidence", "evaluated_margin": "margin"}[name]
    assert (loaded.metadata.get("thresholds") is not None) == (name == "evaluated_plain")
    classifier = dvt.AdaptiveClassifier(model, stored["thresholds"], batch_sizes=[24], rule=rule)
    pictures = recipes.inputs()
    np.testing.assert_allclose(classifier.all_exits(pictures), expected["probabilities"], rtol=0, atol=TOLERANCE)
    check_predictions(classifier.predict(pictures), expected, "stored_{}")
    classifier.rule = ExitRule()
    spread = classifier.predict(pictures, expected["spread_thresholds"])
    check_predictions(spread, expected, "spread_{}")


def test_t2t_checkpoint_computes_as_before(written: Path) -> None:
    model, loaded = load_model(written / "t2t.ckpt")
    assert loaded.model.soft_splits == ((6, 4, 1), (3, 2, 1))
    found = dvt.AdaptiveClassifier(model, batch_sizes=[8]).all_exits(recipes.inputs(8, 1, 32))
    np.testing.assert_allclose(found, load("t2t.npz")["probabilities"], rtol=0, atol=TOLERANCE)


# ---------------------------------------------------------------------------------------------------- evaluations


@pytest.mark.parametrize("name", EVALUATED)
def test_predictions_load(written: Path, name: str) -> None:
    predictions = Predictions.load(written / name)
    text = (written / name / "results.json").read_text(encoding="utf-8")
    results = json.loads(text)
    again = json.loads(Results.from_json(text).to_json())
    for found, stored in ((again, results), (again["recommended"], results["recommended"])):
        assert not any(found.pop(key) for key in found.keys() - stored.keys())  # what 0.1.0 did not know is empty
    for key in ("settings", "moving_fraction"):
        results["throughput"].pop(key)
    for key in ("calibration_accuracy", "calibration_gmacs"):
        results["frontier"].pop(key)
    gone = ("rules", "searches", "reliability", "per_class")
    assert again == {key: value for key, value in results.items() if key not in gone}
    assert predictions.val.accuracy == pytest.approx(results["anytime_accuracy"])
    assert predictions.calibration is not None and predictions.exit_index is not None
    assert predictions.thresholds == pytest.approx(results["recommended"]["thresholds"])
    np.testing.assert_allclose(predictions.cumulative_gmacs, results["cumulative_gmacs"])
    assert (predictions.temperatures is None) == (name == "evaluated_plain")


@pytest.mark.parametrize("name", EVALUATED)
def test_thresholds_come_from_stored_predictions_as_before(
    written: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        dvt_command(["thresholds", str(written / name / "predictions.npz"), "--json", "--max_accuracy_drop", "5"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    check_same(found, json.loads((FIXTURES / f"{name}_thresholds.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", EVALUATED)
def test_stored_results_are_printed_as_before(
    written: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = script("eval.py", ["--checkpoint", written / name / "model.ckpt", "--mode", "0"], capsys, monkeypatch)
    assert printed == (FIXTURES / f"{name}_mode_0.txt").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), [("evaluated_plain", 1), ("evaluated_margin", 1), ("evaluated_margin", 2)])
def test_evaluation_gives_what_it_gave(written: Path, images: Path, tmp_path: Path, name: str, mode: int) -> None:
    """With the data and evaluation keys that the checkpoint holds, and in mode 1 with its thresholds."""
    before = json.loads((written / name / "results.json").read_text(encoding="utf-8"))
    more = ["--mode", mode, "--output", tmp_path]
    tolerance = 1e-2 if mode == 2 else 1e-5  # the fit of a temperature stops where the loss is flat
    if mode == 2:
        budget = before["config"]["eval"]["budget_gmacs"]
        more += ["--eval.exit_rule", "margin", "--eval.temperature_scaling", "--budget_gmacs", budget]
        more += ["--eval.confidence", "none"]  # 0.1.0 chose on all calibration images
    call("eval.py", ["--checkpoint", written / name / "model.ckpt", *more], images.parent)
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    for key in ("model", "num_images", "class_names", "cumulative_gmacs", "anytime_accuracy", "sweep"):
        check_same(found[key], before[key], key)
    for key in ("thresholds", "accuracy", "expected_gmacs", "exit_fractions", "exit_rule"):
        check_same(found["recommended"][key], before["recommended"][key], key, tolerance)
    one, other = Predictions.load(tmp_path), Predictions.load(written / name)
    np.testing.assert_array_equal(one.val.predicted, other.val.predicted)
    np.testing.assert_array_equal(one.exit_index, other.exit_index)
    for rule, scores in other.val.scores.items():
        np.testing.assert_allclose(one.val.scores[rule], scores, rtol=0, atol=tolerance)


# -------------------------------------------------------------------------------------------------- resumed runs


def test_interrupted_run_is_resumed_to_the_same_end(written: Path, images: Path, tmp_path: Path) -> None:
    """AdamW, moving average, clipping, distillation, dropout, stochastic depth, mixup, cutmix, RandAugment."""
    check_run(resumed(written / "run", images, tmp_path))


@pytest.mark.slow
def test_interrupted_run_with_sgd_and_mixed_precision_is_resumed(written: Path, images: Path, tmp_path: Path) -> None:
    """SGD, O1, loss scale, accumulation, shared blocks; the first exit alone came first."""
    check_run(resumed(written / "sgd_run", images, tmp_path))


@pytest.mark.slow
def test_state_before_a_damaged_one_is_resumed(written: Path, images: Path, tmp_path: Path) -> None:
    """A kill can leave a torn state.ckpt; state_previous.ckpt, written by 0.1.0 in the same format, takes its place."""
    shutil.copytree(written / "run", tmp_path / "damaged")
    state = tmp_path / "damaged/state.ckpt"
    shutil.copyfile(state, state.with_name("state_previous.ckpt"))
    state.write_bytes(state.read_bytes()[:50_000])
    check_run(resumed(tmp_path / "damaged", images, tmp_path / "work"), "run")


def check_run(run: Path, name: str | None = None) -> None:
    """Compares the end of a resumed run with that of the unbroken one under 0.1.0."""
    name = name or run.name
    expected = json.loads((FIXTURES / f"{name}_expected.json").read_text(encoding="utf-8"))
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(expected["metrics_resumed"])
    for row, before in zip(rows, expected["metrics_resumed"], strict=True):
        found = {key: float(row[key]) for key in before}
        assert found == pytest.approx(before, rel=0, abs=TOLERANCE)
    losses = np.asarray(expected["step_losses"][-(len(expected["step_losses"]) // 3) :])  # of the last of three epochs
    last = [float(value) for key, value in rows[-1].items() if key.startswith("loss_exit_")]
    np.testing.assert_allclose(last, losses.mean(axis=0), rtol=0, atol=TOLERANCE)
    check_weights(read_checkpoint(run / "state.ckpt").weights, expected["state"])
    end = read_checkpoint(run / "last.ckpt")
    check_weights(end.weights, expected["last"])
    check_same(end.metadata, expected["last_metadata"])


def resumed(folder: Path, images: Path, work: Path) -> Path:
    """A copy of a run folder after `train.py --resume`, called where its relative paths lead to the data set."""
    work.mkdir(exist_ok=True)
    (work / "images").symlink_to(images)
    name = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["output"]
    shutil.copytree(folder, work / name)
    said = call("train.py", ["--output", name, "--resume"], work)
    assert f"resuming after step {recipes.STOPPED_AFTER} of {recipes.RUN_STEPS}" in said
    return work / name


# ------------------------------------------------------------------------------------------------------- bundles


@pytest.mark.parametrize(("name", "backend", "graph_format"), BUNDLES)
def test_bundle_classifies_as_before(written: Path, name: str, backend: str, graph_format: str) -> None:
    expected, pictures = load(f"{name}_{graph_format.lower()}.npz"), recipes.inputs()
    with Cascade(written / name, backend, graph_format) as cascade:
        assert cascade.class_names == list(recipes.CLASSES)
        found = cascade.all_exits(pictures)
        np.testing.assert_allclose(found, expected["probabilities"], rtol=0, atol=RUNTIME_TOLERANCE)
        for share in ("0.3", "0.6"):
            result = cascade.predict(pictures, expected[f"thresholds_{share}"].tolist())
            check_predictions(result, expected, "{}_" + share, RUNTIME_TOLERANCE)
        np.testing.assert_array_equal(cascade.predict(pictures).labels, expected["default_labels"])


def test_preprocessing_of_a_bundle_is_as_before(written: Path, images: Path) -> None:
    with Cascade(written / "bundle") as cascade, Image.open(images / f"val/{recipes.CLASSES[2]}/003.png") as picture:
        assert next(iter(cascade.thresholds)) == "recommended"
        np.testing.assert_array_equal(cascade.preprocessing(picture), load("bundle_onnx.npz")["preprocessed"])


def test_data_set_is_read_as_before(written: Path, images: Path) -> None:
    """The keys of the data section that a checkpoint holds make the same splits and pixels."""
    loaded = read_checkpoint(written / "run/last.ckpt")
    section = DataSection(**{**loaded.metadata["config"]["data"], "path": str(images)})
    splits = load_splits(section, loaded.model.image_size, loaded.metadata["config"]["seed"])
    assert {name: splits.sizes[name] for name in ("train", "calibration", "val")} == {
        "train": 72,
        "calibration": 24,
        "val": 36,
    }
    check_same(splits.preprocessing, loaded.metadata["preprocessing"])
    pixels, labels = splits.batch("val", np.array([27]))
    np.testing.assert_array_equal(pixels[0], load("bundle_onnx.npz")["preprocessed"])
    assert labels.tolist() == [2]


# ------------------------------------------------------------------------------------------------ configurations


@pytest.mark.parametrize("file", ["wide.yaml", "saved_by_run.yaml"])
def test_configuration_resolves_as_before(
    file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = json.loads((FIXTURES / "configs/resolved.json").read_text(encoding="utf-8"))["files"][file]
    check_same(printed_config(FIXTURES / "configs" / file, capsys, monkeypatch), expected)


def test_model_keys_describe_the_same_model() -> None:
    """ModelConfig as checkpoints and manifests hold it."""
    stored = json.loads((FIXTURES / "configs/resolved.json").read_text(encoding="utf-8"))["wide_model"]
    check_same(json.loads(json.dumps(ModelConfig.from_dict(stored).to_dict())), stored)


def test_recipes_resolve_as_before(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe that was meant to change is changed in `resolved_recipes.json` too, by hand."""
    for file, values in json.loads((FIXTURES / "resolved_recipes.json").read_text(encoding="utf-8"))["values"].items():
        check_same(printed_config(ROOT / "config" / file, capsys, monkeypatch), values, file)


def printed_config(file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `train.py --print_config` makes of a file."""
    return yaml.safe_load(script("train.py", ["--config", file, "--print_config"], capsys, monkeypatch))


# --------------------------------------------------------------------------------------------------------- names


GONE = {
    "dvt.budgets.setting": "evaluate_thresholds gives the same, typed",
    "dvt.calibration.reliability": "the report draws no reliability; certificates say what confidence is worth",
    "dvt.cluster.scaling": "a tool for planning, no part of the package: benchmarks/scaling_model.py",
    "dvt.kernels.disabled": "DVT_KERNELS=0 and build_model(..., kernels=False) do the same",
    "dvt.value_checks.check_values": "stood in an import line of a guide; check_fields reads the bounds of the fields",
}


@pytest.mark.filterwarnings("ignore:dvt:DeprecationWarning")
def test_public_names_are_still_there() -> None:
    """Every name of the package that pages of the documentation and examples of 0.1.0 use."""
    names = json.loads((FIXTURES / "public_names.json").read_text(encoding="utf-8"))
    assert len(names) > 80
    assert [name for name in names if name not in GONE and not recipes.resolves(name)] == []


# ------------------------------------------------------------------------------------------------------- helpers


def load(name: str) -> dict[str, np.ndarray]:
    """All arrays of an npz file of the fixtures."""
    with np.load(FIXTURES / name, allow_pickle=False) as stored:
        return dict(stored)


def read_state(run: Path) -> dict[str, np.ndarray]:
    return read_checkpoint(run / "state.ckpt").weights


def check_predictions(found: Any, expected: Mapping[str, np.ndarray], names: str, tolerance: float = TOLERANCE) -> None:
    np.testing.assert_array_equal(found.exit_index, expected[names.format("exit_index")])
    np.testing.assert_array_equal(found.labels, expected[names.format("labels")])
    np.testing.assert_allclose(found.confidence, expected[names.format("confidence")], rtol=0, atol=tolerance)


def check_weights(weights: Mapping[str, np.ndarray], expected: Mapping[str, list[float]]) -> None:
    """Sums over tensors; a sum of n numbers may be off by the square root of n times what each may be."""
    found = recipes.summed_up(weights)
    assert set(found) >= set(expected)
    for name, sums in expected.items():
        allowed = tolerance_of(name) * np.sqrt(weights[name].size) * 3
        np.testing.assert_allclose(found[name], sums, rtol=1e-6, atol=allowed, err_msg=name)


def tolerance_of(name: str) -> float:
    """How far a trained weight, or what an optimizer keeps of it, may be off.

    These biases add the same number to all logits of a softmax: their gradients are rounding alone, which AdamW
    enlarges to steps of full size. Nothing that the model computes depends on them.
    """
    if name.endswith(("relation_reuse.fc2.bias", "attn.qkv.bias")):
        return 1e-3
    return 1e-5 if name.startswith("sgd_velocity") else TOLERANCE


def check_same(found: Any, expected: Any, where: str = "", tolerance: float = TOLERANCE) -> None:
    """What `expected` holds is in `found`, numbers to rounding; keys that came later are let through."""
    if isinstance(expected, Mapping):
        for key, value in expected.items():
            assert key in found, f"{where}.{key} is missing"
            check_same(found[key], value, f"{where}.{key}", tolerance)
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            check_same(one, other, f"{where}[{number}]", tolerance)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance), where
    else:
        assert found == expected, where


def dvt_command(arguments: list[str]) -> int:
    """The exit code of the command `dvt`, found where the package declares it, run in this process."""
    declared = re.search(
        r'^dvt = "([\w.]+):(\w+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    return getattr(importlib.import_module(declared[1]), declared[2])(arguments)


def script(name: str, arguments: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What an entry script prints, run in this process."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / name), run_name="__main__")
    captured = capsys.readouterr()
    assert not end.value.code, captured.err
    return captured.out


def call(name: str, arguments: list[Any], folder: Path) -> str:
    """What an entry script says on standard error, run in a process of its own with `folder` as working folder."""
    command = [sys.executable, str(ROOT / name), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stderr
