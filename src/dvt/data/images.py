"""Labelled images as `dvt.data.splits` sees them, and the two general kinds: photographs, and arrays in memory.

An image set says how its images are made (`dvt.data.workers.Task`); `dvt.data.workers.Workers` makes them.

Legend: N images of a set or split, n of a batch, C channels, S side of the model input.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dvt.data.augment.basic import CROP_FLIP_DRAWS, SHIFT_FLIP_DRAWS, random_resized_crop_flip, random_shift_flip
from dvt.data.augment.draws import uniforms
from dvt.data.augment.recipe import Recipe
from dvt.data.decode import read_image
from dvt.data.sources.records import RecordImage, RecordSet
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

    @abstractmethod
    def identity(self) -> Iterable[bytes]:
        """What tells these images from others, whatever the folder they lie in."""

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the images, their order or their labels."""
        digest = hashlib.blake2b(self.labels.tobytes(), digest_size=8)
        for part in self.identity():
            digest.update(part)
        return digest.hexdigest()

    def attributes(self, indices: NDArray[np.int64]) -> dict[str, NDArray]:
        """What is known of the images in evaluation besides their class: name -> (n,)."""
        return {}


@dataclass(frozen=True)
class View:
    """The images of one split in the order in which they are shown."""

    split: str
    images: ImageSet
    indices: NDArray[np.int64]  # (N,) into `images`
    recipe: Recipe
    key: int | None = None  # of the random numbers with which they are augmented; None: evaluation preprocessing
    epoch: int | None = None  # of training

    def labels(self, places: NDArray[np.int64] | slice = slice(None)) -> NDArray[np.int32]:
        """Labels of the images at some places 0..N-1, or of all; a copy."""
        return self.images.labels[self.indices[places]]

    def task(self, places: NDArray[np.int64]) -> Task:
        """How the images at some places are made."""
        return self.images.task(self.indices[places], self.recipe, self.key)


class PhotoImages(ImageSet):
    """Photographs of any size, decoded when asked for.

    Training is a random resized crop (8 to 100 % of the area, ratio 3/4 to 4/3) and a flip in half of the cases.
    MindSpore's own operations decode no more than the crop and are somewhat quicker in training, but what they draw
    depends on the number of threads and cannot be resumed in the middle of a run.

    Args:
        photos: File of each, CLASS/NAME at its end; or the record files that hold them.
        labels: (N,) class of each.
    """

    def __init__(self, photos: Sequence[str] | RecordSet, labels: Sequence[int]) -> None:
        super().__init__(labels)
        self.photos = photos

    def identity(self) -> Iterable[bytes]:
        """CLASS/NAME of each."""
        stored = isinstance(self.photos, RecordSet)
        names = self.photos.names() if stored else map(class_and_name, self.photos)
        return (os.fsencode(name) + b"\0" for name in names)

    def task(self, indices: NDArray[np.int64], recipe: Recipe, key: int | None) -> Task:
        columns = ([self.photos[i] for i in indices.tolist()],)
        if key is not None:
            columns += (uniforms(key, indices, CROP_FLIP_DRAWS + recipe.draws),)
        return Task(partial(_photos, recipe), columns, recipe.preprocessing.normalise, recipe.shape, chunk=1)


def class_and_name(file: str) -> str:
    """CLASS/NAME of an image file."""
    return "/".join(file.split(os.sep)[-2:])


def _photos(
    recipe: Recipe, photos: Sequence[str | RecordImage], draws: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.uint8], BadImages]:
    side, bad = recipe.preprocessing.image_size, []
    pixels = np.zeros((len(photos), side, side, 3), np.uint8)
    for i, photo in enumerate(photos):
        try:
            image = read_image(photo) if isinstance(photo, str) else photo.image()
        except DataError as error:
            bad.append((i, str(error)))
            continue
        if draws is None:
            pixels[i] = recipe.preprocessing.pixels(image)
        else:
            row = draws[i].tolist()
            image = random_resized_crop_flip(image, side, recipe.interpolation, row[:CROP_FLIP_DRAWS])
            pixels[i] = recipe.varied(image, row[CROP_FLIP_DRAWS:])
    return pixels, bad


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

    def identity(self) -> Iterable[bytes]:
        """All pixels."""
        return [np.ascontiguousarray(self.images).data]

    def task(self, indices: NDArray[np.int64], recipe: Recipe, key: int | None) -> Task:
        columns = (self.images[indices],)
        if key is not None:
            columns += (uniforms(key, indices, SHIFT_FLIP_DRAWS + recipe.draws),)
        return Task(partial(_arrays, recipe), columns, recipe.preprocessing.normalise, recipe.shape, self.CHUNK)


def _arrays(
    recipe: Recipe, images: NDArray[np.uint8], draws: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.uint8], BadImages]:
    preprocessing = recipe.preprocessing
    if not images.shape[1] == images.shape[2] == preprocessing.resize_size == preprocessing.image_size:
        images = np.stack([preprocessing.pixels(Image.fromarray(image)) for image in images])
    if draws is None:
        return images, []
    shown = []
    for pixels, row in zip(images, draws.tolist(), strict=True):
        shifted = random_shift_flip(pixels, row[:SHIFT_FLIP_DRAWS])
        shown.append(recipe.varied(shifted, row[SHIFT_FLIP_DRAWS:]))
    return np.stack(shown), []
