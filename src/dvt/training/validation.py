"""Accuracy of every exit during training, shared by the ranks. Axis letters: K exits, B images."""

import logging

import numpy as np
from mindspore import Tensor, nn, ops

from dvt import device
from dvt.checkpoint.native import load_weights
from dvt.data import Splits
from dvt.data.bad_images import LEFT_OUT
from dvt.models.cascade import build_from_config
from dvt.models.variants import ModelConfig
from dvt.training.agreement import errors_shared

log = logging.getLogger(__name__)


class _Answers(nn.Cell):
    """images (B, I, S, S) -> most probable class at each exit, (K, B)."""

    def __init__(self, model: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, images: Tensor) -> Tensor:
        return ops.stack(self.model(images)).argmax(axis=-1)


class Validation:
    """Top-1 accuracy of given weights on a split, every image that can be read counted once over all ranks.

    A model of its own holds the weights (usually the moving average), so that the compiled training step stays as it
    is; it computes in float32.

    Args:
        config: The model.
        splits: Images, with the evaluation preprocessing that is wanted.
        split: Name of the split.
        batch_size: Images per batch.
    """

    def __init__(self, config: ModelConfig, splits: Splits, split: str, batch_size: int) -> None:
        self._splits, self._split, self._batch_size = splits, split, batch_size
        self._model = build_from_config(config)
        self._model.set_train(False)
        self._answers = device.ahead_of_time(_Answers(self._model))
        self._shard = (device.rank(), device.world_size())
        splits.num_batches(split, batch_size, shard=self._shard)  # refuses more ranks than images now

    def accuracy(self, weights: dict[str, np.ndarray]) -> list[float]:
        """Accuracy of each exit in percent, the same on all ranks. Raises CheckpointError for weights not finite, and
        SharedDataError on all ranks for a bad image of one, or too many of them."""
        load_weights(self._model, weights, source="the weights to validate")
        correct, seen = 0.0, 0
        with errors_shared():
            for images, labels in self._splits.batches(self._split, self._batch_size, self._shard):
                count = len(images)
                if count < self._batch_size:  # one compiled shape serves all
                    images = np.concatenate([images, np.repeat(images[-1:], self._batch_size - count, axis=0)])
                answers = self._answers(Tensor(images)).asnumpy()[:, :count]  # (K, B)
                correct, seen = correct + (answers == labels).sum(axis=1), seen + (labels != LEFT_OUT).sum()
        totals = device.sum_over_ranks(np.append(correct, seen))
        left_out = self._splits.sizes[self._split] - int(totals[-1])
        if left_out:
            with errors_shared():
                self._splits.bad_images.check(self._split, left_out)
            log.info(
                "%d of %d images of %s cannot be read; accuracy is over the other %d",
                left_out,
                self._splits.sizes[self._split],
                self._split,
                totals[-1],
            )
        return [float(100.0 * each / totals[-1]) for each in totals[:-1]]
