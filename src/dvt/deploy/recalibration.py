"""Thresholds where confidences differ from those of the bundle's float32 files: int8, bfloat16, float16 on Ascend.

Axis letters: K exits, n images, C classes.
"""

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dvt import early_exit
from dvt.data.progress import progress
from dvt.deploy.backends import BACKENDS, require_bfloat16
from dvt.deploy.manifest import BFLOAT16, GraphSet, Setting, read_manifest, write_manifest
from dvt.deploy.runner import Cascade
from dvt.early_exit.candidates import CalibrationSet
from dvt.early_exit.certify import Certificate, certify, joint_confidence
from dvt.errors import BundleError, ConfigError, DataError

BATCH = 32  # images per call
NOT_KNOWN = "it is not known whether the model was trained on the images that these thresholds were measured with"

log = logging.getLogger(__name__)


def remeasure(
    folder: str | os.PathLike,
    graph_format: str,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    unfit: str | None = NOT_KNOWN,
) -> dict[str, Setting]:
    """Finds thresholds for one format ("ONNX_INT8", "ONNX_BF16" or "LITE") and writes them into the manifest, with what
    was measured.

    Each of the bundle's settings gets thresholds with which as many of the images (n, I, S, S), best those that its own
    were found with, leave at each exit as do with its float32 files (ONNX, else MINDIR). Certified settings are
    certified anew from the outputs of this format; all of these certificates hold together. `labels` are the classes of
    the images (n,); None leaves out the accuracies. `unfit` says why the images can certify nothing; give None if the
    model was trained without them.

    Raises BundleError for a bundle without one of the two formats, ConfigError if the manifest cannot be written,
    DataError for no images, or labels that do not fit them, DeviceError where the format cannot be run.
    """
    images = np.asarray(images)
    if len(images) == 0 or (labels is not None and np.shape(labels) != (len(images),)):
        raise DataError(f"there are {len(images)} images and labels of shape {np.shape(labels)}; one each is needed")
    manifest = read_manifest(folder)
    float32 = next((name for name in ("ONNX", "MINDIR") if name in manifest.graphs), None)
    if float32 is None or graph_format in (float32, "MINDIR"):
        needed = f"measuring {graph_format} needs these files beside float32 ones, ONNX or MINDIR"
        raise BundleError(f"{folder} holds {', '.join(manifest.graphs)}; {needed}")
    if graph_format == BFLOAT16:
        if float32 != "ONNX" or manifest.graphs["ONNX"].precision != "float32":
            raise BundleError(f"{folder} has no float32 ONNX files, which {BFLOAT16} is made of; export them")
        require_bfloat16()
        graphs = GraphSet("bfloat16", manifest.graphs["ONNX"].exits, details={"converted_from": "ONNX"})
        cascade = Cascade(folder, "openvino", "ONNX", precision="bfloat16")
    else:
        cascade = _opened(folder, graph_format)
        graphs = manifest.graphs[graph_format]
    reference, measured = (_probabilities(each, images) for each in (_opened(folder, float32), cascade))
    wanted = {name: each.uncertified(unfit) for name, each in manifest.thresholds.items()}
    settings, details = remeasured(reference, measured, labels, wanted, manifest.cumulative_gmacs)
    for name, setting in settings.items():
        if manifest.thresholds[name].certificate:
            log.info("%s, %s: %s", graph_format, name, setting.promise)
    graphs = dataclasses.replace(graphs, thresholds=settings, details={**graphs.details, "measured": details})
    write_manifest(Path(folder), dataclasses.replace(manifest, graphs={**manifest.graphs, graph_format: graphs}))
    return settings


def _opened(folder: str | os.PathLike, graph_format: str) -> Cascade:
    backend = next((name for name, (_, formats) in BACKENDS.items() if graph_format in formats), "onnxruntime")
    return Cascade(folder, backend, graph_format)


def _probabilities(cascade: Cascade, images: np.ndarray) -> np.ndarray:
    """(K, n, C)."""
    with cascade:
        starts = progress(range(0, len(images), BATCH), unit="batch", desc=f"calibration, {cascade.runs_on}")
        return np.concatenate([cascade.all_exits(images[start : start + BATCH]) for start in starts], axis=1)


def remeasured(
    reference: np.ndarray,
    measured: np.ndarray,
    labels: np.ndarray | None,
    settings: Mapping[str, Setting],
    cumulative_gmacs: Sequence[float],
) -> tuple[dict[str, Setting], dict[str, Any]]:
    """New `settings`, certified where they were and can be again, and what was measured: per exit the share of images
    with the same class and the accuracy in percent, per setting the accuracy before and after. `reference` and
    `measured` are the probabilities (K, n, C) of the float32 files and of the others."""
    num_exits, count = reference.shape[:2]
    files = {"float32": reference, "this": measured}
    classes = {name: each.argmax(axis=2) for name, each in files.items()}  # (K, n) each
    scores = {name: early_exit.confidence(each) for name, each in files.items()}  # (K, n) each
    same = (classes["float32"] == classes["this"]).mean(axis=1).tolist()
    details: dict[str, Any] = {"calibration_images": count, "same_class_per_exit": same, "settings": {}}
    if labels is not None:
        correct = {name: each == labels for name, each in classes.items()}
        details["accuracy_per_exit"] = {name: (100.0 * each.mean(axis=1)).tolist() for name, each in correct.items()}
    certified = sum(setting.certificate is not None for setting in settings.values())
    found: dict[str, Setting] = {}
    for name, setting in settings.items():
        exits = {"float32": early_exit.assign_exits(scores["float32"], setting.values)}
        certificate, reason = None, setting.not_certified
        if setting.certificate:
            try:
                outcomes = CalibrationSet(scores["this"], classes["this"], cumulative_gmacs, labels)
                certificate = _certified_again(setting.certificate, outcomes, certified)
            except (ConfigError, DataError) as error:
                reason = str(error)
        if certificate:
            thresholds = certificate.thresholds
        else:
            # Half an image more, because `find_thresholds` rounds the product of share and number down.
            shares = (np.bincount(exits["float32"], minlength=num_exits) + 0.5) / count
            thresholds = early_exit.find_thresholds(scores["this"], shares)
        exits["this"] = early_exit.assign_exits(scores["this"], thresholds)
        cost = float(np.asarray(cumulative_gmacs)[exits["this"]].mean())
        accuracies = None
        if labels is not None:
            images = np.arange(count)
            accuracies = {each: float(100.0 * correct[each][exits[each], images].mean()) for each in files}
        found[name] = Setting(thresholds, cost, accuracies and accuracies["this"], certificate, reason)
        details["settings"][name] = {"expected_gmacs": cost, "accuracy": accuracies}
    return found, details


def _certified_again(earlier: Certificate, outcomes: CalibrationSet, answers: int) -> Certificate:
    """The same wish for other outputs, as one of several certificates that hold together with its confidence."""
    sure = joint_confidence(earlier.confidence, answers)
    found = certify(outcomes, earlier.risk, earlier.limit, sure, earlier.seed)
    return dataclasses.replace(found, confidence=earlier.confidence, answers=answers, exif=earlier.exif)
