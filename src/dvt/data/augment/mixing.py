"""Mixup and cutmix: the images of a batch are mixed with one another, and their labels with them.

Sources: mixup (Zhang et al. 2018), cutmix (Yun et al. 2019); as in the published recipe one of the two is drawn for
each batch, with one share for all of its images, and each image is mixed with the one that mirrors it in the batch.
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

    def __call__(
        self, images: NDArray[np.float32], labels: NDArray[np.integer], key: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mixes a batch of images (n, C, S, S), in place, and their labels (n,) to targets (n, classes) that sum to 1.
        The result depends on nothing but them and `key`, which is not negative."""
        share = 1.0  # of its own that an image keeps
        if self.mixup > 0 or self.cutmix > 0:
            rng = np.random.default_rng(key)
            if self.cutmix == 0 or (self.mixup > 0 and rng.random() < 0.5):
                share = rng.beta(self.mixup, self.mixup)
                _blend(images, share)
            else:
                share = 1 - _swap_box(images, rng.beta(self.cutmix, self.cutmix), rng)
        targets = np.full((len(labels), self.num_classes), self.label_smoothing / self.num_classes, np.float32)
        rows = np.arange(len(labels))
        targets[rows, labels] += (1 - self.label_smoothing) * share
        targets[rows, labels[::-1]] += (1 - self.label_smoothing) * (1 - share)
        return images, targets


def _blend(images: NDArray[np.float32], share: float) -> None:
    """image := share * image + (1 - share) * partner, pair by pair so that one image of memory is enough."""
    difference = np.empty_like(images[0])
    for i in range(len(images) // 2):
        image, partner = images[i], images[-1 - i]
        np.subtract(partner, image, out=difference)
        difference *= np.float32(1 - share)
        image += difference
        partner -= difference


def _swap_box(images: NDArray[np.float32], share: float, rng: np.random.Generator) -> float:
    """Exchanges a square around a random pixel, cut off at the edges; returns its share of an image."""
    side = images.shape[-1]
    half = int(side * math.sqrt(1 - share)) // 2
    x, y = rng.integers(side, size=2)
    left, top, right, bottom = max(x - half, 0), max(y - half, 0), min(x + half, side), min(y + half, side)
    blocks = images[:, :, top:bottom, left:right]
    for i in range(len(images) // 2):
        own = blocks[i].copy()
        blocks[i] = blocks[-1 - i]
        blocks[-1 - i] = own
    return (right - left) * (bottom - top) / side**2
