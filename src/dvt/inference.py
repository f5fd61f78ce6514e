"""Inference that really stops early: exit by exit, images that are confident enough leave, the others go on.

Axis letters: B images, K exits.
"""

from collections.abc import Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from dvt.adaptive import (
    DEFAULT_BATCH_SIZES,
    HandedOn,
    Predictions,
    check_batch_sizes,
    check_images,
    run_cascade,
    run_in_batches,
)
from dvt.early_exit import check_thresholds
from dvt.errors import ConfigError


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
        self.batch_sizes = check_batch_sizes(batch_sizes)
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
        images = images.asnumpy() if isinstance(images, Tensor) else images
        images = check_images(images, (self.config.in_channels, self.config.image_size, self.config.image_size))
        for stage in self._stages:
            if stage.exit.training:  # the model went back to training in between
                stage.set_train(False)
        return run_cascade(self._run_exit, images, thresholds, self.config.num_classes)

    def _run_exit(
        self, index: int, images: np.ndarray, handed_on: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, HandedOn]:
        stage = self._stages[index]

        def run(inputs: list[np.ndarray]) -> list[np.ndarray]:
            return [output.asnumpy() for output in stage(*[Tensor(part) for part in inputs])]

        inputs = [images, *(handed_on[name] for name in stage.input_names[1:])]
        probabilities, *rest = run_in_batches(run, inputs, self.batch_sizes)
        return probabilities, dict(zip(stage.output_names[1:], rest, strict=True))


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
        outputs = (ops.softmax(logits.astype(mstype.float32), axis=-1),)
        if features is not None:
            outputs = outputs + (features,)
        if relations is not None:
            outputs = outputs + (relations,)
        return outputs
