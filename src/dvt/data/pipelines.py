"""Batches as a `mindspore.dataset`. The only module of `dvt.data` that imports MindSpore."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mindspore as ms
import mindspore.dataset as ds
import numpy as np
from numpy.typing import NDArray

from dvt.errors import DVTError

PREFETCH_BATCHES = 2
"""Batches prepared ahead. MindSpore's default of 16 would hold gigabytes of ImageNet batches."""

BatchesOfEpoch = Callable[[int], Iterator[tuple[NDArray[np.float32], NDArray]]]


class _Epochs:
    """The batches of every epoch, and the error that ended one, since MindSpore turns it into a text.

    Args:
        batches: Epoch -> its batches.
        length: Batches per epoch.
    """

    def __init__(self, batches: BatchesOfEpoch, length: int) -> None:
        self.length = length
        self.failure: DVTError | None = None
        self._batches = batches

    def __deepcopy__(self, memo: Any) -> "_Epochs":
        """MindSpore copies a data set before it runs it; the error must get back, and images need no second copy."""
        return self

    def epoch(self, number: int) -> Iterator[tuple[NDArray[np.float32], NDArray]]:
        """The batches of one epoch."""
        self.failure = None
        try:
            yield from self._batches(number)
        except DVTError as error:
            self.failure = error
            raise

    @contextmanager
    def named_failure(self) -> Iterator[None]:
        """Raises the error of the data set itself where MindSpore raises a RuntimeError."""
        try:
            yield
        except RuntimeError:
            if self.failure is not None:
                raise self.failure from None
            raise


class _Passes:
    """Iterable of batches whose k-th pass is epoch `first + k`."""

    def __init__(self, epochs: _Epochs, first: int) -> None:
        self._epochs, self._next = epochs, first

    def __len__(self) -> int:
        return self._epochs.length

    def __iter__(self) -> Iterator[tuple[NDArray[np.float32], NDArray]]:
        number = self._next
        self._next += 1
        return self._epochs.epoch(number)


class _Iterator:
    """A MindSpore iterator that raises the error of the data set itself where MindSpore raises a RuntimeError."""

    def __init__(self, iterator: Any, epochs: _Epochs) -> None:
        self._iterator, self._epochs = iterator, epochs

    def __iter__(self) -> "_Iterator":
        return self

    def __next__(self) -> Any:
        with self._epochs.named_failure():
            return next(self._iterator)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)


class BatchDataset(ds.GeneratorDataset):
    """Whole batches with the columns `image` and `label`; see `dvt.data.Splits.pipeline`.

    Successive iterators go on counting epochs: an iterator over e epochs is followed by one that starts e later.

    Args:
        batches: Epoch -> its batches.
        length: Batches per epoch.
        epoch: Epoch of the first pass.
    """

    def __init__(self, batches: BatchesOfEpoch, length: int, epoch: int = 0) -> None:
        self._epochs, self._first = _Epochs(batches, length), epoch
        super().__init__(
            _Passes(self._epochs, epoch),
            column_names=["image", "label"],
            shuffle=False,
            num_parallel_workers=1,
            python_multiprocessing=False,
        )

    def parse(self, children: Any = None) -> Any:
        """Builds the C++ node, on a copy of this object: MindSpore does so for every iterator, and to look up shapes
        and types. Each gets passes of its own, so that looking up a shape does not use up an epoch."""
        self.source = _Passes(self._epochs, self._first)
        return super().parse(children)

    def create_tuple_iterator(
        self, columns: Any = None, num_epochs: int = -1, output_numpy: bool = False, do_copy: bool = False
    ) -> _Iterator:
        """As of `mindspore.dataset`; a fault in the data arrives as the `DVTError` that names it."""
        with _prefetch(PREFETCH_BATCHES):
            iterator = super().create_tuple_iterator(columns, num_epochs, output_numpy, do_copy)
        return self._started(iterator, num_epochs)

    def create_dict_iterator(
        self, num_epochs: int = -1, output_numpy: bool = False, do_copy: bool = False
    ) -> _Iterator:
        """As of `mindspore.dataset`; a fault in the data arrives as the `DVTError` that names it."""
        with _prefetch(PREFETCH_BATCHES):
            iterator = super().create_dict_iterator(num_epochs, output_numpy, do_copy)
        return self._started(iterator, num_epochs)

    def sunk_into(self, step: Callable[..., Any]) -> Callable[[], Any]:
        """A function without arguments that runs `step` on the next batch, epoch after epoch, while MindSpore sends the
        following ones to the device (Ascend and GPU). A fault in the data arrives as the `DVTError` that names it."""
        with _prefetch(PREFETCH_BATCHES):
            run = ms.data_sink(step, self)

        def run_named() -> Any:
            with self._epochs.named_failure():
                return run()

        return run_named

    def _started(self, iterator: Any, num_epochs: int) -> _Iterator:
        self._first += max(num_epochs, 1)
        return _Iterator(iterator, self._epochs)


@contextmanager
def _prefetch(batches: int) -> Iterator[None]:
    """Sets MindSpore's global prefetch size while an iterator is built, and puts it back."""
    before = ds.config.get_prefetch_size()
    ds.config.set_prefetch_size(batches)
    try:
        yield
    finally:
        ds.config.set_prefetch_size(before)
