"""What becomes of images that cannot be read: they end the run, or are named in the log and left out within a limit.

In training the next readable image in the order of the epoch takes the place of a bad one, with its own label and its
own random numbers. Which one that is follows from the order and from the files alone: not from workers, ranks or the
batch at which a run was resumed. In evaluation a bad image keeps its place, so that batches are as long as ever; its
pixels are zero and its label is `LEFT_OUT`, which no prediction equals.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dvt.config.sections import DataSection
from dvt.data.images import View
from dvt.data.workers import BadImages, Task
from dvt.errors import DataError

LEFT_OUT = -1
"""Label of an image that could not be read."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pass:
    """Images of a split in an order.

    Args:
        split: Name of the split.
        view: Its images.
        order: (N,) positions in the split, in the order in which they are shown.
        fill: Whether the next readable image takes the place of a bad one.
        key: Of the random numbers of training; None: as evaluation shows the images.
        epoch: Number of the training epoch.
    """

    split: str
    view: View
    order: NDArray[np.int64]
    fill: bool
    key: int | None = None
    epoch: int | None = None

    def labels(self, places: NDArray[np.int64]) -> NDArray[np.int32]:
        """(n,) labels of the images at some places of the order; a copy."""
        return self.view.images.labels[self.indices(places)]

    def indices(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) indices into the data set of the images at some places of the order."""
        return self.view.indices[self.order[places]]

    def task(self, places: NDArray[np.int64]) -> Task:
        """How the images at some places of the order are made."""
        positions = self.order[places]
        return self.view.evaluation(positions) if self.key is None else self.view.training(positions, self.key)


class BadImagePolicy:
    """`data.on_bad_image` and `data.max_bad_images`, and the bad images that this process has met.

    Args:
        data: The section `data` of a configuration.
        sizes: Images of each split.

    Attributes:
        skips: Whether bad images are left out; otherwise the first one is an error.
        replaced: Epoch -> how many times this rank was shown another image in the place of a bad one.
    """

    def __init__(self, data: DataSection, sizes: Mapping[str, int]) -> None:
        self.skips = data.on_bad_image == "skip"
        self.replaced: Counter[int] = Counter()
        self._allowed = data.max_bad_images
        self._sizes = dict(sizes)
        self._met: dict[str, set[int]] = {split: set() for split in sizes}

    def task(self, images: Pass, places: NDArray[np.int64], labels: NDArray[np.int32]) -> Task:
        """The images at some places of a pass; where one is bad, `labels` (n,) are changed to what is shown."""
        task = images.task(places)
        if not self.skips:
            return task
        return replace(task, mend=partial(self._fill if images.fill else self._leave_out, images, places, labels))

    def limit(self, split: str) -> int:
        """The most bad images of a split that are tolerated; never all of them."""
        size = self._sizes[split]
        most = max(1, int(self._allowed * size)) if self._allowed < 1 else int(self._allowed)
        return min(most, size - 1)

    def check(self, split: str, count: int) -> None:
        """Raises DataError if `count` bad images of a split are too many."""
        if count > self.limit(split):
            raise DataError(
                f"{count:,} of the {self._sizes[split]:,} images of {split} cannot be read, more than the"
                f" {self.limit(split):,} that data.max_bad_images {self._allowed:g} allows; the log names them:"
                " replace or remove them, or raise the limit"
            )

    def note(self, split: str, index: int, reason: str) -> None:
        """Logs a bad image, by its index, when it is met first; raises DataError if there are too many by now."""
        met = self._met[split]
        if index in met:
            return
        met.add(index)
        log.warning("bad image %d of %s, skipped: %s", len(met), split, reason)
        self.check(split, len(met))

    def _leave_out(
        self, images: Pass, places: NDArray[np.int64], labels: NDArray[np.int32], out: NDArray, bad: BadImages
    ) -> None:
        for i, reason in bad:
            self.note(images.split, int(images.indices(places[i])), reason)
            out[i], labels[i] = 0, LEFT_OUT

    def _fill(
        self, images: Pass, places: NDArray[np.int64], labels: NDArray[np.int32], out: NDArray, bad: BadImages
    ) -> None:
        for i, reason in bad:
            place, faults = places[i : i + 1], [(0, reason)]
            while faults:  # ends, because `note` does not tolerate that all images are bad
                self.note(images.split, int(images.indices(place[0])), faults[0][1])
                place = (place + 1) % len(images.order)
                task = images.task(place)
                faults = task.make(out[i : i + 1], *task.columns)
            labels[i] = images.labels(place)[0]
            if images.epoch is not None:
                self.replaced[images.epoch] += 1
