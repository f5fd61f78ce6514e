"""Export: a model as a folder of files that run without this package, each checked, and a manifest that describes them.

Every file is run once more and compared with the model before anything appears in the folder.
"""

import contextlib
import dataclasses
import logging
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
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
from dvt.deploy.manifest import (
    CONVERTED,
    MANIFEST_FILE,
    GraphSet,
    Manifest,
    Setting,
    named_settings,
    read_manifest,
    write_manifest,
)
from dvt.deploy.mindir import MindirWriter, exportable
from dvt.deploy.options import BundleOptions
from dvt.deploy.recalibration import remeasure
from dvt.deploy.writers import references, write_files
from dvt.early_exit.loop import check_batch_sizes
from dvt.errors import BundleError, ConfigError
from dvt.models.cost import cumulative_gmacs
from dvt.safe_files import put_in_place, scratch_folder, write_failure

BUDGETS = 8  # settings taken from the sweep that a checkpoint holds

_OURS = re.compile(r"(exit_\d+|whole)(\.int8)?\.(mindir|onnx|ms)|exit_\d+(_ascend\.mindir|\.ascend\.ini)")

log = logging.getLogger(__name__)


def export_bundle(model: nn.Cell, folder: str | os.PathLike, *values: Any, **options: Any) -> list[Path]:
    """Writes `model` as a bundle into `folder`; returns the paths, the manifest last.

    Files of an earlier export there are replaced, other files left alone, and nothing appears before everything has
    been written and checked.

    Args:
        model: A DVT, such as `dvt.build_model` or `dvt.checkpoint.load_model` return; left as it is.
        folder: Where to write; made if it is not there.
        values: Those of `BundleOptions`, in its order: formats, thresholds, class_names, ...
        options: Those of `BundleOptions`, by name.

    Raises:
        ConfigError: Options that do not fit each other or the model, or a folder that cannot be written.
        DVTError: A file computes something else than the model.
    """
    return write_bundle(model, Path(folder), BundleOptions(*values, **options))


def write_bundle(model: nn.Cell, folder: Path, options: BundleOptions) -> list[Path]:
    """`export_bundle`, step by step: formats -> checked files -> manifest -> folder."""
    config = model.config
    fixed = [] if options.batch_size is None else [options.batch_size]
    manifest = Manifest(
        model=config,
        class_names=None if options.class_names is None else list(options.class_names),
        preprocessing=None if options.preprocessing is None else dict(options.preprocessing),
        cumulative_gmacs=cumulative_gmacs(config),
        batch_sizes=check_batch_sizes([*options.batch_sizes, *fixed]),
        thresholds=named_settings(options.thresholds, config.num_exits),
        graphs={},
        versions={"dvt": dvt.__version__, "mindspore": ms.__version__, "python": platform.python_version()},
    )
    model = exportable(model)
    with _staged(folder) as stage:
        graphs = _write_graphs(stage, model, options)
        if "MINDIR" in graphs and options.batch_size is None:
            write_ascend_configs(stage, graphs["MINDIR"], manifest.batch_sizes)
        write_manifest(stage, dataclasses.replace(manifest, graphs=graphs))
        if "ONNX_INT8" in graphs:
            remeasure(stage, "ONNX_INT8", *options.calibration)
        names = _publish(stage, folder)
    log.info("wrote %s to %s", ", ".join(names), folder)
    return [folder / name for name in names]


def _write_graphs(stage: Path, model: nn.Cell, options: BundleOptions) -> dict[str, GraphSet]:
    """The checked files of every format that was asked for."""
    wanted = references(model, options.batch_size, options.whole)
    graphs = {}
    if "MINDIR" in options.formats:
        writer = MindirWriter(model, options.precision, options.batch_size)
        graphs["MINDIR"] = write_files(stage, model.config, writer, wanted)
    if "ONNX" in options.formats:
        from dvt.deploy.onnx.files import OnnxWriter

        weights = {name: parameter.asnumpy() for name, parameter in model.parameters_dict().items()}
        graphs["ONNX"] = write_files(stage, model.config, OnnxWriter(model.config, weights, options.precision), wanted)
    if "ONNX_INT8" in options.formats:
        from dvt.deploy.quantize import write_int8

        graphs["ONNX_INT8"] = write_int8(stage, graphs["ONNX"])
    return graphs


@contextlib.contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A hidden folder in `folder`, to be written to; both are removed after a failure, the latter if it is new.

    What cannot be written becomes a ConfigError.
    """
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with scratch_folder(folder, "export") as stage:
            yield stage
    except OSError as error:
        raise ConfigError(f"cannot write to the output folder {folder}: {write_failure(folder, error)}") from error
    finally:
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only if it is empty, that is after a failure


def _publish(stage: Path, folder: Path) -> list[str]:
    """Moves the staged files into `folder`, the manifest last, and removes those of an earlier export."""
    names, earlier = _exported_files(stage), _exported_files(folder)
    in_order = [*sorted(names), MANIFEST_FILE]
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    for name in in_order:
        put_in_place(stage / name, folder / name)
    for name in earlier - names:
        (folder / name).unlink(missing_ok=True)
    return in_order


def _exported_files(folder: Path) -> set[str]:
    """Names of the files that go with the manifest in `folder`; nothing else there is ours."""
    try:
        manifest = read_manifest(folder)
    except BundleError:
        return set()
    names = {entry.file for graphs in manifest.graphs.values() for entry in graphs.files}
    if "MINDIR" in manifest.graphs or CONVERTED in manifest.graphs:
        names |= {path.name for path in folder.glob("exit_*.ascend.ini")}
    return {name for name in names if _OURS.fullmatch(name)}


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
    bundle = BundleOptions(
        formats, stored_settings(stored), stored.get("class_names"), stored.get("preprocessing"), **options
    )
    log.info("exporting %s from %s, checked on %s", loaded.model.name, checkpoint, used.description)
    return write_bundle(model, Path(output), bundle)


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
    for other, cost, accuracy in zip(rows, costs, accuracies, strict=False):
        if np.array_equal(np.float32(other), np.float32(row)):
            return Setting(row, float(cost), float(accuracy))
    return Setting(row)
