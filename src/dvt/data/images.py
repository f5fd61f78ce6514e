"""Labelled images as `dvt.data.splits` sees them, and the two general kinds: photographs, and arrays in memory.

An image set says how its images are made (`dvt.data.workers.Task`); `dvt.data.workers.Workers` makes them.

Legend: N images of a set or split, n of a batch, C channels, S side of the model input.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dvt.data.augment.basic import CROP_FLIP_DRAWS, SHIFT_FLIP_DRAWS, random_resized_crop_flip, random_shift_flip
from dvt.data.augment.draws import uniforms
from dvt.data.augment.recipe import Recipe
from dvt.data.decode import read_image
from dvt.data.preprocess import Preprocessing
from dvt.data.workers import BadImages, Task
from dvt.errors import DataError


class ImageSet(ABC):
    """Labelled images of one part ("train" or "val") of a data set, by index in the order of the files.

    Args:
        labels: (N,) class of each image.
    """

    def __init__(self, labels: Sequence[int]) -> None:
        self.labels: NDArray[np.int32] = np.asarray(labels, np.int32)

    @abstractmethod
    def task(self, indices: NDArray[np.int64], recipe: Recipe, key: int | None) -> Task:
        """How some images are made; what comes out depends on index, recipe and key alone.

        Args:
            indices: (n,) which images.
            recipe: What is done to them.
            key: Of the random numbers with which they are augmented; None: evaluation preprocessing.

        Returns:
            The task that makes (n, C, S, S), normalised.
        """

    def attributes(self, indices: NDArray[np.int64]) -> dict[str, NDArray]:
        """What is known of the images in evaluation besides their class: name -> (n,)."""
        return {}


@dataclass(frozen=True)
class View:
    """The images of one split."""

    images: ImageSet
    indices: NDArray[np.int64]  # (N,) ascending, into `images`
    recipe: Recipe
    augmentation_key: int | None = None  # evaluation shows the images augmented with this key; None: as they are

    @property
    def labels(self) -> NDArray[np.int32]:
        """(N,) class of each image."""
        return self.images.labels[self.indices]


@dataclass(frozen=True)
class Pass:
    """The images of a split in the order in which they are shown."""

    split: str
    view: View
    order: NDArray[np.int64]  # (N,) positions in the split
    key: int | None  # of the random numbers with which they are augmented; None: evaluation preprocessing
    epoch: int | None = None  # of training

    def indices(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) indices into the data set of the images at some places of the order."""
        return self.view.indices[self.order[places]]

    def labels(self, places: NDArray[np.int64]) -> NDArray[np.int32]:
        """(n,) labels of the images at some places of the order; a copy."""
        return self.view.images.labels[self.indices(places)]

    def task(self, places: NDArray[np.int64]) -> Task:
        """How the images at some places of the order are made."""
        return self.view.images.task(self.indices(places), self.view.recipe, self.key)


class StoredPhoto(Protocol):
    """An encoded photograph that is not a file of its own; picklable."""

    def image(self) -> Image.Image:
        """The decoded photograph in RGB. Raises DataError, naming it and the file it lies in, if it cannot be read."""


class PhotoImages(ImageSet):
    """Photographs of any size, decoded when asked for.

    Training is a random resized crop (8 to 100 % of the area, ratio 3/4 to 4/3) and a flip in half of the cases.
    MindSpore's own operations decode no more than the crop and are somewhat quicker in training, but what they draw
    depends on the number of threads and cannot be resumed in the middle of a run.

    Args:
        photos: File of each, or where else it is stored.
        labels: (N,) class of each.
    """

    def __init__(self, photos: Sequence[str | StoredPhoto], labels: Sequence[int]) -> None:
        super().__init__(labels)
        self.photos = photos

    def task(self, indices: NDArray[np.int64], recipe: Recipe, key: int | None) -> Task:
        """As of `ImageSet`."""
        columns = ([self.photos[i] for i in indices.tolist()],)
        if key is not None:
            columns += (uniforms(key, indices, CROP_FLIP_DRAWS + recipe.draws),)
        return Task(partial(_make_photos, recipe), columns, recipe.shape, chunk=1)


def _make_photos(
    recipe: Recipe,
    out: NDArray[np.float32],
    photos: Sequence[str | StoredPhoto],
    draws: NDArray[np.float64] | None = None,
) -> BadImages:
    bad = []
    for i, photo in enumerate(photos):
        try:
            image = read_image(photo) if isinstance(photo, str) else photo.image()
        except DataError as error:
            bad.append((i, str(error)))
            continue
        if draws is None:
            out[i] = recipe.preprocessing(image)
        else:
            row = draws[i].tolist()
            side = recipe.preprocessing.image_size
            image = random_resized_crop_flip(image, side, recipe.interpolation, row[:CROP_FLIP_DRAWS])
            recipe.finish(out[i], image, row[CROP_FLIP_DRAWS:])
    return bad


class ArrayImages(ImageSet):
    """Small images of equal size held in memory (CIFAR, Fashion-MNIST), resized with PIL.

    Training shows the resized image at a random place of its black-padded self (padding S // 8: 28 at 224), flipped
    left to right in half of the cases.

    Args:
        images: (N, H, W) grey or (N, H, W, 3) RGB pixels.
        labels: (N,) class of each.
    """

    CHUNK = 16

    def __init__(self, images: NDArray[np.uint8], labels: Sequence[int]) -> None:
        super().__init__(labels)
        self.images = images

    def task(self, indices: NDArray[np.int64], recipe: Recipe, key: int | None) -> Task:
        """As of `ImageSet`."""
        columns = (self.images[indices],)
        if key is not None:
            columns += (uniforms(key, indices, SHIFT_FLIP_DRAWS + recipe.draws),)
        return Task(partial(_make_arrays, recipe), columns, recipe.shape, self.CHUNK)


def _make_arrays(
    recipe: Recipe, out: NDArray[np.float32], images: NDArray[np.uint8], draws: NDArray[np.float64] | None = None
) -> None:
    resized = _resized(recipe.preprocessing, images)
    if draws is None:
        out[:] = recipe.preprocessing.normalise(resized)
        return
    for i, (pixels, row) in enumerate(zip(resized, draws.tolist(), strict=True)):
        recipe.finish(out[i], random_shift_flip(pixels, row[:SHIFT_FLIP_DRAWS]), row[SHIFT_FLIP_DRAWS:])


def _resized(preprocessing: Preprocessing, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, S, S) grey or (n, S, S, 3) RGB pixels."""
    if images.shape[1] == images.shape[2] == preprocessing.resize_size == preprocessing.image_size:
        return images
    return np.stack([preprocessing.pixels(Image.fromarray(image)) for image in images])
