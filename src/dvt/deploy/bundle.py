"""Export: a model as a folder of files that run without this package, each checked, and a manifest that describes them.

Every file is run once more and compared with the model before anything appears in the folder.
"""

import contextlib
import dataclasses
import logging
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

import dvt
from dvt import device
from dvt.checkpoint.native import Checkpoint, load_model, load_weights
from dvt.config.files import config_from_dict
from dvt.data import load_splits
from dvt.deploy.lite import files as lite_files
from dvt.deploy.manifest import (
    CONVERTED,
    FORMATS,
    MANIFEST_FILE,
    PRECISIONS,
    Manifest,
    Setting,
    named_settings,
    read_manifest,
    write_manifest,
)
from dvt.deploy.recalibration import remeasure
from dvt.deploy.writers import OPEN_BATCH_CHECKS, Reference, write_mindir, write_onnx
from dvt.early_exit.decisions import ALWAYS, NEVER
from dvt.early_exit.loop import DEFAULT_BATCH_SIZES, check_batch_sizes
from dvt.errors import BundleError, ConfigError
from dvt.models import kernels
from dvt.models.cascade import build_from_config
from dvt.models.cost import cumulative_gmacs
from dvt.safe_files import write_failure

BUDGETS = 8  # settings taken from the sweep that a checkpoint holds

_OURS = re.compile(r"(exit_\d+|whole)(\.int8)?\.(mindir|onnx|ms)|exit_\d+(_ascend\.mindir|\.ascend\.ini)")

log = logging.getLogger(__name__)

Calibration = tuple[np.ndarray, np.ndarray | None]
"""Images (n, I, S, S) and their classes (n,), or None."""


def export_bundle(
    model: nn.Cell,
    folder: str | os.PathLike,
    formats: Sequence[str] = ("ONNX",),
    thresholds: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    class_names: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    batch_sizes: Sequence[int] = DEFAULT_BATCH_SIZES,
    *,
    precision: str = "float32",
    batch_size: int | None = None,
    whole: bool = False,
    calibration: Calibration | None = None,
) -> list[Path]:
    """Writes `model` as a bundle into `folder`; returns the paths, the manifest last.

    Files of an earlier export there are replaced, other files left alone, and nothing appears before everything has
    been written and checked.

    Args:
        model: A DVT, such as `dvt.build_model` or `dvt.checkpoint.load_model` return; left as it is.
        folder: Where to write; made if it is not there.
        formats: Of "MINDIR", "ONNX" and "ONNX_INT8"; the last also needs ONNX and `calibration`.
        thresholds: One threshold per exit, or a dict of such vectors by name, the first the default; None for none.
        class_names: Names of the classes, in the order of the outputs.
        preprocessing: What makes model inputs of images, `Splits.preprocessing` of `dvt.data`.
        batch_sizes: Numbers of images that backends with fixed shapes (MindSpore Lite) are prepared for.
        precision: "float32" or "float16". Images and probabilities stay float32, what exits hand on does not.
        batch_size: Fixes the number of images per call of the MindIR files; None leaves it open.
        whole: Also write one file per format with all exits, each on every image.
        calibration: Images and classes with which the thresholds of ONNX_INT8 are measured anew.

    Raises:
        ConfigError: Arguments that do not fit each other, or a folder that cannot be written.
        DVTError: A file computes something else than the model.
    """
    config = model.config
    _check_request(formats, precision, batch_size, calibration, class_names, config.num_classes)
    sizes = check_batch_sizes(batch_sizes if batch_size is None else [*batch_sizes, batch_size])
    settings = named_settings(thresholds, config.num_exits)
    weights = {name: parameter.asnumpy() for name, parameter in model.parameters_dict().items()}
    with kernels.disabled():  # operators of this package mean nothing to those who load the files
        plain = build_from_config(config)
    load_weights(plain, weights)
    plain.set_train(False)

    folder = Path(folder)
    with _staged(folder) as stage:
        reference = Reference(plain, batch_size or sum(OPEN_BATCH_CHECKS))
        graphs = {}
        if "MINDIR" in formats:
            graphs["MINDIR"] = write_mindir(reference, stage, precision, batch_size, whole)
        if "ONNX" in formats:
            graphs["ONNX"] = write_onnx(reference, stage, precision, whole)
        if "ONNX_INT8" in formats:
            from dvt.deploy.quantize import write_int8

            graphs["ONNX_INT8"] = write_int8(stage, graphs["ONNX"])
        if "MINDIR" in graphs and batch_size is None:
            lite_files.write_ascend_configs(stage, graphs["MINDIR"], sizes)
        manifest = Manifest(
            model=config,
            class_names=None if class_names is None else list(class_names),
            preprocessing=None if preprocessing is None else dict(preprocessing),
            cumulative_gmacs=cumulative_gmacs(config),
            batch_sizes=sizes,
            thresholds=settings,
            graphs=graphs,
            versions=_versions(),
        )
        write_manifest(stage, manifest)
        if "ONNX_INT8" in graphs:
            remeasure(stage, "ONNX_INT8", *calibration)
        names = _publish(stage, folder)
    log.info("wrote %s to %s", ", ".join(names), folder)
    return [folder / name for name in names]


def export_checkpoint(
    checkpoint: str,
    output: str | os.PathLike,
    formats: Sequence[str],
    device_target: str = "auto",
    calibration_path: str | None = None,
    calibration_images: int = 500,
    **options: Any,
) -> list[Path]:
    """`export_bundle` for a checkpoint's model with the thresholds, class names and preprocessing that it holds.

    Args:
        checkpoint: The checkpoint.
        output: Folder of the bundle.
        formats: As for `export_bundle`. ONNX_INT8 takes the calibration images of the training run.
        device_target: Device on which MindIR files are checked.
        calibration_path: Where the data set of the training run lies now; None where it lay then.
        calibration_images: At most how many of them to take.
        options: Further arguments of `export_bundle`.

    Raises:
        CheckpointError: As `dvt.checkpoint.load_model`.
        DeviceError: The device is not there.
        ConfigError, DataError, DVTError: As `export_bundle`, or the data set is missing.
    """
    used = device.set_up(device_target)
    with kernels.disabled():
        model, loaded = load_model(checkpoint)
    if "ONNX_INT8" in formats:
        options["calibration"] = _stored_calibration(loaded, checkpoint, calibration_path, calibration_images)
    log.info("exporting %s from %s, checked on %s", loaded.model.name, checkpoint, used.description)
    return export_bundle(
        model,
        output,
        formats,
        stored_settings(loaded.metadata),
        loaded.metadata.get("class_names"),
        loaded.metadata.get("preprocessing"),
        **options,
    )


def _stored_calibration(loaded: Checkpoint, checkpoint: str, path: str | None, count: int) -> Calibration:
    """Calibration images of the run that made the checkpoint, spread evenly over them."""
    saved = loaded.metadata.get("config")
    if saved is None:
        raise ConfigError(
            f"{checkpoint} does not say which data set it was trained on, and ONNX_INT8 needs calibration images: give "
            "them to dvt.deploy.export_bundle in Python"
        )
    config = config_from_dict(saved, f"the configuration stored in {checkpoint}")
    data = config.data if path is None else dataclasses.replace(config.data, path=path)
    splits = load_splits(data, loaded.model.image_size, config.seed)
    there = splits.sizes["calibration"]
    return splits.batch("calibration", np.linspace(0, there - 1, min(count, there)).astype(int))


def stored_settings(metadata: Mapping[str, Any]) -> dict[str, Setting]:
    """Named thresholds from a checkpoint's metadata: the recommended ones first, then some of the stored sweep.

    Those of the sweep are spread evenly over its costs and named after them, "1.23_gmacs". Without recommended ones the
    most accurate of them is the default.
    """
    results = metadata.get("results") or {}
    rows = results.get("dynamic_threshold") or []
    costs, accuracies = results.get("budgeted_batch_classification") or ([], [])
    settings: dict[str, Setting] = {}
    if metadata.get("thresholds") is not None:
        chosen = metadata.get("early_exit")  # what this package found, with what it reached
        known = (rows, costs, accuracies)
        if chosen:
            known = ([chosen["thresholds"]], [chosen["expected_gmacs"]], [chosen["accuracy"]])
        settings["recommended"] = _with_results(metadata["thresholds"], *known)
    if not rows or not len(rows) == len(costs) == len(accuracies):
        return settings
    wanted = np.linspace(min(costs), max(costs), BUDGETS)
    points = sorted({int(np.abs(np.asarray(costs) - cost).argmin()) for cost in wanted}, key=lambda i: costs[i])
    if not settings:
        points.sort(key=lambda i: -accuracies[i])
    for point in points:
        settings[f"{costs[point]:.3g}_gmacs"] = _with_results(rows[point], rows, costs, accuracies)
    return settings


def _with_results(row: Sequence[float], rows: Sequence, costs: Sequence[float], accuracies: Sequence[float]) -> Setting:
    """A threshold vector with its results, where it is one of the sweep's."""
    values = tuple(float(value) for value in np.clip(row, ALWAYS, NEVER))
    for other, cost, accuracy in zip(rows, costs, accuracies, strict=False):
        if np.array_equal(np.float32(other), np.float32(row)):
            return Setting(values, float(cost), float(accuracy))
    return Setting(values)


def _check_request(
    formats: Sequence[str],
    precision: str,
    batch_size: int | None,
    calibration: Calibration | None,
    class_names: Sequence[str] | None,
    num_classes: int,
) -> None:
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats or isinstance(formats, str):
        given = formats if isinstance(formats, str) else ", ".join(unknown) or "none"
        raise ConfigError(f"unknown format {given}; give a list of {', '.join(FORMATS)}")
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}; choose from {', '.join(PRECISIONS)}")
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1, or None to leave it open")
    if class_names is not None and len(class_names) != num_classes:
        raise ConfigError(f"there are {len(class_names)} class names, but the model has {num_classes} classes")
    if "ONNX_INT8" in formats:
        if "ONNX" not in formats or precision != "float32":
            raise ConfigError("ONNX_INT8 is made of float32 ONNX files: ask for both formats, with precision float32")
        if calibration is None:
            raise ConfigError("ONNX_INT8 moves confidences: give calibration images to measure its thresholds with")
    if "ONNX" in formats:
        for package in ("onnx", "onnxruntime"):
            try:
                __import__(package)
            except ModuleNotFoundError as error:
                raise ConfigError(
                    f"ONNX export needs the package {package}: pip install 'dvt-mindspore[export]'"
                ) from error


def _versions() -> dict[str, str]:
    return {"dvt": dvt.__version__, "mindspore": ms.__version__, "python": platform.python_version()}


@contextlib.contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A hidden folder in `folder`, to be written to; both are removed after a failure, the latter if it is new.

    What cannot be written becomes a ConfigError.
    """
    new = not folder.exists()
    stage = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".export.", dir=folder))
        yield stage
    except OSError as error:
        raise ConfigError(f"cannot write to the output folder {folder}: {write_failure(folder, error)}") from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only if it is empty, that is after a failure


def _publish(stage: Path, folder: Path) -> list[str]:
    """Moves the staged files into `folder`, the manifest last, and removes those of an earlier export."""
    names = sorted(path.name for path in stage.iterdir() if path.name != MANIFEST_FILE)
    earlier = _files_of_earlier_export(folder)
    umask = os.umask(0)
    os.umask(umask)
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    for name in [*names, MANIFEST_FILE]:
        path = stage / name
        path.chmod(0o666 & ~umask)  # MindSpore leaves 0400
        os.replace(path, folder / name)
    for name in earlier.difference(names):
        (folder / name).unlink(missing_ok=True)
    return [*names, MANIFEST_FILE]


def _files_of_earlier_export(folder: Path) -> set[str]:
    """Exported files that go with the manifest there; nothing else in the folder is ours."""
    try:
        manifest = read_manifest(folder)
    except BundleError:
        return set()
    names = {entry.file for graphs in manifest.graphs.values() for entry in graphs.files}
    if "MINDIR" in manifest.graphs or CONVERTED in manifest.graphs:
        names |= {path.name for path in folder.glob("exit_*.ascend.ini")}
    return {name for name in names if _OURS.fullmatch(name)}
