"""What every source of images offers to `dvt.data.splits`, and the two general ones: in memory, and drawn in threads.

Legend: n images of a batch, C channels, S side of the model input.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dvt.data.augment import random_shift_flip
from dvt.data.draws import uniforms
from dvt.data.preprocess import Preprocessing

MAX_WORKERS = 8


class ImageSet(Protocol):
    """Labelled images of one part ("train" or "val") of a data set, by index in the order of the files.

    What is returned for an index depends on nothing but the index and, in training, the key.
    """

    labels: NDArray[np.int32]  # (N,)

    def evaluation(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n,) indices -> (n, C, S, S) normalised, with evaluation preprocessing."""

    def training(self, indices: NDArray[np.int64], key: int) -> NDArray[np.float32]:
        """(n,) indices -> (n, C, S, S) normalised, augmented with the random numbers of (key, index)."""

    def attributes(self, indices: NDArray[np.int64]) -> dict[str, NDArray]:
        """What is known of the images in evaluation besides their class: name -> (n,); empty for most sources."""


@dataclass
class Source:
    """An opened data set.

    Args:
        train: The training images.
        val: The validation images.
        class_names: Names in the order of the labels.
        preprocessing: Evaluation preprocessing.
        notes: One sentence each on where the images come from and what was done with them, for the log.
    """

    train: ImageSet
    val: ImageSet
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    notes: list[str] = field(default_factory=list)


class Workers:
    """Threads that prepare the images of a batch; PIL decodes and resizes without holding Python's lock.

    The threads start with the first batch. One worker needs none.
    """

    def __init__(self, count: int | None) -> None:
        self.count = count or min(MAX_WORKERS, available_cores())
        self._pool: ThreadPoolExecutor | None = None

    def fill(self, out: NDArray, make: Callable[[int, int], NDArray], chunk: int) -> NDArray:
        """Sets out[start:stop] = make(start, stop) chunk by chunk and returns `out`.

        Args:
            out: (n, ...) array to be filled.
            make: Called from several threads; the first error in the order of the images is raised.
            chunk: Images per task: many for cheap ones, one where each takes milliseconds.
        """

        def fill_chunk(start: int) -> None:
            out[start : start + chunk] = make(start, min(start + chunk, len(out)))

        starts = range(0, len(out), chunk)
        if self.count == 1 or len(starts) == 1:
            for start in starts:
                fill_chunk(start)
        else:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="dvt-data")
            for _ in self._pool.map(fill_chunk, starts):
                pass
        return out


def available_cores() -> int:
    """Processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def empty_batch(count: int, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Room for `count` model inputs: (n, C, S, S)."""
    return np.empty((count, preprocessing.in_channels, *[preprocessing.image_size] * 2), np.float32)


class ArrayImages:
    """Small images of equal size held in memory (CIFAR, Fashion-MNIST), resized with PIL.

    Training shows the resized image at a random place of its black-padded self (padding S // 8: 28 at 224), flipped
    left to right in half of the cases.

    Args:
        images: (N, H, W) grey or (N, H, W, 3) RGB pixels.
        labels: (N,) class of each.
        preprocessing: Evaluation preprocessing.
        workers: Threads.
    """

    CHUNK = 16

    def __init__(
        self, images: NDArray[np.uint8], labels: Sequence[int], preprocessing: Preprocessing, workers: Workers
    ) -> None:
        self.images = images
        self.labels = np.asarray(labels, np.int32)
        self._preprocessing = preprocessing
        self._workers = workers

    def evaluation(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `ImageSet`."""

        def make(start: int, stop: int) -> NDArray[np.float32]:
            return self._preprocessing.normalise(self._pixels(indices[start:stop]))

        return self._workers.fill(empty_batch(len(indices), self._preprocessing), make, self.CHUNK)

    def training(self, indices: NDArray[np.int64], key: int) -> NDArray[np.float32]:
        """See `ImageSet`."""
        draws = uniforms(key, indices, 3).tolist()

        def make(start: int, stop: int) -> NDArray[np.float32]:
            pixels = self._pixels(indices[start:stop])
            shown = [random_shift_flip(image, draws[start + i]) for i, image in enumerate(pixels)]
            return self._preprocessing.normalise(np.stack(shown))

        return self._workers.fill(empty_batch(len(indices), self._preprocessing), make, self.CHUNK)

    def attributes(self, indices: NDArray[np.int64]) -> dict[str, NDArray]:
        """Nothing is known besides the class."""
        return {}

    def _pixels(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(n, S, S) grey or (n, S, S, 3) RGB pixels."""
        images = self.images[indices]
        if images.shape[1] == images.shape[2] == self._preprocessing.resize_size == self._preprocessing.image_size:
            return images
        return np.stack([self._preprocessing.pixels(Image.fromarray(image)) for image in images])
