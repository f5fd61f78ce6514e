"""Export: a model as a folder of files that run without this package, each checked, and a manifest that describes them.

Every file is run once more and compared with the model before anything appears in the folder.
"""

import dataclasses
import hashlib
import json
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

import dvt
from dvt import device
from dvt.checkpoint.native import Checkpoint, load_model
from dvt.config.files import config_from_dict
from dvt.data import Splits, load_splits
from dvt.deploy.lite.files import write_ascend_configs
from dvt.deploy.manifest import GraphSet, Manifest, Setting, named_settings, write_manifest
from dvt.deploy.mindir import MindirWriter, exportable
from dvt.deploy.options import BundleOptions
from dvt.deploy.publish import merged, publish, staged
from dvt.deploy.recalibration import remeasure
from dvt.deploy.writers import references, write_files
from dvt.early_exit.loop import check_batch_sizes
from dvt.errors import ConfigError, work_begun
from dvt.models.cost import cumulative_gmacs
from dvt.models.variants import ModelConfig
from dvt.safe_files import explained

BUDGETS = 8  # settings taken from the sweep that a checkpoint holds

log = logging.getLogger(__name__)


def export_bundle(model: nn.Cell, folder: str | os.PathLike, *values: Any, **options: Any) -> list[Path]:
    """Writes `model` as a bundle into `folder`; returns the paths, the manifest last.

    Nothing appears before everything has been written and checked, and the folder holds the earlier bundle or the new
    one, whenever this is interrupted. Formats are added to a bundle of the same weights.

    Args:
        model: A DVT, such as `dvt.build_model` or `dvt.checkpoint.load_model` return; left as it is.
        folder: Where to write; made if it is not there.
        values: Those of `BundleOptions`, in its order: formats, thresholds, class_names, ...
        options: Those of `BundleOptions`, by name.

    Raises:
        ConfigError: Options that do not fit each other or the model, a folder that cannot be written, or one with a
            bundle of other weights, without `replace`.
        DVTError: A file computes something else than the model.
    """
    folder, options = Path(folder), BundleOptions(*values, **options)
    config = model.config
    fixed = [] if options.batch_size is None else [options.batch_size]
    model = exportable(model)
    weights = {name: parameter.asnumpy() for name, parameter in model.parameters_dict().items()}
    manifest = Manifest(
        model=config,
        class_names=None if options.class_names is None else list(options.class_names),
        preprocessing=None if options.preprocessing is None else dict(options.preprocessing),
        cumulative_gmacs=cumulative_gmacs(config),
        batch_sizes=check_batch_sizes([*options.batch_sizes, *fixed]),
        thresholds=named_settings(options.thresholds, config.num_exits),
        graphs={},
        versions={"dvt": dvt.__version__, "mindspore": ms.__version__, "python": platform.python_version()},
        fingerprint=fingerprint(config, weights),
    )
    with staged(folder) as stage:
        merged(folder, manifest, options.replace)  # refuses before the work
        with work_begun(), explained(folder, ConfigError):
            graphs = _write_graphs(stage, model, weights, options)
            if "MINDIR" in graphs and options.batch_size is None:
                write_ascend_configs(stage, graphs["MINDIR"], manifest.batch_sizes)
            write_manifest(stage, dataclasses.replace(manifest, graphs=graphs))
            if "ONNX_INT8" in graphs:
                remeasure(stage, "ONNX_INT8", *options.calibration)
            names = publish(stage, folder, options.replace)
    log.info("wrote %s to %s", ", ".join(names), folder)
    return [folder / name for name in names]


def fingerprint(config: ModelConfig, weights: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of a model and its weights by parameter name."""
    digest = hashlib.sha256(json.dumps(config.to_dict()).encode())
    for name, array in sorted(weights.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def _write_graphs(
    stage: Path, model: nn.Cell, weights: Mapping[str, np.ndarray], options: BundleOptions
) -> dict[str, GraphSet]:
    """The checked files of every format that was asked for."""
    wanted = references(model, options.batch_size)
    graphs = {}
    if "MINDIR" in options.formats:
        writer = MindirWriter(model, options.precision, options.batch_size)
        graphs["MINDIR"] = write_files(stage, model.config, writer, wanted)
    if "ONNX" in options.formats:
        from dvt.deploy.onnx.files import OnnxWriter

        graphs["ONNX"] = write_files(stage, model.config, OnnxWriter(model.config, weights, options.precision), wanted)
    if "ONNX_INT8" in options.formats:
        from dvt.deploy.quantize import write_int8

        graphs["ONNX_INT8"] = write_int8(stage, graphs["ONNX"])
    return graphs


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
        calibration_images: At most how many of them to take, spread evenly over those that are there.
        options: Further fields of `BundleOptions`.

    Raises:
        CheckpointError: As `dvt.checkpoint.load_model`.
        DeviceError: The device is not there.
        ConfigError, DataError, DVTError: As `export_bundle`, or the data set is missing.
    """
    used = device.set_up(device_target)
    model, loaded = load_model(checkpoint, kernels=False)
    stored = loaded.metadata
    if "ONNX_INT8" in formats:
        splits = _splits_of_run(checkpoint, loaded, calibration_path)
        there = splits.sizes["calibration"]
        chosen = np.linspace(0, there - 1, min(calibration_images, there)).astype(int)
        options["calibration"] = splits.batch("calibration", chosen)
    log.info("exporting %s from %s, checked on %s", loaded.model.name, checkpoint, used.description)
    known = (stored_settings(stored), stored.get("class_names"), stored.get("preprocessing"))
    return export_bundle(model, output, formats, *known, **options)


def _splits_of_run(checkpoint: str, loaded: Checkpoint, path: str | None) -> Splits:
    """The data set of the run that made the checkpoint, which lies at `path`, or for None where it lay then."""
    saved = loaded.metadata.get("config")
    if saved is None:
        raise ConfigError(
            f"{checkpoint} does not say which data set it was trained on, and ONNX_INT8 needs calibration images: give "
            "them to dvt.deploy.export_bundle in Python"
        )
    config = config_from_dict(saved, f"the configuration stored in {checkpoint}")
    data = config.data if path is None else dataclasses.replace(config.data, path=path)
    return load_splits(data, loaded.model.image_size, config.seed)


def stored_settings(metadata: Mapping[str, Any]) -> dict[str, Setting]:
    """Named thresholds from a checkpoint's metadata: the recommended ones first, then some of the stored sweep.

    Those of the sweep are spread evenly over its costs and named after them, "1.23_gmacs". Without recommended ones the
    most accurate of them is the default.
    """
    results = metadata.get("results") or {}
    rows = results.get("dynamic_threshold") or []
    costs, accuracies = results.get("budgeted_batch_classification") or ([], [])
    sweep = [Setting(row, *found) for row, *found in zip(rows, costs, accuracies, strict=False)]
    settings: dict[str, Setting] = {}
    if metadata.get("thresholds") is not None:
        recommended = Setting(metadata["thresholds"])
        chosen = metadata.get("early_exit")  # what this package found, with what it reached
        known = [Setting(chosen["thresholds"], chosen["expected_gmacs"], chosen["accuracy"])] if chosen else sweep
        same = (each for each in known if np.array_equal(np.float32(each.values), np.float32(recommended.values)))
        settings["recommended"] = next(same, recommended)
    if not sweep or not len(rows) == len(costs) == len(accuracies):
        return settings
    wanted = np.linspace(min(costs), max(costs), BUDGETS)
    points = {int(np.abs(np.asarray(costs) - cost).argmin()) for cost in wanted}
    for point in sorted(points, key=lambda i: costs[i] if settings else -accuracies[i]):
        settings[f"{costs[point]:.3g}_gmacs"] = sweep[point]
    return settings
