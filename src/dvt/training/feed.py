"""Batches into the compiled step: from the host, or sunk to the device ahead of time."""

import logging
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

from mindspore import Tensor, nn
from mindspore.profiler import profile, tensorboard_trace_handler

from dvt import device
from dvt.cluster.ranks import Ranks
from dvt.config.sections import TrainSection
from dvt.data import Splits
from dvt.data.pipelines import as_dataset, sunk_into

SKIPPED, RECORDED = 3, 5  # batches of a profile: the first ones compile and warm up

log = logging.getLogger(__name__)


class Feed:
    """Runs a step, which takes images and targets, on the training batches of this rank, epoch after epoch.

    `first_batch` is the number of batches, counted from the start of training, that a resumed run has behind it. With
    `train.dataset_sink_mode` MindSpore sends batches to the device ahead of time, which the CPU cannot.
    """

    def __init__(self, step: nn.Cell, splits: Splits, train: TrainSection, ranks: Ranks, first_batch: int = 0) -> None:
        self._step = step
        sunk = train.dataset_sink_mode and device.current_target() != "CPU"
        if train.dataset_sink_mode and not sunk:
            log.warning("train.dataset_sink_mode has no effect on the CPU")
        self._batches = splits.training(train.batch_size, ranks.shard, train.accumulation_steps)
        epoch, skip = divmod(first_batch, self._batches.per_epoch)
        # Sunk batches are sent in an endless loop, which does not fit an epoch that was begun before.
        self._begun = self._from_host(epoch, skip) if skip else None
        first = epoch + 1 if skip else epoch
        self._whole = self._sunk(first) if sunk else map(self._from_host, count(first))

    def epoch(self) -> Iterator[Tensor]:
        """The results of the step on the batches of the next epoch, or of what is left of the first."""
        begun, self._begun = self._begun, None
        return begun or next(self._whole)

    def _from_host(self, epoch: int, skip: int = 0) -> Iterator[Tensor]:
        for images, targets in self._batches.epoch(epoch, skip):
            yield self._step(Tensor(images), Tensor(targets))

    def _sunk(self, first: int) -> Iterator[Iterator[Tensor]]:
        run = sunk_into(self._step, as_dataset(self._batches.epoch, self._batches.per_epoch, first))
        while True:
            yield (run() for _ in range(self._batches.per_epoch))


def profiled(results: Iterable[Tensor], folder: Path) -> Iterator[Tensor]:
    """The results as they come; what makes the fourth to the eighth of them is recorded into `folder`."""
    recorder, number = None, 0
    for number, result in enumerate(results, start=1):
        yield result
        if number == SKIPPED:  # resumed here when the next result is asked for
            recorder = profile(start_profile=False, on_trace_ready=tensorboard_trace_handler(str(folder)))
            recorder.start()
        elif number == SKIPPED + RECORDED:
            recorder.stop()
    if SKIPPED <= number < SKIPPED + RECORDED:
        recorder.stop()
    if number > SKIPPED:
        log.info("profile of up to %d batches: %s", RECORDED, folder)
    else:
        log.warning("nothing was profiled: the first epoch has fewer than %d batches", SKIPPED + 1)
