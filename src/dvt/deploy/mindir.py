"""Models as MindIR files: what is built for export, and how it is written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore import dtype as mstype

from dvt.checkpoint.native import load_weights
from dvt.deploy.backends import MindSporeBackend
from dvt.deploy.manifest import Value
from dvt.early_exit.classifier import ExitCell
from dvt.errors import DVTError
from dvt.models.cascade import build_from_config
from dvt.models.precision import set_precision


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
    backend = MindSporeBackend
    details: ClassVar[dict[str, Any]] = {}

    def __init__(self, model: nn.Cell, precision: str = "float32", batch_size: int | None = None) -> None:
        self.precision, self.batch_size = precision, batch_size
        self._model = model if precision == "float32" else exportable(model, precision)

    def save(self, exit_index: int, inputs: Sequence[Value], path: Path) -> None:
        """Writes one exit. Raises DVTError if that does not fit into one file.

        The inputs in the file have the names of the parameters of `construct`, which are those of the manifest.
        """
        cell = ExitCell(self._model, exit_index).set_train(False)
        arguments = ExitCell.arguments({value.role: _placeholder(value) for value in inputs})
        before = set(path.parent.iterdir())
        ms.export(cell, *arguments, file_name=str(path), file_format="MINDIR")
        if any(entry.is_dir() for entry in set(path.parent.iterdir()) - before):
            raise DVTError(
                f"{path.name} is too large for one MindIR file: MindSpore put its weights elsewhere. Export a smaller "
                "model"
            )


def _placeholder(value: Value) -> Tensor:
    if None in value.shape:
        return Tensor(shape=list(value.shape), dtype=getattr(mstype, value.dtype))
    return Tensor(np.zeros(value.shape, value.dtype))
