"""Evaluation of a checkpoint on a small folder of images: every mode, every number recomputed, every refusal."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dvt
from dvt import early_exit
from dvt.checkpoint import read_checkpoint, save_checkpoint
from dvt.cli import main as cli
from dvt.config import RunConfig
from dvt.config.files import config_from_dict, config_to_dict
from dvt.data import load_splits
from dvt.early_exit.candidates import CalibrationSet, parts
from dvt.early_exit.certify import certify
from dvt.early_exit.outcomes import StoredPredictions
from dvt.errors import CheckpointError, ConfigError, DataError
from dvt.evaluation import evaluate_checkpoint
from dvt.evaluation.predict import Predictor
from dvt.evaluation.stored import unfit_calibration
from dvt.report import Results

CERTAINTY = ("gmacs_bound", "certificate", "not_certified", "class_drops")
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
    assert "Not certified: trained on these images" in (report / "report.html").read_text()
    chosen = np.float32(results.recommended.thresholds)
    exit_index = early_exit.assign_exits(probabilities.max(axis=2), chosen)
    np.testing.assert_array_equal(saved["exit_index"], exit_index)
    assert results.recommended.exit_fractions == pytest.approx(np.bincount(exit_index, minlength=3) / 21)
    for each in results.recommended.class_drops:
        right = (probabilities.argmax(axis=2)[exit_index, np.arange(21)] == labels)[labels == each.label]
        assert (each.images, each.accuracy) == (7, pytest.approx(100 * right.mean()))
    measured = results.throughput
    assert measured.num_images == 16 and measured.all_exits_images_per_second > 0
    slowest, fastest = measured.all_exits_range
    assert slowest <= measured.all_exits_images_per_second <= fastest
    low, high = measured.images_per_second_range
    assert low / fastest <= measured.speed_up <= high / slowest

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
    for gone in ("rules", "searches", "reliability", "per_class"):
        del expected[gone]
    for gone in ("calibration_accuracy", "calibration_gmacs"):
        del expected["frontier"][gone]
    for gone in ("settings", "moving_fraction"):
        del expected["throughput"][gone]
    again = json.loads(Results.from_json(text).to_json())
    assert not any(again["recommended"].pop(key) for key in CERTAINTY)  # 0.1.0 had no certificates
    assert again.pop("classes_present") is None
    assert again == expected
    evaluate_checkpoint(str(checkpoint), 2, config(folder, temperature_scaling=True), str(tmp_path))
    written = json.loads((tmp_path / "results.json").read_text())
    for key in ("checkpoint", "date", "machine", "cumulative_seconds"):
        del written[key], expected[key]
    written["config"]["data"]["path"] = expected["config"]["data"]["path"]
    assert written["config"]["data"].pop("class_map") is None and written.pop("classes_present") is None  # newer
    for key in ("confidence", "risk", "on_uncertified"):
        del written["config"]["eval"][key]
    for key in ("exit_lr_scales", "init_exits"):
        assert written["config"]["train"].pop(key) is None
    *nothing, why, drops = (written["recommended"].pop(key) for key in CERTAINTY)
    assert nothing == [None, None] and why.startswith("trained on these images") and len(drops) == 3
    for results in (written, expected):
        speeds = results.pop("throughput")
        results["throughput"] = {key: value for key, value in speeds.items() if not MEASURED.search(key)}
        results["recommended"] = without_speeds(results["recommended"])
    assert_alike(written, expected)


MEASURED = re.compile("images_per_second|range|speed_up")


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


def test_certified_where_the_model_was_trained_without_the_images(
    folder: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    asked = config(folder, max_accuracy_drop=90.0, temperature_scaling=True, store=True, keep_probabilities=True)
    asked.data.hold_out_calibration, asked.data.calibration_images = True, 24
    loaded = read_checkpoint(checkpoint)
    splits = load_splits(asked.data, 24, asked.seed)
    assert (
        unfit_calibration(loaded, asked, splits) == "the checkpoint does not say which images the model was trained on"
    )
    for keys in ({"on_uncertified": "fail"}, {"risk": "changes"}):
        with pytest.raises(ConfigError, match="not certified: trained on these images"):
            evaluate_checkpoint(str(checkpoint), 2, config(folder, **keys), str(tmp_path))
    begun = loaded.metadata | {"config": config_to_dict(asked), "images": splits.identity()}
    one_more = replace(loaded, metadata=begun | {"images": {"train": splits.identity()["train"] | {"images": 29}}})
    assert unfit_calibration(one_more, asked, splits).endswith("train had 29 images and has 30")
    save_checkpoint(checkpoint, loaded.weights, begun)

    found = evaluate_checkpoint(str(checkpoint), 2, asked, str(tmp_path)).recommended
    promise = found.certificate.promise()
    assert found.certificate.images == 24 and found.certificate.limit == 90 and found.certificate.exif is False
    assert promise in capsys.readouterr().out
    assert promise.partition("%, ")[2] in (tmp_path / "report.html").read_text()
    stored = StoredPredictions.load(tmp_path)
    assert stored.unfit == ""
    images = CalibrationSet(
        stored.calibration.scores["confidence"],
        stored.calibration.predicted,
        stored.cumulative_gmacs,
        stored.calibration.labels,
    )
    again = certify(images, "accuracy_drop", 90)
    assert again.thresholds == found.certificate.thresholds == tuple(found.thresholds)
    first = stored.calibration.chosen(parts(24)[0])  # what temperatures are fitted on
    assert len(first.labels) == 8 and stored.temperatures is not None

    for words in (["thresholds", str(tmp_path), "--max-accuracy-drop", "90"], ["info", str(checkpoint)]):
        assert cli.main(words) == 0
        assert promise in capsys.readouterr().out
    asked.eval.store = False
    assert evaluate_checkpoint(str(checkpoint), 1, asked, str(tmp_path / "again")).recommended.certificate == (
        found.certificate
    )


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


def test_a_photograph_on_its_side_is_turned_unless_exif_is_ignored(
    folder: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    evaluate_checkpoint(str(checkpoint), 2, config(folder, store=True, throughput_images=0), str(tmp_path))
    upright = Image.open(folder / "val" / "red" / "0.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "stored.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by 90 degrees clockwise to see it upright
    Image.open(tmp_path / "stored.png").save(tmp_path / "photo.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    capsys.readouterr()
    asked = [str(tmp_path / f"{name}.png") for name in ("photo", "upright", "stored")]
    found = {}
    for option in ("honour", "ignore"):
        assert cli.main(["predict", *asked, "--checkpoint", str(checkpoint), "--json", "--exif", option]) == 0
        rows = map(json.loads, capsys.readouterr().out.splitlines())
        found[option] = [row["probabilities"] for row in rows]
    photo, same, stored = found["honour"]
    assert photo == same != stored and found["ignore"] == [stored, same, stored]


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
    with pytest.raises(DataError, match="1 of the 3 folders of .*train are no classes of the model: azure"):
        evaluate_checkpoint(str(checkpoint), 2, config(tmp_path / "more"), str(tmp_path / "report"))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        evaluate_checkpoint(str(tmp_path / "no.ckpt"), 2, config(folder), str(tmp_path / "report"))


def test_images_of_some_of_the_classes(
    folder: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Accuracy over all outputs, and over those of the classes present; a class folder may be empty or missing."""
    some = shutil.copytree(folder, tmp_path / "some")
    shutil.rmtree(some / "train" / "blue")
    shutil.rmtree(some / "val" / "red")
    (some / "val" / "red").mkdir()
    results = evaluate_checkpoint(str(checkpoint), 2, config(some, keep_probabilities=True), str(tmp_path / "report"))
    saved = np.load(tmp_path / "report" / "predictions.npz")
    probabilities, labels = saved["probabilities"], saved["labels"]
    assert results.num_images == 14 and labels.tolist() == [0] * 7 + [1] * 7
    assert results.class_names == ["blue", "green", "red"]
    assert {each.label for each in results.recommended.class_drops} == {0, 1}
    assert results.anytime_accuracy == pytest.approx(100 * (probabilities.argmax(axis=2) == labels).mean(axis=1))
    right = np.where(probabilities[..., 0] >= probabilities[..., 1], 0, 1) == labels
    assert (right != (probabilities.argmax(axis=2) == labels)).any()  # else the restriction would change nothing
    present = results.classes_present
    assert present.count == 2 and present.anytime_accuracy == pytest.approx(100 * right.mean(axis=1))
    assert present.recommended_accuracy == pytest.approx(100 * right[saved["exit_index"], np.arange(14)].mean())
    said = f"images show 2 of 3 classes; accuracy with the outputs restricted to these: exit 1 {right[0].mean():.2%}"
    assert said.replace("%", " %") in capsys.readouterr().out
    assert "images show 2 of 3 classes" in (tmp_path / "report" / "report.html").read_text()
    assert Results.from_json((tmp_path / "report" / "results.json").read_text()) == results


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
