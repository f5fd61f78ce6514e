"""Batches as a `mindspore.dataset`, for `mindspore.Model` and for data that MindSpore sends to the device by itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mindspore as ms
import mindspore.dataset as ds
import numpy as np
from numpy.typing import NDArray

from dvt.errors import DVTError

PREFETCH_BATCHES = 2  # that MindSpore holds ready; its default of 16 would be gigabytes of ImageNet

Batches = Iterator[tuple[NDArray[np.float32], NDArray]]


class _Epochs:
    """Every pass is the next epoch."""

    def __init__(self, batches: Callable[[int], Batches], length: int, first: int) -> None:
        self.next_epoch = first
        self._batches, self._length = batches, length
        self._failure: DVTError | None = None

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Batches:
        self.next_epoch += 1
        try:
            yield from self._batches(self.next_epoch - 1)
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
    """A dataset with the columns `image` and `label`, of which every new pass is the next epoch, the first one `first`;
    `batches` gives the `length` batches of an epoch. Raises DataError if the first of them cannot be made."""
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
    """A function that runs `step` on the columns of the next batch, epoch after epoch, while MindSpore sends the
    following ones to the device (Ascend and GPU); it raises the `DVTError` that names a fault in the data."""
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
