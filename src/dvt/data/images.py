"""What every source of images offers to `dvt.data.splits`, and the two general ones: in memory, and photographs.

An image set says how its images are made (`dvt.data.workers.Task`); `dvt.data.workers.Workers` makes them.

Legend: n images of a batch, C channels, S side of the model input.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dvt.data.augment.basic import CROP_FLIP_DRAWS, random_resized_crop_flip, random_shift_flip
from dvt.data.augment.draws import uniforms
from dvt.data.augment.recipe import Recipe
from dvt.data.preprocess import Preprocessing, read_image
from dvt.data.workers import BadImages, Task
from dvt.errors import DataError

SHIFT_FLIP_DRAWS = 3
"""Random numbers that `random_shift_flip` uses."""


class ImageSet(Protocol):
    """Labelled images of one part ("train" or "val") of a data set, by index in the order of the files.

    What is made for an index depends on nothing but the index, the recipe and, in training, the key.
    """

    labels: NDArray[np.int32]  # (N,)

    def evaluation(self, indices: NDArray[np.int64], recipe: Recipe) -> Task:
        """(n,) indices -> (n, C, S, S) normalised, with evaluation preprocessing."""

    def training(self, indices: NDArray[np.int64], key: int, recipe: Recipe) -> Task:
        """(n,) indices -> (n, C, S, S) normalised, augmented with the random numbers of (key, index)."""

    def attributes(self, indices: NDArray[np.int64]) -> dict[str, NDArray]:
        """What is known of the images in evaluation besides their class: name -> (n,); empty for most sources."""


@dataclass(frozen=True)
class View:
    """The images of one split.

    Args:
        images: Where they come from.
        indices: (N,) ascending indices into `images`.
        recipe: What is done to them.
        augmentation_key: Evaluation shows these images augmented with this key; None: evaluation preprocessing.
    """

    images: ImageSet
    indices: NDArray[np.int64]
    recipe: Recipe
    augmentation_key: int | None = None

    @property
    def labels(self) -> NDArray[np.int32]:
        """(N,) class of each image."""
        return self.images.labels[self.indices]

    def evaluation(self, positions: NDArray[np.int64]) -> Task:
        """How the images at positions 0..N-1 of the split are made."""
        if self.augmentation_key is None:
            return self.images.evaluation(self.indices[positions], self.recipe)
        return self.training(positions, self.augmentation_key)

    def training(self, positions: NDArray[np.int64], key: int) -> Task:
        """The same, augmented with the random numbers of (key, image)."""
        return self.images.training(self.indices[positions], key, self.recipe)


@dataclass
class Source:
    """An opened data set.

    Args:
        train: The training images.
        val: The validation images.
        class_names: Names in the order of the labels.
        preprocessing: Evaluation preprocessing.
        notes: One sentence each on where the images come from and what was done with them, for the log.
        drawn: Images are drawn as model inputs rather than read: nothing is resized, no policy can be applied.
    """

    train: ImageSet
    val: ImageSet
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    notes: list[str] = field(default_factory=list)
    drawn: bool = False


class StoredPhoto(Protocol):
    """An encoded photograph that is not a file of its own; picklable."""

    def image(self) -> Image.Image:
        """The decoded photograph in RGB.

        Raises:
            DataError: It cannot be read; the message names it and the file it lies in.
        """


class PhotoImages:
    """Photographs of any size, decoded when asked for.

    Training is a random resized crop (8 to 100 % of the area, ratio 3/4 to 4/3) and a flip in half of the cases, with
    PIL. MindSpore's own operations are as quick in evaluation, but crop odd margins elsewhere; in training they are
    somewhat quicker, since they decode no more than the crop, but what they draw depends on the number of threads and
    cannot be resumed in the middle of a run.

    Args:
        photos: File of each, or where else it is stored.
        labels: (N,) class of each.
    """

    def __init__(self, photos: Sequence[str | StoredPhoto], labels: Sequence[int]) -> None:
        self.photos = photos
        self.labels = np.asarray(labels, np.int32)

    def evaluation(self, indices: NDArray[np.int64], recipe: Recipe) -> Task:
        """See `ImageSet`."""
        return Task(partial(_evaluate_photos, recipe), (self._chosen(indices),), recipe.shape, chunk=1)

    def training(self, indices: NDArray[np.int64], key: int, recipe: Recipe) -> Task:
        """See `ImageSet`."""
        draws = uniforms(key, indices, CROP_FLIP_DRAWS + recipe.draws)
        return Task(partial(_train_photos, recipe), (self._chosen(indices), draws), recipe.shape, chunk=1)

    def attributes(self, indices: NDArray[np.int64]) -> dict[str, NDArray]:
        """Nothing is known besides the class."""
        return {}

    def _chosen(self, indices: NDArray[np.int64]) -> list[str | StoredPhoto]:
        return [self.photos[i] for i in indices.tolist()]


def _decoded(photo: str | StoredPhoto) -> Image.Image:
    return read_image(photo) if isinstance(photo, str) else photo.image()


def _evaluate_photos(recipe: Recipe, out: NDArray[np.float32], photos: Sequence[str | StoredPhoto]) -> BadImages:
    bad = []
    for i, photo in enumerate(photos):
        try:
            image = _decoded(photo)
        except DataError as error:
            bad.append((i, str(error)))
        else:
            out[i] = recipe.preprocessing(image)
    return bad


def _train_photos(
    recipe: Recipe, out: NDArray[np.float32], photos: Sequence[str | StoredPhoto], draws: NDArray[np.float64]
) -> BadImages:
    side = recipe.preprocessing.image_size
    bad = []
    for i, (photo, row) in enumerate(zip(photos, draws.tolist(), strict=True)):
        try:
            image = _decoded(photo)
        except DataError as error:
            bad.append((i, str(error)))
        else:
            image = random_resized_crop_flip(image, side, recipe.interpolation, row[:CROP_FLIP_DRAWS])
            recipe.finish(out[i], image, row[CROP_FLIP_DRAWS:])
    return bad


class ArrayImages:
    """Small images of equal size held in memory (CIFAR, Fashion-MNIST), resized with PIL.

    Training shows the resized image at a random place of its black-padded self (padding S // 8: 28 at 224), flipped
    left to right in half of the cases.

    Args:
        images: (N, H, W) grey or (N, H, W, 3) RGB pixels.
        labels: (N,) class of each.
    """

    CHUNK = 16

    def __init__(self, images: NDArray[np.uint8], labels: Sequence[int]) -> None:
        self.images = images
        self.labels = np.asarray(labels, np.int32)

    def evaluation(self, indices: NDArray[np.int64], recipe: Recipe) -> Task:
        """See `ImageSet`."""
        return Task(partial(_evaluate_arrays, recipe), (self.images[indices],), recipe.shape, self.CHUNK)

    def training(self, indices: NDArray[np.int64], key: int, recipe: Recipe) -> Task:
        """See `ImageSet`."""
        draws = uniforms(key, indices, SHIFT_FLIP_DRAWS + recipe.draws)
        return Task(partial(_train_arrays, recipe), (self.images[indices], draws), recipe.shape, self.CHUNK)

    def attributes(self, indices: NDArray[np.int64]) -> dict[str, NDArray]:
        """Nothing is known besides the class."""
        return {}


def _evaluate_arrays(recipe: Recipe, out: NDArray[np.float32], images: NDArray[np.uint8]) -> None:
    out[:] = recipe.preprocessing.normalise(_resized(recipe.preprocessing, images))


def _train_arrays(
    recipe: Recipe, out: NDArray[np.float32], images: NDArray[np.uint8], draws: NDArray[np.float64]
) -> None:
    for i, (pixels, row) in enumerate(zip(_resized(recipe.preprocessing, images), draws.tolist(), strict=True)):
        recipe.finish(out[i], random_shift_flip(pixels, row[:SHIFT_FLIP_DRAWS]), row[SHIFT_FLIP_DRAWS:])


def _resized(preprocessing: Preprocessing, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, S, S) grey or (n, S, S, 3) RGB pixels."""
    if images.shape[1] == images.shape[2] == preprocessing.resize_size == preprocessing.image_size:
        return images
    return np.stack([preprocessing.pixels(Image.fromarray(image)) for image in images])
