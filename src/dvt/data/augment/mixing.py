"""Mixup and cutmix: the images of a batch are mixed with one another, and their labels with them.

Sources: mixup (Zhang et al. 2018), cutmix (Yun et al. 2019); one of the two is drawn for each batch, with one share
for all of its images, and each image is mixed with the one that mirrors it in the batch, as in the published recipe.

Legend: n images of a batch, C channels, S side of the model input.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Mixing:
    """Makes mixed images and soft targets of a batch; with both on, each is drawn for half of the batches."""

    mixup: float  # alpha of mixup, whose shares are drawn from Beta(alpha, alpha); 0 switches it off
    cutmix: float  # likewise
    label_smoothing: float  # share of each target spread evenly over all classes
    num_classes: int

    @property
    def active(self) -> bool:
        """Whether images are mixed at all."""
        return self.mixup > 0 or self.cutmix > 0

    def __call__(
        self, images: NDArray[np.float32], labels: NDArray[np.integer], key: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mixes a batch in place.

        Args:
            images: (n, C, S, S); overwritten.
            labels: (n,) class of each image.
            key: Seed of the batch, not negative; the result depends on nothing else.

        Returns:
            `images`, and targets (n, classes) that sum to 1 per image.
        """
        share = 1.0  # of its own that an image keeps
        if self.active:
            rng = np.random.default_rng(key)
            if self.cutmix == 0 or (self.mixup > 0 and rng.random() < 0.5):
                share = rng.beta(self.mixup, self.mixup)
                _blend(images, share)
            else:
                box = _random_box(images.shape[-1], rng.beta(self.cutmix, self.cutmix), rng)
                share = 1 - _swap(images, box)
        return images, self._targets(labels, share)

    def _targets(self, labels: NDArray[np.integer], share: float) -> NDArray[np.float32]:
        """(n, classes) of which `share` belongs to the image's own class and the rest to its partner's."""
        targets = np.full((len(labels), self.num_classes), self.label_smoothing / self.num_classes, np.float32)
        rows = np.arange(len(labels))
        targets[rows, labels] += (1 - self.label_smoothing) * share
        targets[rows, labels[::-1]] += (1 - self.label_smoothing) * (1 - share)
        return targets


def _blend(images: NDArray[np.float32], share: float) -> None:
    """image := share * image + (1 - share) * partner, pair by pair so that one image of memory is enough."""
    difference = np.empty_like(images[0])
    for i in range(len(images) // 2):
        image, partner = images[i], images[-1 - i]
        np.subtract(partner, image, out=difference)
        difference *= np.float32(1 - share)
        image += difference
        partner -= difference


def _random_box(side: int, share: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A square of 1 - `share` of the image around a random pixel, cut off at the edges: (left, top, right, bottom)."""
    half = int(side * math.sqrt(1 - share)) // 2
    x, y = rng.integers(side, size=2)
    return max(x - half, 0), max(y - half, 0), min(x + half, side), min(y + half, side)


def _swap(images: NDArray[np.float32], box: tuple[int, int, int, int]) -> float:
    """Exchanges the box between the images of each pair; returns its share of the image's area."""
    left, top, right, bottom = box
    blocks = images[:, :, top:bottom, left:right]
    for i in range(len(images) // 2):
        own = blocks[i].copy()
        blocks[i] = blocks[-1 - i]
        blocks[-1 - i] = own
    return (right - left) * (bottom - top) / (images.shape[-1] * images.shape[-2])
