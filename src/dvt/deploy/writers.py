"""The files of each format: written into a folder, then run as users run them and compared with the model."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore import dtype as mstype

from dvt.checkpoint.native import load_weights
from dvt.data.progress import progress
from dvt.deploy.manifest import GraphSet, Value, describe_file, exit_values
from dvt.deploy.runner import Cascade
from dvt.early_exit.classifier import AdaptiveClassifier, ExitCell
from dvt.errors import DVTError
from dvt.models.cascade import build_from_config
from dvt.models.precision import set_precision
from dvt.models.variants import ModelConfig

if TYPE_CHECKING:
    from dvt.deploy.onnx.exits import OnnxWriter

TOLERANCES = {"float32": 1e-5, "float16": 2e-2}
"""Largest deviation from the float32 model, relative to the largest value where that is above 1."""
OPEN_BATCH_CHECKS = (1, 3)  # numbers of images that a file with an open batch is tried with


def exportable(model: nn.Cell, precision: str = "float32") -> nn.Cell:
    """A copy of `model` for inference, made of MindSpore's operators alone: files with others could not be loaded."""
    copy = build_from_config(model.config, kernels=False, initialised=False)
    load_weights(copy, {name: parameter.asnumpy() for name, parameter in model.parameters_dict().items()})
    if precision == "float16":
        set_precision(copy, "O2")
    return copy.set_train(False)


class MindirWriter:
    """Writes the MindIR files of an exportable float32 model; a `batch_size` of None leaves it open."""

    suffix = "mindir"

    def __init__(self, model: nn.Cell, precision: str = "float32", batch_size: int | None = None) -> None:
        self.precision, self.batch_size, self.details = precision, batch_size, {}
        self._model = model if precision == "float32" else exportable(model, precision)

    def save(self, exit_index: int, inputs: Sequence[Value], path: Path) -> None:
        """Writes one exit. Raises DVTError if one file cannot hold it. The inputs in the file have the names of the
        parameters of `construct`, which are those of the manifest."""
        cell = ExitCell(self._model, exit_index).set_train(False)
        given = {each.role: Tensor(shape=list(each.shape), dtype=getattr(mstype, each.dtype)) for each in inputs}
        ms.export(cell, *cell.arguments(given), file_name=str(path), file_format="MINDIR")
        if any(entry.is_dir() for entry in path.parent.iterdir()):  # with the weights
            raise DVTError(f"{path.name} is too large for one MindIR file; export a smaller model")


def write_files(folder: Path, config: ModelConfig, writer: "MindirWriter | OnnxWriter") -> GraphSet:
    """Writes a file for each exit."""
    entries = []
    for index in progress(range(config.num_exits), unit="file", desc=writer.suffix):
        inputs, outputs = exit_values(config, index, writer.precision, writer.batch_size)
        path = folder / f"exit_{index}.{writer.suffix}"
        writer.save(index, inputs, path)
        entries.append(describe_file(path, inputs, outputs))
    return GraphSet(writer.precision, tuple(entries), details=writer.details)


def check(cascade: Cascade, model: nn.Cell) -> float:
    """Largest deviation of what the exits of a bundle compute. Raises DVTError if it is more than rounding."""
    graphs, config, largest = cascade.manifest.graphs[cascade.graph_format], model.config, 0.0
    tolerance, fixed = TOLERANCES[graphs.precision], graphs.exits[0].inputs[0].shape[0]
    counts = OPEN_BATCH_CHECKS if fixed is None else (fixed,)
    classifier = AdaptiveClassifier(model, batch_sizes=[max(counts)])
    for count in counts:
        shape, handed_on = (count, config.in_channels, config.image_size, config.image_size), {}
        images = np.random.default_rng(count).standard_normal(shape, dtype=np.float32)
        for index, entry in enumerate(graphs.exits):
            given = {each.role: handed_on[each.role].astype(each.dtype) for each in entry.inputs[1:]}
            probabilities, found = cascade.run_exit(index, images, given)
            wanted, handed_on = classifier.run_exit(index, images, handed_on)
            found, expected = {**found, "probabilities": probabilities}, {**handed_on, "probabilities": wanted}
            for value in entry.outputs:
                right, result, deviation = expected[value.role], found[value.role], float("inf")
                if result.shape == right.shape and str(result.dtype) == value.dtype:
                    deviation = float(np.abs(result.astype(np.float32) - right).max() / max(1.0, np.abs(right).max()))
                if not deviation <= tolerance:
                    raise DVTError(
                        f"{entry.file} does not compute what the model does: its {value.role} deviate by "
                        f"{deviation:.1e} for {count} images, and at most {tolerance:.0e} is rounding. Nothing was "
                        "exported; please report this with the versions of MindSpore and of this package"
                    )
                largest = max(largest, deviation)
    return largest
