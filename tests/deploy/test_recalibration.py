"""Thresholds for files with other confidences: the same shares leave at each exit, and what was measured is right."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dvt.deploy.manifest import Setting, read_manifest, write_manifest
from dvt.deploy.recalibration import remeasure, remeasured
from dvt.early_exit import assign_exits
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


def test_what_cannot_be_measured(bundle: Path, photographs: np.ndarray, tmp_path: Path):
    manifest = read_manifest(bundle)
    write_manifest(tmp_path, dataclasses.replace(manifest, graphs={"MINDIR": manifest.graphs["MINDIR"]}))
    with pytest.raises(BundleError, match="needs these files beside float32 ones"):
        remeasure(bundle, "ONNX", photographs)
    with pytest.raises(BundleError, match="has no float32 ONNX files, which ONNX_BF16 is made of"):
        remeasure(tmp_path, "ONNX_BF16", photographs)
    with pytest.raises(BundleError, match="but not LITE"):
        remeasure(bundle, "LITE", photographs)
    with pytest.raises(DataError, match="one each is needed"):
        remeasure(bundle, "ONNX_INT8", photographs, np.zeros(3, int))
