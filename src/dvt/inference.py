"""Inference that really stops early: exit by exit, images that are confident enough leave, the others go on.

Axis letters: B images, K exits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from dvt.early_exit import check_thresholds
from dvt.errors import ConfigError, DataError

DEFAULT_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Predictions:
    """What `AdaptiveClassifier.predict` returns, in the order of the images."""

    labels: np.ndarray  # (B,) int64, most probable class
    probabilities: np.ndarray  # (B, classes) float32, softmax of the exit taken
    confidence: np.ndarray  # (B,) float32, largest probability
    exit_index: np.ndarray  # (B,) int64, 0-based


class AdaptiveClassifier:
    """Classifies images with as few tokens as their difficulty asks for (paper, section 3.1; spec: early exit).

    An image leaves at the first exit whose confidence is at least that exit's threshold; the last exit takes all that
    are left. Exit k + 1 runs only on the images that are left, with the features and relations exit k handed on.

    Each exit is compiled, in graph and in PyNative mode, for the numbers of images in `batch_sizes`, each when first
    needed; any other number is cut and padded to these. Static shapes are what Ascend wants, and on the CPU they run
    this model three times as fast as one graph for every number.

    The model is put into evaluation mode, and used with the weights that it has when `predict` is called.

    Results of an image differ by float rounding (1e-6) with the batch it comes in, so an image whose confidence is
    that close to a threshold may leave one exit earlier or later.
    """

    def __init__(
        self,
        model: nn.Cell,
        thresholds: Sequence[float] | None = None,
        batch_sizes: Sequence[int] = DEFAULT_BATCH_SIZES,
    ) -> None:
        self.config = model.config
        self.thresholds = None if thresholds is None else check_thresholds(thresholds, self.config.num_exits)
        self.batch_sizes = sorted(set(batch_sizes))
        if not self.batch_sizes or self.batch_sizes[0] < 1:
            raise ConfigError(f"batch_sizes is {list(batch_sizes)}; give one or more numbers of images, 1 or larger")
        self._stages = [Stage(model, index) for index in range(self.config.num_exits)]
        for stage in self._stages:
            stage.set_train(False)

    def predict(self, images: np.ndarray, thresholds: Sequence[float] | None = None) -> Predictions:
        """Classifies images, normalised float32 (B, I, S, S); `thresholds` (K,) take the place of the classifier's own.

        Raises ConfigError for thresholds that are missing, NaN or of another number, DataError for images of another
        shape or with NaN or infinite pixels.
        """
        thresholds = self.thresholds if thresholds is None else check_thresholds(thresholds, self.config.num_exits)
        if thresholds is None:
            raise ConfigError(
                f"no thresholds: give {self.config.num_exits} numbers to AdaptiveClassifier or to predict; "
                "`eval.py --mode 2` finds them"
            )
        images = self._checked(images)
        count = len(images)
        for stage in self._stages:
            if stage.exit.training:  # the model went back to training in between
                stage.set_train(False)
        probabilities = np.zeros((count, self.config.num_classes), np.float32)
        confidence = np.zeros(count, np.float32)
        exit_index = np.zeros(count, np.int64)

        left = np.arange(count)  # indices of the images still in the cascade
        features, relations = None, None
        for index, stage in enumerate(self._stages):
            if len(left) == 0:
                break
            stage_probabilities, features, relations = self._run(stage, images[left], features, relations)
            stage_confidence = stage_probabilities.max(axis=1)
            last = index == self.config.num_exits - 1
            leaves = np.ones(len(left), bool) if last else stage_confidence >= thresholds[index]
            probabilities[left[leaves]] = stage_probabilities[leaves]
            confidence[left[leaves]] = stage_confidence[leaves]
            exit_index[left[leaves]] = index
            features, relations = _select(features, ~leaves), _select(relations, ~leaves)
            left = left[~leaves]
        return Predictions(probabilities.argmax(axis=1), probabilities, confidence, exit_index)

    def _checked(self, images: np.ndarray) -> np.ndarray:
        images = images.asnumpy() if isinstance(images, Tensor) else np.asarray(images)
        expected = (self.config.in_channels, self.config.image_size, self.config.image_size)
        if not np.issubdtype(images.dtype, np.floating):
            raise DataError(
                f"images are {images.dtype}; this model needs normalised floats, that is (pixel / 255 - mean) / std"
            )
        if images.ndim != 4 or images.shape[1:] != expected:
            raise DataError(f"images have shape {images.shape}; this model needs (B, {', '.join(map(str, expected))})")
        images = np.ascontiguousarray(images, np.float32)
        if not np.isfinite(images).all():
            bad = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
            raise DataError(f"image {bad[0]} of the batch has NaN or infinite pixels ({len(bad)} such images in all)")
        return images

    def _run(self, stage: "Stage", images: np.ndarray, features, relations) -> tuple:
        """One exit on n images -> probabilities (n, classes), features and relations for the next exit, as arrays."""
        pieces = []
        for start, stop, size in _pieces(len(images), self.batch_sizes):
            inputs = [part[start:stop] for part in (images, features, relations) if part is not None]
            outputs = stage(*[Tensor(_padded(part, size)) for part in inputs])
            pieces.append([output.asnumpy()[: stop - start] for output in outputs])
        merged = [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in zip(*pieces, strict=True)]
        probabilities = merged.pop(0)
        features = merged.pop(0) if stage.exit.hands_on_features else None
        relations = merged.pop(0) if stage.exit.hands_on_relations else None
        return probabilities, features, relations


class Stage(nn.Cell):
    """One exit for inference, as the classifier runs it and as it is exported: what `input_names` lists, in that order
    and without Nones -> what `output_names` lists."""

    def __init__(self, model: nn.Cell, exit_index: int) -> None:
        super().__init__(auto_prefix=False)
        self.exit = model.exits[exit_index]
        self.takes_features = model.config.feature_reuse and exit_index > 0
        self.takes_relations = model.config.relation_reuse and exit_index > 0
        taken = (("features", self.takes_features), ("relations", self.takes_relations))
        handed_on = (("features", self.exit.hands_on_features), ("relations", self.exit.hands_on_relations))
        self.input_names = ("images", *(name for name, there in taken if there))
        self.output_names = ("probabilities", *(name for name, there in handed_on if there))

    @ms.jit
    def construct(self, images: Tensor, first: Tensor | None = None, second: Tensor | None = None) -> tuple:
        features = first if self.takes_features else None
        relations = (second if self.takes_features else first) if self.takes_relations else None
        logits, features, relations = self.exit(images, features, relations)
        outputs = (ops.softmax(logits, axis=-1),)
        if features is not None:
            outputs = outputs + (features,)
        if relations is not None:
            outputs = outputs + (relations,)
        return outputs


def _pieces(count: int, sizes: Sequence[int]) -> list[tuple[int, int, int]]:
    """(start, stop, compiled size) of the batches that `count` images are run in.

    The rest goes into the next larger size if that wastes at most a quarter of it, else the largest that it fills.
    """
    pieces, start = [], 0
    while start < count:
        left = count - start
        above = next((size for size in sizes if size >= left), None)
        below = [size for size in sizes if size <= left]
        size = above if above is not None and (not below or left >= 0.75 * above) else below[-1]
        stop = min(start + size, count)
        pieces.append((start, stop, size))
        start = stop
    return pieces


def _padded(part: np.ndarray, size: int) -> np.ndarray:
    """`part` with its last image repeated up to `size` images."""
    missing = size - len(part)
    return part if missing <= 0 else np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])


def _select(part: np.ndarray | None, keep: np.ndarray) -> np.ndarray | None:
    return None if part is None else part[keep]
