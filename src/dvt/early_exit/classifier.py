"""Inference that really stops early. Axis letters: B images, K exits."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from dvt.device import GRAPH_LOCK
from dvt.early_exit.decisions import check_thresholds
from dvt.early_exit.gathering import run_gathered
from dvt.early_exit.loop import (
    DEFAULT_BATCH_SIZES,
    HandedOn,
    Predictions,
    check_batch_sizes,
    check_images,
    run_all,
    run_cascade,
    run_in_batches,
)
from dvt.early_exit.scores import CONFIDENCE, ExitRule
from dvt.errors import ConfigError, DataError
from dvt.models.cost import handed_on_shapes


class AdaptiveClassifier:
    """Classifies images with as few tokens as their difficulty asks for (paper, section 3.1).

    Two modes decide alike: `predict` answers each call at once (latency), `predict_batches` lets the images that an
    exit does not settle wait until the next one has a full batch of them (throughput). The model is put into evaluation
    mode, and used with the weights that it has when it is called.

    Each exit is compiled for the numbers of images in `batch_sizes`, each when first needed; any other number is cut
    and padded to these. Several threads may share a classifier; exits run one after the other. Results differ by float
    rounding (1e-6) with the batch that an image comes in, so one that close to a threshold may leave elsewhere.
    """

    def __init__(
        self,
        model: nn.Cell,
        thresholds: Sequence[float] | None = None,
        batch_sizes: Sequence[int] = DEFAULT_BATCH_SIZES,
        rule: ExitRule = CONFIDENCE,
    ) -> None:
        self.config = model.config
        rule.check_exits(self.config.num_exits)
        self.rule = rule
        self.thresholds = None if thresholds is None else check_thresholds(thresholds, self.config.num_exits)
        self.batch_sizes = check_batch_sizes(batch_sizes)
        self._exits = [ExitCell(model, index).set_train(False) for index in range(self.config.num_exits)]

    def predict(self, images: np.ndarray, thresholds: Sequence[float] | None = None) -> Predictions:
        """Classifies images, normalised float32 (B, I, S, S); `thresholds` (K,) take the place of the classifier's own.

        Raises ConfigError for thresholds that are missing, NaN or of another number, DataError as `check_images`.
        """
        thresholds = self._chosen(thresholds)
        return run_cascade(self.run_exit, self._checked(images), thresholds, self.config.num_classes, self.rule)

    def predict_batches(
        self,
        batches: Iterable[np.ndarray],
        thresholds: Sequence[float] | None = None,
        batch_size: int | None = None,
    ) -> Iterator[Predictions]:
        """Classifies many batches (B, I, S, S) and yields the predictions of each, in order, when all its images are
        settled. Raises as `predict`, naming the batch.

        Exits wait for `batch_size` images and are compiled for so many, the last one, the largest, for half of it.
        """
        thresholds = self._chosen(thresholds)
        sizes = self._gathered_sizes(check_batch_sizes(self.batch_sizes if batch_size is None else [batch_size])[-1])

        def checked() -> Iterator[np.ndarray]:
            for number, images in enumerate(batches):
                try:
                    yield self._checked(images)
                except DataError as error:
                    raise DataError(f"batch {number}: {error}") from error

        def run_exit(index: int, *inputs: Any) -> tuple[np.ndarray, HandedOn]:
            return self.run_exit(index, *inputs, [sizes[index]])

        return run_gathered(run_exit, checked(), thresholds, self.config.num_classes, sizes, self.rule)

    def all_exits(self, images: np.ndarray) -> np.ndarray:
        """Every exit on every image: (B, I, S, S) -> probabilities (K, B, classes), to find thresholds from."""
        return run_all(self.run_exit, self._checked(images), self.config.num_exits, self.config.num_classes)

    def run_exit(
        self,
        index: int,
        images: np.ndarray,
        handed_on: Mapping[str, np.ndarray],
        batch_sizes: Sequence[int] | None = None,
    ) -> tuple[np.ndarray, HandedOn]:
        """One exit on n images: (n, I, S, S) and what the exit before handed on -> probabilities, what is handed on."""
        cell = self._exits[index]
        if cell.exit.training:  # the model went back to training in between
            cell.set_train(False)

        def run(inputs: list[np.ndarray]) -> list[np.ndarray]:
            # Shares the memory of `inputs`, which stay as they are until the outputs are read.
            tensors = [Tensor.from_numpy(np.ascontiguousarray(part)) for part in inputs]
            with GRAPH_LOCK:
                outputs = cell(*cell.arguments(dict(zip(cell.input_names, tensors, strict=True))))
                return [output.asnumpy() for output in outputs]

        values = {"images": images, **handed_on}
        outputs = run_in_batches(run, [values[name] for name in cell.input_names], batch_sizes or self.batch_sizes)
        named = dict(zip(cell.output_names, outputs, strict=True))
        return named["probabilities"], {name: named[name] for name in handed_on_shapes(self.config, index)}

    def exit_seconds(self, images: np.ndarray) -> np.ndarray:
        """Seconds (K,) that each exit takes on all of these images (B, I, S, S), in throughput mode's sizes for B."""
        images, handed_on, seconds = self._checked(images), {}, []
        for index, size in enumerate(self._gathered_sizes(len(images))):
            started = time.perf_counter()
            _, handed_on = self.run_exit(index, images, handed_on, [size])
            seconds.append(time.perf_counter() - started)
        return np.asarray(seconds)

    def _gathered_sizes(self, batch_size: int) -> list[int]:
        """Images that each exit runs on in throughput mode (K,)."""
        before = self.config.num_exits - 1
        return [batch_size] * before + [max(1, batch_size // 2) if before else batch_size]

    def _chosen(self, thresholds: Sequence[float] | None) -> np.ndarray:
        thresholds = self.thresholds if thresholds is None else check_thresholds(thresholds, self.config.num_exits)
        if thresholds is None:
            raise ConfigError(
                f"no thresholds: give {self.config.num_exits} numbers to AdaptiveClassifier or to predict; "
                "`eval.py --mode 2` finds them"
            )
        return thresholds

    def _checked(self, images: np.ndarray) -> np.ndarray:
        images = images.asnumpy() if isinstance(images, Tensor) else images
        return check_images(images, (self.config.in_channels, self.config.image_size, self.config.image_size))


class ExitCell(nn.Cell):
    """One exit as it is run and exported: what `input_names` lists -> what `output_names` lists, in these orders."""

    def __init__(self, model: nn.Cell, exit_index: int) -> None:
        super().__init__(auto_prefix=False)
        self.exit = model.exits[exit_index]
        self.exits_before = exit_index
        self.input_names = ("images", *handed_on_shapes(model.config, exit_index - 1))
        handed_on = handed_on_shapes(model.config, exit_index)
        self.output_names = ("probabilities", *(name for name in handed_on if name != "probabilities"))

    @ms.jit
    def construct(
        self,
        images: Tensor,
        features: Tensor | None = None,
        relations: Tensor | None = None,
        earlier_probabilities: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """What this exit does not take is None. The names of the parameters are those of the inputs of MindIR files."""
        logits, features, relations = self.exit(images, features, relations)
        probabilities = ops.softmax(logits.astype(mstype.float32), axis=-1)
        if earlier_probabilities is not None:  # the mean of the exits before
            probabilities = (earlier_probabilities * self.exits_before + probabilities) / (self.exits_before + 1)
        return tuple([output for output in (probabilities, features, relations) if output is not None])

    @staticmethod
    def arguments(inputs: Mapping[str, Tensor]) -> list[Tensor | None]:
        """The arguments of `construct`, in its order, of the inputs by name."""
        return [inputs.get(name) for name in ("images", "features", "relations", "probabilities")]
