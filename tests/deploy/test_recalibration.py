"""Thresholds for files with other confidences: the same shares leave at each exit, and what was measured is right."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dvt.deploy.manifest import Setting, read_manifest, write_manifest
from dvt.deploy.recalibration import remeasure, remeasured
from dvt.early_exit import assign_exits
from dvt.early_exit.candidates import CalibrationSet
from dvt.early_exit.certify import certify, joint_confidence
from dvt.errors import BundleError, DataError


def probabilities(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(4, 0.5), size=(3, 300)).astype(np.float32)


def test_the_same_shares_leave():
    reference = probabilities(0)
    noise = np.random.default_rng(1).normal(0, 0.05, reference.shape)
    measured = np.exp(np.log(reference) + noise)
    measured = (measured / measured.sum(axis=-1, keepdims=True)).astype(np.float32)
    labels = np.random.default_rng(2).integers(0, 4, 300)
    settings = {"a": Setting((0.7, 0.8, -1e8)), "b": Setting((0.95, 0.9, -1e8)), "none": Setting((1e8, 1e8, -1e8))}
    found, details = remeasured(reference, measured, labels, settings, [1.0, 2.0, 4.0])
    for name, setting in settings.items():
        before = assign_exits(reference.max(axis=2), setting.values)
        after = assign_exits(measured.max(axis=2), found[name].values)
        np.testing.assert_array_equal(np.bincount(before, minlength=3), np.bincount(after, minlength=3))
        assert found[name].expected_gmacs == pytest.approx(np.array([1.0, 2.0, 4.0])[after].mean())
        chosen = measured[after, np.arange(300)].argmax(axis=1)
        assert found[name].accuracy == pytest.approx(100 * np.mean(chosen == labels))
        chosen = reference[before, np.arange(300)].argmax(axis=1)
        assert details["settings"][name]["accuracy"]["float32"] == pytest.approx(100 * np.mean(chosen == labels))
    same = (reference.argmax(axis=2) == measured.argmax(axis=2)).mean(axis=1)
    np.testing.assert_allclose(details["same_class_per_exit"], same)
    assert details["accuracy_per_exit"]["this"][2] == pytest.approx(100 * np.mean(measured[2].argmax(1) == labels))
    assert found["none"].values[0] > 1


def test_without_labels_there_is_no_accuracy():
    found, details = remeasured(probabilities(0), probabilities(0), None, {"a": Setting((0.7, 0.8, -1e8))}, [1, 2, 4])
    assert found["a"].accuracy is None and details["settings"]["a"]["accuracy"] is None
    assert "accuracy_per_exit" not in details
    assert details["same_class_per_exit"] == [1.0, 1.0, 1.0]


def test_other_outputs_are_certified_again_at_a_joint_level():
    reference, measured = probabilities(0), probabilities(1)
    labels, costs = np.random.default_rng(2).integers(0, 4, 300), [1.0, 2.0, 4.0]
    images = CalibrationSet(measured.max(axis=2), measured.argmax(axis=2), costs, labels)
    earlier = certify(CalibrationSet(reference.max(axis=2), reference.argmax(axis=2), costs), "changes", 60)
    settings = {name: Setting(earlier.thresholds, certificate=earlier) for name in ("a", "b")}
    settings["a"] = Setting(earlier.thresholds, certificate=replace(earlier, limit=50.0))
    settings |= {"none": Setting((0.7, 0.8, -1e8)), "trained": settings["a"].uncertified("trained on these images")}
    found, _ = remeasured(reference, measured, labels, settings, costs)
    for name, limit in {"a": 50, "b": 60}.items():
        expected = certify(images, "changes", limit, joint_confidence(0.95, 2))
        assert found[name].certificate == replace(expected, confidence=0.95, answers=2)
        assert found[name].values == expected.thresholds and "together with 1 other" in found[name].promise
        taken = assign_exits(measured.max(axis=2), found[name].values)
        assert found[name].expected_gmacs == pytest.approx(np.array(costs)[taken].mean())
    assert found["none"].promise == "not certified"
    assert found["trained"].promise == "not certified: trained on these images"
    plain, _ = remeasured(reference, measured, labels, {"b": settings["none"]}, costs)
    assert found["none"].values == plain["b"].values

    few, _ = remeasured(reference[:, :10], measured[:, :10], labels[:10], {"b": settings["b"]}, costs)
    assert few["b"].promise == "not certified: there are 10 calibration images; a certificate needs 20 or more"
    strict = {"b": Setting(earlier.thresholds, certificate=replace(earlier, limit=1.0))}
    found, _ = remeasured(reference, measured, labels, strict, costs)
    assert "cannot certify a limit of 1 % of answers changed" in found["b"].promise
    unlabelled = {"b": Setting(earlier.thresholds, certificate=replace(earlier, risk="regressions"))}
    assert "needs labels" in remeasured(reference, measured, None, unlabelled, costs)[0]["b"].promise


def test_what_cannot_be_measured(bundle: Path, photographs: np.ndarray, tmp_path: Path):
    manifest = read_manifest(bundle)
    write_manifest(tmp_path, replace(manifest, graphs={"MINDIR": manifest.graphs["MINDIR"]}))
    with pytest.raises(BundleError, match="needs these files beside float32 ones"):
        remeasure(bundle, "ONNX", photographs)
    with pytest.raises(BundleError, match="has no float32 ONNX files, which ONNX_BF16 is made of"):
        remeasure(tmp_path, "ONNX_BF16", photographs)
    with pytest.raises(BundleError, match="but not LITE"):
        remeasure(bundle, "LITE", photographs)
    with pytest.raises(DataError, match="one each is needed"):
        remeasure(bundle, "ONNX_INT8", photographs, np.zeros(3, int))
