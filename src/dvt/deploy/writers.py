"""The files of each format: written into a folder, loaded again as a runner loads them, and compared with the model."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from mindspore import nn
from tqdm.contrib.logging import logging_redirect_tqdm

from dvt.data.progress import progress
from dvt.deploy.backends import Backend
from dvt.deploy.manifest import GraphFile, GraphSet, Value, describe_file, exit_values
from dvt.early_exit.classifier import AdaptiveClassifier
from dvt.errors import DVTError
from dvt.models.variants import ModelConfig

TOLERANCES = {"float32": 1e-5, "float16": 2e-2}
"""Largest deviation from the float32 model, relative to the largest value where that is above 1."""
OPEN_BATCH_CHECKS = (1, 3)  # numbers of images that a file with an open batch is tried with

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reference:
    """What the file of one exit must compute, by role: the outputs of the model itself for some inputs."""

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


def references(model: nn.Cell, batch_size: int | None) -> list[Reference]:
    """One for every exit of the model, on made-up images."""
    config, count = model.config, batch_size or sum(OPEN_BATCH_CHECKS)
    shape = (count, config.in_channels, config.image_size, config.image_size)
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    classifier = AdaptiveClassifier(model, batch_sizes=[count])
    found, handed_on = [], {}
    for index in range(config.num_exits):
        inputs = {"images": images, **handed_on}
        probabilities, handed_on = classifier.run_exit(index, images, handed_on)
        found.append(Reference(inputs, {"probabilities": probabilities, **handed_on}))
    return found


class Writer(Protocol):
    """How the files of one format are written and run; `batch_size` is None where it is left open."""

    suffix: str
    backend: Callable[[Path, GraphSet], Backend]
    details: dict[str, Any]
    precision: str
    batch_size: int | None

    def save(self, exit_index: int, inputs: Sequence[Value], path: Path) -> None:
        """Writes one exit, with inputs as described, into a file."""


def write_files(folder: Path, config: ModelConfig, writer: Writer, wanted: Sequence[Reference]) -> GraphSet:
    """Writes a file for each exit, and checks it. Raises DVTError if it computes something else."""
    entries = []
    with logging_redirect_tqdm(), progress(wanted, unit="file", desc=writer.suffix) as bar:
        for index, reference in enumerate(bar):
            started = time.perf_counter()
            inputs, outputs = exit_values(config, index, writer.precision, writer.batch_size)
            path = folder / f"exit_{index}.{writer.suffix}"
            writer.save(index, inputs, path)
            entry = describe_file(path, inputs, outputs)
            backend = writer.backend(folder, GraphSet(writer.precision, (entry,)))
            deviation = check(entry, backend, reference, TOLERANCES[writer.precision])
            entries.append(entry)
            log.info(
                "%s: %.1f MB, loaded and compared (largest deviation %.1e), %.1f s",
                entry.file,
                entry.bytes / 1e6,
                deviation,
                time.perf_counter() - started,
            )
    return GraphSet(writer.precision, tuple(entries), details=dict(writer.details))


def check(entry: GraphFile, backend: Backend, reference: Reference, tolerance: float) -> float:
    """Largest deviation of what a file, loaded alone, computes. Raises DVTError if it is more than `tolerance`."""
    largest, start = 0.0, 0
    count = len(reference.inputs["images"])
    for size in OPEN_BATCH_CHECKS if entry.inputs[0].shape[0] is None else (count,):
        rows = slice(start, start + size)
        results = backend.run(0, [reference.inputs[value.role][rows].astype(value.dtype) for value in entry.inputs])
        for value, result in zip(entry.outputs, results, strict=True):
            wanted = reference.outputs[value.role][rows]
            deviation = float("inf")
            if result.shape == wanted.shape and str(result.dtype) == value.dtype:
                difference = np.abs(result.astype(np.float32) - wanted).max()
                deviation = float(difference / max(1.0, np.abs(wanted).max()))
            if not deviation <= tolerance:
                raise DVTError(
                    f"{entry.file} does not compute what the model does: its {value.role} deviate by {deviation:.1e} "
                    f"for {size} images, and at most {tolerance:.0e} is rounding. Nothing was exported; "
                    "please report this with the versions of MindSpore and of this package"
                )
            largest = max(largest, deviation)
        start += size
    return largest
