"""Export: a model as a folder of files that run without this package, and a manifest that describes them. Every file is
run and compared with the model before anything appears in the folder."""

import dataclasses
import hashlib
import json
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

import dvt
from dvt import device
from dvt.checkpoint.native import Checkpoint, load_model
from dvt.config.files import config_from_dict
from dvt.data import load_splits
from dvt.deploy.backends import require_bfloat16
from dvt.deploy.lite import write_ascend_configs
from dvt.deploy.manifest import (
    BFLOAT16,
    FORMATS,
    MEASURED,
    PRECISIONS,
    GraphSet,
    Manifest,
    Setting,
    named_settings,
    write_manifest,
)
from dvt.deploy.publish import merged, publish, staged
from dvt.deploy.recalibration import remeasure
from dvt.deploy.runner import Cascade
from dvt.deploy.writers import MindirWriter, check, exportable, write_files
from dvt.early_exit.loop import DEFAULT_BATCH_SIZES, check_batch_sizes
from dvt.errors import ConfigError, work_begun
from dvt.models.cost import cumulative_gmacs
from dvt.models.variants import ModelConfig
from dvt.safe_files import explained
from dvt.value_checks import from_plain

BUDGETS = 8  # settings taken from the sweep that a checkpoint holds

# What `remeasure` takes: images (n, I, S, S), their classes (n,) or None, and why they can certify nothing, if so.
Calibration = tuple[np.ndarray, np.ndarray | None] | tuple[np.ndarray, np.ndarray | None, str | None]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BundleOptions:
    """What `dvt.deploy.export_bundle` writes. Raises ConfigError for what does not fit, and packages that are missing.

    Args:
        formats: Of "MINDIR", "ONNX", "ONNX_INT8" and "ONNX_BF16"; the last two also need ONNX and `calibration`.
        thresholds: One threshold per exit, or a dict of such vectors by name, the first the default; None for none.
        class_names: Names of the classes, in the order of the outputs.
        preprocessing: What makes model inputs of images, `Splits.preprocessing` of `dvt.data`.
        batch_sizes: Numbers of images that backends with fixed shapes (MindSpore Lite) are prepared for.
        precision: "float32" or "float16". Images and probabilities stay float32, what exits hand on does not.
        batch_size: Fixes the number of images per call of the MindIR files; None leaves it open.
        calibration: Images and classes with which the thresholds of ONNX_INT8 and ONNX_BF16 are measured; and None as
            the third if the model was trained without them, so that they can certify.
        replace: Write over a bundle of other weights; without it formats are added to a bundle of the same weights.
    """

    formats: Sequence[str] = ("ONNX",)
    thresholds: Sequence[float] | Mapping[str, Sequence[float] | Setting] | None = None
    class_names: Sequence[str] | None = None
    preprocessing: Mapping[str, Any] | None = None
    batch_sizes: Sequence[int] = DEFAULT_BATCH_SIZES
    precision: str = "float32"
    batch_size: int | None = None
    calibration: Calibration | None = None
    replace: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown or not self.formats or isinstance(self.formats, str):
            given = self.formats if isinstance(self.formats, str) else ", ".join(unknown) or "none"
            raise ConfigError(f"unknown format {given}; give a list of {', '.join(FORMATS)}")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision is {self.precision!r}; choose from {', '.join(PRECISIONS)}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}; it must be at least 1, or None to leave it open")
        for name in set(MEASURED).intersection(self.formats):
            if "ONNX" not in self.formats or self.precision != "float32":
                raise ConfigError(f"{name} is made of float32 ONNX files: ask for both formats, with precision float32")
            if self.calibration is None:
                raise ConfigError(f"{name} moves confidences: give calibration images to measure its thresholds with")
        for package in ("onnx", "onnxruntime") if "ONNX" in self.formats else ():
            if find_spec(package) is None:
                raise ConfigError(f"ONNX export needs the package {package}: pip install 'dvt-mindspore[export]'")
        if BFLOAT16 in self.formats:
            require_bfloat16()


def export_bundle(model: nn.Cell, folder: str | os.PathLike, *values: Any, **options: Any) -> list[Path]:
    """Writes `model` as a bundle into `folder`; returns the paths, the manifest last.

    Further arguments are those of `BundleOptions`, in its order or by name. Interrupted at any time, the folder holds
    the earlier bundle or the new one. Raises ConfigError for options that do not fit each other or the model, and a
    folder that cannot be written, or holds a bundle of other weights, without `replace`; DVTError if a file computes
    something else.
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
            for backend, name in {"mindspore": "MINDIR", "onnxruntime": "ONNX"}.items():
                if name in graphs:
                    log.info("%s: largest deviation from the model %.1e", name, check(Cascade(stage, backend), model))
            for name in set(MEASURED).intersection(options.formats):
                remeasure(stage, name, *options.calibration)
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
    """The files of every format that was asked for."""
    graphs, config = {}, model.config
    if "MINDIR" in options.formats:
        graphs["MINDIR"] = write_files(stage, config, MindirWriter(model, options.precision, options.batch_size))
    if "ONNX" in options.formats:
        from dvt.deploy.onnx.exits import OnnxWriter

        graphs["ONNX"] = write_files(stage, config, OnnxWriter(config, weights, options.precision))
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

    `dvt.cli.export.ExportOptions` describes the arguments, further ones are fields of `BundleOptions`. ONNX_INT8 and
    ONNX_BF16 take calibration images of the training run, spread evenly over those that are there.
    """
    used = device.set_up(device_target)
    model, loaded = load_model(checkpoint, kernels=False)
    stored = loaded.metadata
    if set(MEASURED).intersection(formats):
        options["calibration"] = _calibration_of_run(checkpoint, loaded, calibration_path, calibration_images)
    log.info("exporting %s from %s, checked on %s", loaded.model.name, checkpoint, used.description)
    known = (stored_settings(stored), stored.get("class_names"), stored.get("preprocessing"))
    return export_bundle(model, output, formats, *known, **options)


def _calibration_of_run(checkpoint: str, loaded: Checkpoint, path: str | None, most: int) -> Calibration:
    """Calibration images of the run that made the checkpoint, whose data set lies at `path` (None: where it lay)."""
    saved = loaded.metadata.get("config")
    if saved is None:
        raise ConfigError(
            f"{checkpoint} does not say which data set it was trained on, whose calibration images are needed: give "
            "some to dvt.deploy.export_bundle in Python"
        )
    config = config_from_dict(saved, f"the configuration stored in {checkpoint}")
    data = config.data if path is None else dataclasses.replace(config.data, path=path)
    splits = load_splits(data, loaded.model.image_size, config.seed)
    there = splits.sizes["calibration"]
    images, labels = splits.batch("calibration", np.linspace(0, there - 1, min(most, there)).astype(int))
    others = splits.difference(loaded.metadata.get("images", {}), "train")
    if others:
        return images, labels, f"the images are not those of the run: {others}"
    return images, labels, None if data.hold_out_calibration else "trained on these images"


def stored_settings(metadata: Mapping[str, Any]) -> dict[str, Setting]:
    """Named thresholds from a checkpoint's metadata: the recommended ones first, then some of the stored sweep, spread
    evenly over its costs and named after them, "1.23_gmacs"; without recommended ones the most accurate is the first.
    """
    results = metadata.get("results") or {}
    rows = results.get("dynamic_threshold") or []
    costs, accuracies = results.get("budgeted_batch_classification") or ([], [])
    sweep = [Setting(row, *found) for row, *found in zip(rows, costs, accuracies, strict=False)]
    settings: dict[str, Setting] = {}
    if metadata.get("thresholds") is not None:
        recommended = Setting(metadata["thresholds"])
        chosen = metadata.get("early_exit")  # what this package found, with what it reached
        known = [from_plain(Setting, chosen | {"values": chosen["thresholds"]}, "early_exit")] if chosen else sweep
        same = (each for each in known if np.array_equal(np.float32(each.values), np.float32(recommended.values)))
        settings["recommended"] = next(same, recommended)
    if not sweep or not len(rows) == len(costs) == len(accuracies):
        return settings
    wanted = np.linspace(min(costs), max(costs), BUDGETS)
    points = {int(np.abs(np.asarray(costs) - cost).argmin()) for cost in wanted}
    for point in sorted(points, key=lambda i: costs[i] if settings else -accuracies[i]):
        settings[f"{costs[point]:.3g}_gmacs"] = sweep[point]
    return settings
