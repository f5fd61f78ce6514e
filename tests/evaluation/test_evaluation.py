"""Evaluation of a checkpoint on a small folder of images: every mode, every number recomputed, every refusal."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dvt
from dvt import early_exit
from dvt.checkpoint import read_checkpoint, save_checkpoint
from dvt.config import RunConfig
from dvt.config.files import config_from_dict, config_to_dict
from dvt.errors import CheckpointError, ConfigError
from dvt.evaluation import evaluate_checkpoint
from dvt.evaluation.predict import Predictor
from dvt.report import Results

WRITTEN_BY_0_1_0 = Path(__file__).parent / "results_0.1.0.json"
SIZE = {"image_size": 24, "grid_sizes": (2, 3, 4), "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_hidden": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of coloured noise: 10 images each to calibrate on, 7 each to validate: not whole batches."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 7)):
        for channel, name in enumerate(("red", "green", "blue")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 90, (30, 40, 3), np.uint8)
                pixels[..., channel] += 100
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A model with random weights, the same with any MindSpore, steep enough for its confidences to differ."""
    import mindspore as ms

    model, rng = dvt.build_model("dvt_deit_small", num_classes=3, **SIZE), np.random.default_rng(32)
    for parameter in model.trainable_params():
        if parameter.ndim > 1 or parameter.name.endswith("bias"):
            parameter.set_data(ms.Tensor(0.05 * rng.standard_normal(parameter.shape, np.float32)))
    for exit_ in model.exits:
        exit_.head.weight.set_data(exit_.head.weight * 20)
    save_checkpoint(tmp_path / "model.ckpt", model, {"class_names": ["blue", "green", "red"]})
    return tmp_path / "model.ckpt"


def config(folder: Path, **eval_keys: object) -> RunConfig:
    return config_from_dict(
        {
            "data": {"path": str(folder), "calibration_images": 30},
            "eval": {"batch_size": 8, "throughput_images": 16, **eval_keys},
            "device_target": "CPU",
        }
    )


def test_mode_2_then_1_then_0(folder: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    report = tmp_path / "report"
    results = evaluate_checkpoint(str(checkpoint), 2, config(folder, store=True, keep_probabilities=True), str(report))
    assert Results.from_json((report / "results.json").read_text()) == results
    assert (report / "report.html").stat().st_size > 10_000

    saved = np.load(report / "predictions.npz")
    probabilities, labels = saved["probabilities"], saved["labels"]
    assert probabilities.shape == (3, 21, 3) and np.bincount(labels).tolist() == [7, 7, 7]  # every image once
    np.testing.assert_allclose(probabilities.sum(axis=2), 1, atol=1e-5)
    for k in range(3):
        expected = 100 * (probabilities[k].argmax(axis=1) == labels).mean()
        assert results.anytime_accuracy[k] == pytest.approx(expected)
    for row in (0, 30, 58):
        sweep = results.sweep
        accuracy, cost = early_exit.evaluate(
            probabilities, labels, results.cumulative_gmacs, np.float32(sweep.thresholds[row])
        )
        assert (sweep.accuracy[row], sweep.expected_gmacs[row]) == pytest.approx((accuracy, cost))
    chosen = np.float32(results.recommended.thresholds)
    exit_index = early_exit.assign_exits(probabilities.max(axis=2), chosen)
    np.testing.assert_array_equal(saved["exit_index"], exit_index)
    assert results.recommended.exit_fractions == pytest.approx(np.bincount(exit_index, minlength=3) / 21)
    assert sum(group.count for group in results.per_class.values()) == 21
    measured = results.throughput
    assert measured.num_images == 16 and measured.all_exits_images_per_second > 0
    slowest, fastest = measured.all_exits_range
    assert slowest <= measured.all_exits_images_per_second <= fastest
    low, high = measured.images_per_second_range
    assert low / fastest <= measured.speed_up <= high / slowest
    assert 0 < measured.moving_fraction < 1

    stored = read_checkpoint(checkpoint).metadata
    assert np.shape(stored["results"]["dynamic_threshold"]) == (59, 3)
    shutil.copytree(folder / "val", tmp_path / "images" / "val")  # mode 1 uses no training image
    again = evaluate_checkpoint(
        str(checkpoint), 1, config(tmp_path / "images", throughput_images=0), str(tmp_path / "again")
    )
    assert again.throughput is None and again.cumulative_seconds is None
    assert "its speed was not measured" in (tmp_path / "again" / "report.html").read_text()
    assert again.sweep == results.sweep
    assert again.recommended.accuracy == results.recommended.accuracy

    capsys.readouterr()
    assert evaluate_checkpoint(str(checkpoint), 0, config(folder), str(tmp_path / "unused")) is None
    printed = capsys.readouterr().out
    assert f"exit 3: top-1 {results.anytime_accuracy[2]:.2f} %" in printed
    assert len([line for line in printed.splitlines() if "GMACs: top-1" in line]) == 59
    assert not (tmp_path / "unused").exists()


def test_results_are_those_of_0_1_0(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    """The same evaluation gave `results_0.1.0.json`, where place and machine were then made neutral."""
    text = WRITTEN_BY_0_1_0.read_text()
    expected = json.loads(text)
    del expected["rules"], expected["searches"]
    assert json.loads(Results.from_json(text).to_json()) == expected
    evaluate_checkpoint(str(checkpoint), 2, config(folder, temperature_scaling=True), str(tmp_path))
    written = json.loads((tmp_path / "results.json").read_text())
    for key in ("checkpoint", "date", "machine", "cumulative_seconds"):
        del written[key], expected[key]
    written["config"]["data"]["path"] = expected["config"]["data"]["path"]
    for results in (written, expected):
        speeds = results.pop("throughput")
        results["throughput"] = {key: value for key, value in speeds.items() if not MEASURED.search(key)}
        results["throughput"]["settings"] = [without_speeds(each) for each in speeds["settings"]]
        results["recommended"] = without_speeds(results["recommended"])
    assert_alike(written, expected)


MEASURED = re.compile("images_per_second|range|moving|speed_up")


def without_speeds(setting: dict) -> dict:
    """With None in place of what was measured."""
    return {key: None if MEASURED.search(key) else value for key, value in setting.items()}


def assert_alike(found: object, expected: object) -> None:
    """The same keys, and the same values to float rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_alike(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    else:
        assert found == (pytest.approx(expected, rel=1e-3) if isinstance(expected, float) else expected)


def test_what_a_converted_file_does_not_say_is_stored_with_its_thresholds(
    folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    loaded = read_checkpoint(checkpoint)
    del loaded.metadata["class_names"]
    save_checkpoint(checkpoint, loaded.weights, loaded.metadata)
    with pytest.raises(CheckpointError, match="--mode 2 --eval.store"):
        Predictor(str(checkpoint))
    results = evaluate_checkpoint(str(checkpoint), 2, config(folder, store=True), str(tmp_path / "report"))

    pictures = sorted((folder / "val").glob("*/*.png"))  # in the order of the evaluation
    predict = Predictor(str(checkpoint))
    assert predict.class_names == ["blue", "green", "red"]
    right = [predict(str(picture)).classes[0] == picture.parent.name for picture in pictures]
    assert 100 * np.mean(right) == pytest.approx(results.recommended.accuracy)


def test_modes_0_and_1_need_stored_thresholds(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    for mode in (0, 1):
        with pytest.raises(CheckpointError, match="--mode 2 --eval.store"):
            evaluate_checkpoint(str(checkpoint), mode, config(folder), str(tmp_path / "report"))


def test_another_data_set_is_refused(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for split in ("train", "val"):
        for name in ("red", "green", "azure"):
            target = tmp_path / "more" / split / name
            target.mkdir(parents=True)
            source = folder / split / ("blue" if name == "azure" else name)
            for image in source.iterdir():
                (target / image.name).write_bytes(image.read_bytes())
    with pytest.raises(CheckpointError, match="'blue'.*'azure'"):
        evaluate_checkpoint(str(checkpoint), 2, config(tmp_path / "more"), str(tmp_path / "report"))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        evaluate_checkpoint(str(tmp_path / "no.ckpt"), 2, config(folder), str(tmp_path / "report"))


def test_refusals_of_what_would_be_silently_wrong(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="eval.store needs --mode 2"):
        evaluate_checkpoint(str(checkpoint), 1, config(folder, store=True), str(tmp_path / "report"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to the output folder"):
        evaluate_checkpoint(str(checkpoint), 2, config(folder), str(tmp_path / "file"))
    loaded = read_checkpoint(checkpoint)
    trained = config(folder)
    trained.data.hold_out_calibration = True
    trained.data.calibration_images = 6
    metadata = loaded.metadata | {"config": config_to_dict(trained), "preprocessing": {"mean": [0.1] * 3}}
    save_checkpoint(checkpoint, loaded.weights, metadata)
    with pytest.raises(CheckpointError, match="normalised with mean"):
        evaluate_checkpoint(str(checkpoint), 2, trained, str(tmp_path / "report"))
    save_checkpoint(checkpoint, loaded.weights, metadata | {"preprocessing": None})
    trained.data.calibration_images = 9
    with pytest.raises(ConfigError, match="data.calibration_images is 9"):
        evaluate_checkpoint(str(checkpoint), 2, trained, str(tmp_path / "report"))
