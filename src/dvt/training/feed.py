"""Batches into the compiled step: from the host, or sunk to the device ahead of time."""

import logging
from collections.abc import Iterator
from typing import Any

from mindspore import Tensor, nn

from dvt import device
from dvt.cluster.ranks import Ranks
from dvt.config.sections import TrainSection
from dvt.data import Splits

log = logging.getLogger(__name__)


class Feed:
    """Runs a step on the training batches of this rank, epoch after epoch.

    Args:
        step: Takes images and targets.
        splits: The data.
        train: Batch size, batches per step of the optimizer (an epoch ends with a whole one), and whether MindSpore
            sends batches to the device ahead of time, which the CPU cannot.
        ranks: The place of this process among those that share the batches.
        first_batch: Batches, counted from the start of training, that a resumed run has behind it.
    """

    def __init__(self, step: nn.Cell, splits: Splits, train: TrainSection, ranks: Ranks, first_batch: int = 0) -> None:
        self._step = step
        self._compiled_step = device.ahead_of_time(step)
        sink = train.dataset_sink_mode and device.current_target() != "CPU"
        if train.dataset_sink_mode and not sink:
            log.warning("train.dataset_sink_mode has no effect on the CPU")
        size, multiple = train.batch_size, train.accumulation_steps
        count = splits.num_batches("train", size, True, ranks.shard, multiple)
        epoch, skip = divmod(first_batch, count)

        def batches(epoch: int, skip: int = 0) -> Any:
            return splits.pipeline("train", size, True, epoch, ranks.shard, skip, multiple)

        # Sunk batches are sent in an endless loop, which does not fit an epoch that was begun before.
        self._begun = self._passes(batches(epoch, skip), count - skip, sink=False) if skip else None
        self._whole = self._passes(batches(epoch + 1 if skip else epoch), count, sink)

    def epoch(self) -> Iterator[Tensor]:
        """The results of the step on the batches of the next epoch, or of what is left of the first."""
        passes, self._begun = self._begun or self._whole, None
        return next(passes)

    def _passes(self, batches: Any, count: int, sink: bool) -> Iterator[Iterator[Tensor]]:
        """One iterator of results after the other, each over a pass of `count` batches."""
        sunk = batches.sunk_into(self._step) if sink else None
        while True:
            if sunk is not None:
                yield (sunk() for _ in range(count))
            else:
                pairs = batches.create_tuple_iterator(num_epochs=1, output_numpy=True)
                yield (self._compiled_step(Tensor(images), Tensor(targets)) for images, targets in pairs)
