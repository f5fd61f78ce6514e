"""Batches as a `mindspore.dataset`, for `mindspore.Model` and for data that MindSpore sends to the device by itself.

Everything else iterates over `Splits.batches` and `TrainingBatches.epoch`. The only module of `dvt.data` that imports
MindSpore.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mindspore as ms
import mindspore.dataset as ds
import numpy as np
from numpy.typing import NDArray

from dvt.errors import DVTError

PREFETCH_BATCHES = 2
"""Batches that MindSpore holds ready; its default of 16 would be gigabytes of ImageNet batches."""

Batches = Iterator[tuple[NDArray[np.float32], NDArray]]


class _Epochs:
    """Iterable of which every pass is the next epoch."""

    def __init__(self, batches: Callable[[int], Batches], length: int, first: int) -> None:
        self.next_epoch = first
        self._batches, self._length = batches, length
        self._failure: DVTError | None = None

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Batches:
        self.next_epoch += 1
        return self._epoch(self.next_epoch - 1)

    def _epoch(self, number: int) -> Batches:
        try:
            yield from self._batches(number)
        except DVTError as error:
            self._failure = error
            raise

    @contextmanager
    def named_failure(self) -> Iterator[None]:
        """Raises the error that ended an epoch, which MindSpore turns into the text of a RuntimeError."""
        try:
            yield
        except RuntimeError:
            if self._failure is not None:
                raise self._failure from None
            raise


def as_dataset(batches: Callable[[int], Batches], length: int, first: int) -> ds.GeneratorDataset:
    """A dataset with the columns `image` and `label`, of which every new pass is the next epoch.

    Args:
        batches: Epoch -> its batches.
        length: Batches per epoch.
        first: Epoch of the first pass.

    Raises:
        DataError: The first batch cannot be made.
    """
    epochs = _Epochs(batches, length, first)
    dataset = ds.GeneratorDataset(
        epochs, ["image", "label"], shuffle=False, num_parallel_workers=1, python_multiprocessing=False
    )
    with epochs.named_failure():
        # MindSpore starts a pass to look up either, and remembers what it found.
        dataset.output_shapes()
        dataset.output_types()
    epochs.next_epoch = first
    return dataset


def sunk_into(step: Callable[..., Any], dataset: ds.GeneratorDataset) -> Callable[[], Any]:
    """A function without arguments that runs `step` on the next batch, epoch after epoch, while MindSpore sends the
    following ones to the device (Ascend and GPU).

    Args:
        step: Takes the columns of `dataset`.
        dataset: Made by `as_dataset`. A fault in the data arrives as the `DVTError` that names it.
    """
    before = ds.config.get_prefetch_size()
    ds.config.set_prefetch_size(PREFETCH_BATCHES)
    try:
        run = ms.data_sink(step, dataset)
    finally:
        ds.config.set_prefetch_size(before)

    def run_named() -> Any:
        with dataset.source.named_failure():
            return run()

    return run_named
