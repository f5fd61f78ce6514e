"""MindIR files of a model, one per exit or one for all, and running one of them to check it."""

from collections.abc import Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from dvt.deploy.manifest import Value
from dvt.device import GRAPH_LOCK
from dvt.early_exit.classifier import Stage
from dvt.errors import DVTError


class FirstExit(nn.Cell):
    """A `Stage` under the names that its inputs have in the manifest: MindIR takes those of `construct`."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(auto_prefix=False)
        self.stage = stage

    def construct(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.stage(images)


class ExitWithFeatures(FirstExit):
    """As above."""

    def construct(self, images: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        return self.stage(images, features)


class ExitWithRelations(FirstExit):
    """As above."""

    def construct(self, images: Tensor, relations: Tensor) -> tuple[Tensor, ...]:
        return self.stage(images, relations)


class ExitWithBoth(FirstExit):
    """As above."""

    def construct(self, images: Tensor, features: Tensor, relations: Tensor) -> tuple[Tensor, ...]:
        return self.stage(images, features, relations)


class MeanExit(FirstExit):
    """An exit that averages its answers with those before it; else as above."""

    def construct(self, images: Tensor, earlier_probabilities: Tensor) -> tuple[Tensor, ...]:
        return self.stage(images, earlier_probabilities)


class MeanExitWithFeatures(FirstExit):
    """As above."""

    def construct(self, images: Tensor, features: Tensor, earlier_probabilities: Tensor) -> tuple[Tensor, ...]:
        return self.stage(images, features, earlier_probabilities)


class MeanExitWithRelations(FirstExit):
    """As above."""

    def construct(self, images: Tensor, relations: Tensor, earlier_probabilities: Tensor) -> tuple[Tensor, ...]:
        return self.stage(images, relations, earlier_probabilities)


class MeanExitWithBoth(FirstExit):
    """As above."""

    def construct(
        self, images: Tensor, features: Tensor, relations: Tensor, earlier_probabilities: Tensor
    ) -> tuple[Tensor, ...]:
        return self.stage(images, features, relations, earlier_probabilities)


class WholeModel(nn.Cell):
    """All exits, each on every image: images (B, I, S, S) -> probabilities (B, K, classes)."""

    def __init__(self, model: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, images: Tensor) -> Tensor:
        return ops.softmax(ops.stack(self.model(images), axis=1).astype(mstype.float32), axis=-1)


_BY_INPUTS = {
    ("images",): FirstExit,
    ("images", "features"): ExitWithFeatures,
    ("images", "relations"): ExitWithRelations,
    ("images", "features", "relations"): ExitWithBoth,
    ("images", "probabilities"): MeanExit,
    ("images", "features", "probabilities"): MeanExitWithFeatures,
    ("images", "relations", "probabilities"): MeanExitWithRelations,
    ("images", "features", "relations", "probabilities"): MeanExitWithBoth,
}


def exit_cell(model: nn.Cell, exit_index: int) -> nn.Cell:
    """The cell to be exported for one exit, in evaluation mode."""
    stage = Stage(model, exit_index)
    return _BY_INPUTS[stage.input_names](stage).set_train(False)


def save(cell: nn.Cell, inputs: Sequence[Value], path: Path) -> None:
    """Writes `cell` as MindIR; a batch of None stays open. Raises DVTError if it does not fit into one file."""
    tensors = [Tensor(shape=list(value.shape), dtype=getattr(mstype, value.dtype)) for value in inputs]
    if all(None not in value.shape for value in inputs):
        tensors = [Tensor(np.zeros(value.shape, value.dtype)) for value in inputs]
    before = set(path.parent.iterdir())
    ms.export(cell, *tensors, file_name=str(path), file_format="MINDIR")
    if any(entry.is_dir() for entry in set(path.parent.iterdir()) - before):
        raise DVTError(
            f"{path.name} is too large for one MindIR file: MindSpore put its weights elsewhere. Export a smaller model"
        )


def run_cell(cell: nn.Cell, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Outputs of a cell as arrays; threads take turns."""
    with GRAPH_LOCK:
        outputs = cell(*[Tensor(value) for value in inputs])
        return [output.asnumpy() for output in (outputs if isinstance(outputs, tuple | list) else (outputs,))]


def load_file(path: Path) -> nn.Cell:
    """The cell of a MindIR file."""
    return nn.GraphCell(ms.load(str(path)))
