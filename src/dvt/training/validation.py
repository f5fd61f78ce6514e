"""Accuracy of every exit during training, shared by the ranks. Axis letters: K exits, B images."""

import logging

import numpy as np
from mindspore import Tensor

from dvt import device
from dvt.checkpoint.native import load_weights
from dvt.cluster.ranks import Ranks
from dvt.data import Splits
from dvt.data.bad_images import LEFT_OUT
from dvt.early_exit.loop import padded
from dvt.models.cascade import AllExits, build_from_config
from dvt.models.variants import ModelConfig
from dvt.training.agreement import errors_shared

log = logging.getLogger(__name__)


class Validation:
    """Top-1 accuracy of given weights on the validation images, each that can be read counted once over all ranks. The
    weights (usually the moving average) go into a second model, which computes in float32, so that the compiled
    training step stays as it is."""

    def __init__(self, config: ModelConfig, splits: Splits, batch_size: int, ranks: Ranks) -> None:
        self._splits, self._batch_size, self._ranks = splits, batch_size, ranks
        self._model = build_from_config(config, initialised=False)
        self._model.set_train(False)
        self._all_exits = device.ahead_of_time(AllExits(self._model, probabilities=False))
        splits.num_batches("val", batch_size, shard=ranks.shard)  # refuses more ranks than images now

    def accuracy(self, weights: dict[str, np.ndarray]) -> list[float]:
        """Accuracy of each exit in percent, the same on all ranks. Raises CheckpointError for weights not finite, and
        SharedDataError on all ranks for a bad image of one, or too many of them."""
        load_weights(self._model, weights, source="the weights to validate")
        correct, seen = 0.0, 0
        with errors_shared(self._ranks):
            for images, labels in self._splits.batches("val", self._batch_size, self._ranks.shard):
                logits = self._all_exits(Tensor(padded(images, self._batch_size))).asnumpy()  # one compiled shape
                answers = logits[:, : len(images)].argmax(axis=-1)  # (K, B)
                correct, seen = correct + (answers == labels).sum(axis=1), seen + (labels != LEFT_OUT).sum()
        *correct, seen = self._ranks.sum(np.append(correct, seen))
        count = self._splits.sizes["val"]
        left_out = count - int(seen)
        if left_out:
            with errors_shared(self._ranks):
                self._splits.bad_images.check("val", left_out)
            log.info("%d of %d images of val cannot be read; accuracy is over the other %d", left_out, count, seen)
        return [float(100.0 * each / seen) for each in correct]
