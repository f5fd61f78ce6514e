"""What becomes of images that cannot be read: they end the run, or are named in the log and left out within a limit.

In training the next readable image of the epoch takes the place of a bad one, whatever the workers, the ranks or the
batch at which a run was resumed. In evaluation its pixels become zero and its label `LEFT_OUT`.
"""

import logging
from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dvt.config.sections import DataSection
from dvt.data.images import View
from dvt.data.workers import BadImages
from dvt.errors import DataError

LEFT_OUT = -1  # label of an image that could not be read; no prediction equals it

log = logging.getLogger(__name__)


class BadImagePolicy:
    """`data.on_bad_image` and `data.max_bad_images` for splits of some sizes, and the bad images seen so far."""

    def __init__(self, data: DataSection, sizes: Mapping[str, int]) -> None:
        self.skips = data.on_bad_image == "skip"  # otherwise the first bad image is an error
        self.replaced: Counter[int] = Counter()  # by epoch: images shown by this rank in the place of a bad one
        self._allowed, self._sizes = data.max_bad_images, dict(sizes)
        self._seen: dict[str, set[int]] = {split: set() for split in sizes}

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
        """Counts and logs a bad image, by its index. Raises DataError if bad images are not skipped or too many."""
        if not self.skips:
            raise DataError(reason)
        seen = self._seen[split]
        if index not in seen:
            seen.add(index)
            log.warning("bad image %d of %s, skipped: %s", len(seen), split, reason)
            self.check(split, len(seen))

    def leave_out(self, shown: View, places: NDArray[np.int64], batch: tuple[NDArray, NDArray], bad: BadImages) -> None:
        """Sets bad images of a batch, which holds `places` (n,) of the order, to zero, their labels to `LEFT_OUT`."""
        images, labels = batch
        for i, reason in bad:
            self.note(shown.split, int(shown.indices[places[i]]), reason)
            images[i], labels[i] = 0, LEFT_OUT

    def replace(self, shown: View, places: NDArray[np.int64], batch: tuple[NDArray, NDArray], bad: BadImages) -> None:
        """Puts the next readable image of the order in the place of each bad one; arguments as of `leave_out`."""
        images, labels = batch
        for i, reason in bad:
            place, faults = places[i : i + 1], [(0, reason)]
            while faults:  # ends, because `note` does not tolerate that all images are bad
                self.note(shown.split, int(shown.indices[place[0]]), faults[0][1])
                place = (place + 1) % len(shown.indices)
                images[i : i + 1], faults = shown.task(place).run()
            labels[i] = shown.labels(place)[0]
            if shown.epoch is not None:
                self.replaced[shown.epoch] += 1
