"""The files of each format: written into a folder, loaded again, and compared with the model."""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from mindspore import nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from dvt.checkpoint.native import load_weights
from dvt.deploy import mindir
from dvt.deploy.manifest import GraphSet, Value, describe_file, exit_values, whole_values
from dvt.early_exit.classifier import Stage
from dvt.errors import DVTError
from dvt.models import kernels
from dvt.models.cascade import build_from_config
from dvt.models.precision import set_precision

TOLERANCES = {"float32": 1e-5, "float16": 2e-2}
"""Largest deviation from the float32 model, relative to the largest value where that is above 1."""
OPEN_BATCH_CHECKS = (1, 3)  # numbers of images that a file with an open batch is tried with

log = logging.getLogger(__name__)

Save = Callable[[int | None, Path, Sequence[Value]], None]
"""Writes one exit, or all for None, into a file with the given inputs."""

Load = Callable[[Path], Callable[[Sequence[np.ndarray]], list[np.ndarray]]]
"""Loads a file; what comes back computes its outputs."""


class Reference:
    """What the model itself computes of some made-up images, exit by exit; compiled when first asked for."""

    def __init__(self, model: nn.Cell, count: int) -> None:
        self.model = model
        config = model.config
        shape = (count, config.in_channels, config.image_size, config.image_size)
        self.images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)

    @functools.cached_property
    def exits(self) -> list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
        """Per exit its inputs and its outputs by role."""
        results, handed_on = [], {}
        for index in range(self.model.config.num_exits):
            stage = Stage(self.model, index)
            stage.set_train(False)
            inputs = {"images": self.images, **handed_on}
            inputs = {name: inputs[name] for name in stage.input_names}
            outputs = mindir.run_cell(stage, list(inputs.values()))
            handed_on = dict(zip(stage.output_names, outputs, strict=True))
            results.append((inputs, handed_on))
        return results

    @property
    def whole(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The same for all exits at once."""
        probabilities = np.stack([outputs["probabilities"] for _, outputs in self.exits], axis=1)
        return {"images": self.images}, {"probabilities": probabilities}


def write_mindir(reference: Reference, folder: Path, precision: str, batch_size: int | None, whole: bool) -> GraphSet:
    """Writes MindIR files into `folder`; a `batch_size` of None leaves it open. Raises DVTError if one deviates."""
    model = reference.model
    if precision == "float16":
        with kernels.disabled():
            model = build_from_config(model.config)
        load_weights(model, {name: value.asnumpy() for name, value in reference.model.parameters_dict().items()})
        set_precision(model, "O2")
        model.set_train(False)

    def save(index: int | None, path: Path, inputs: Sequence[Value]) -> None:
        mindir.save(mindir.WholeModel(model) if index is None else mindir.exit_cell(model, index), inputs, path)

    def load(path: Path) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
        return functools.partial(mindir.run_cell, mindir.load_file(path))

    return _write(reference, folder, "mindir", precision, batch_size, whole, save, load)


def write_onnx(reference: Reference, folder: Path, precision: str, whole: bool) -> GraphSet:
    """Writes ONNX files with an open batch into `folder`. Raises DVTError if one deviates."""
    from dvt.deploy.onnx import files as onnx_files

    config = reference.model.config
    weights = {name: parameter.asnumpy() for name, parameter in reference.model.parameters_dict().items()}

    def save(index: int | None, path: Path, inputs: Sequence[Value]) -> None:
        if index is None:
            model = onnx_files.whole_model(config, weights, precision)
        else:
            model = onnx_files.exit_model(config, weights, index, precision)
        onnx_files.save(model, path)

    graphs = _write(reference, folder, "onnx", precision, None, whole, save, onnx_files.load_file)
    return dataclasses.replace(graphs, details=onnx_files.versions())


def _write(
    reference: Reference,
    folder: Path,
    suffix: str,
    precision: str,
    batch_size: int | None,
    whole: bool,
    save: Save,
    load: Load,
) -> GraphSet:
    """Writes and checks one file per exit, and with `whole` one with all of them."""
    config = reference.model.config
    entries = []
    with logging_redirect_tqdm(), tqdm(total=config.num_exits + whole, unit="file", desc=suffix) as bar:
        for index in [*range(config.num_exits), *([None] if whole else [])]:
            started = time.perf_counter()
            if index is None:
                path, (inputs, outputs) = folder / f"whole.{suffix}", whole_values(config, batch_size)
                given, expected = reference.whole
            else:
                path = folder / f"exit_{index}.{suffix}"
                inputs, outputs = exit_values(config, index, precision, batch_size)
                given, expected = reference.exits[index]
            save(index, path, inputs)
            deviation = _check(path.name, load(path), inputs, outputs, given, expected, TOLERANCES[precision])
            entries.append(describe_file(path, inputs, outputs))
            bar.update()
            log.info(
                "%s: %.1f MB, loaded and compared (largest deviation %.1e), %.1f s",
                path.name,
                path.stat().st_size / 1e6,
                deviation,
                time.perf_counter() - started,
            )
    exits = tuple(entries[: config.num_exits])
    return GraphSet(precision, exits, whole=entries[-1] if whole else None)


def _check(
    name: str,
    run: Callable[[Sequence[np.ndarray]], list[np.ndarray]],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    given: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    tolerance: float,
) -> float:
    """Runs a file on `given`; returns the largest deviation from `expected`, raises DVTError above `tolerance`."""
    count = len(given["images"])
    stops = np.cumsum(OPEN_BATCH_CHECKS) if inputs[0].shape[0] is None else [count]
    largest, start = 0.0, 0
    for stop in stops:
        results = run([given[value.role][start:stop].astype(value.dtype) for value in inputs])
        for value, result in zip(outputs, results, strict=True):
            wanted = expected[value.role][start:stop]
            deviation = float("inf")
            if result.shape == wanted.shape and str(result.dtype) == value.dtype:
                difference = np.abs(result.astype(np.float32) - wanted).max()
                deviation = float(difference / max(1.0, np.abs(wanted).max()))
            if not deviation <= tolerance:
                raise DVTError(
                    f"{name} does not compute what the model does: its {value.role} deviate by {deviation:.1e} for "
                    f"{stop - start} images, and at most {tolerance:.0e} is rounding. Nothing was exported; please "
                    "report this with the versions of MindSpore and of this package"
                )
            largest = max(largest, deviation)
        start = stop
    return largest
