"""Labelled images as `dvt.data.splits` sees them, and the two general kinds: photographs, and arrays in memory.
Legend: N images of a set or split, n of a batch, C channels, S side of the model input.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dvt.config.sections import AugmentSection, DataSection
from dvt.data.augment.basic import CROP_FLIP_DRAWS, SHIFT_FLIP_DRAWS, random_resized_crop_flip, random_shift_flip
from dvt.data.augment.draws import uniforms
from dvt.data.augment.policies import Policy, build_policy
from dvt.data.decode import read_image
from dvt.data.preprocess import Preprocessing
from dvt.data.sources.records import RecordImage, RecordSet
from dvt.data.workers import Made, Task
from dvt.errors import DataError

PARTS = ("train", "val")


@dataclass(frozen=True)
class Recipe:
    """Evaluation preprocessing, and how training varies it: crop (or shift) and flip, and the operations of a policy;
    then whole batches are mixed and erased. Normalising before mixing, not after it, gives the same to rounding."""

    preprocessing: Preprocessing
    interpolation: str  # of the random resized crop: "bicubic", "bilinear" or "random"
    policy: Policy | None = None  # operations on the cropped image

    @classmethod
    def of(cls, augment: AugmentSection, preprocessing: Preprocessing) -> "Recipe":
        """The configured recipe; policies fill with the mean colour of the data set."""
        fill = tuple(min(255, round(255 * value)) for value in preprocessing.mean)
        return cls(preprocessing, augment.interpolation, build_policy(augment.policy, fill))

    @property
    def draws(self) -> int:
        return 0 if self.policy is None else self.policy.draws

    def varied(self, image: Image.Image | NDArray[np.uint8], draws: Sequence[float]) -> NDArray[np.uint8]:
        """(S, S[, 3]) pixels of a cropped and flipped image after the operations of the policy."""
        if self.policy is not None:
            image = image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))
            image = self.policy(image, draws)
        return np.asarray(image)


class ImageSet(ABC):
    """Images of one part ("train" or "val") of a data set, or the files that hold them, with their labels (N,)."""

    def __init__(self, items: Sequence, labels: Sequence[int]) -> None:
        self.items, self.labels = items, np.asarray(labels, np.int32)

    @abstractmethod
    def task(self, indices: NDArray[np.int64], recipe: Recipe, key: int | None) -> Task:
        """How the images at some indices (n,) are made: (n, C, S, S), normalised. They depend on index, recipe, and the
        key of the random numbers of augmentation alone; key None is evaluation."""

    def identity(self) -> Iterable[bytes]:
        """What tells these images from others, whatever the folder they lie in."""
        return [np.ascontiguousarray(self.items).data]

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the images, their order or their labels."""
        digest = hashlib.blake2b(self.labels.tobytes(), digest_size=8)
        for part in self.identity():
            digest.update(part)
        return digest.hexdigest()

    def attributes(self, indices: NDArray[np.int64]) -> dict[str, NDArray]:
        """What else is known of the images in evaluation: name -> (n,)."""
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
        return self.images.task(self.indices[places], self.recipe, self.key)


@dataclass(frozen=True)
class Source:
    """An opened data set."""

    train: ImageSet | None  # None where the validation images alone were opened
    val: ImageSet
    class_names: tuple[str, ...]  # in the order of the labels
    preprocessing: Preprocessing  # of evaluation
    notes: list[str]  # a sentence each on where the images come from and what was done with them, for the log
    drawn: bool = False  # images are drawn as model inputs: nothing is resized, no policy can be applied


def configured(defaults: Preprocessing, data: DataSection, image_size: int, resize_size: int) -> Preprocessing:
    """The preprocessing of a data set, with what the configuration says in place of its defaults."""
    mean, std = tuple(data.mean or defaults.mean), tuple(data.std or defaults.std)
    resize_size = data.resize_size or resize_size
    return replace(defaults, dataset=data.dataset, image_size=image_size, resize_size=resize_size, mean=mean, std=std)


class PhotoImages(ImageSet):
    """Photographs of any size, CLASS/NAME, from files or records; training is a random resized crop and a flip. What
    MindSpore's own operations draw would depend on the number of threads, and could not be resumed within an epoch."""

    def identity(self) -> Iterable[bytes]:
        names = self.items.names() if isinstance(self.items, RecordSet) else map(class_and_name, self.items)
        return (os.fsencode(name) + b"\0" for name in names)

    def task(self, indices: NDArray[np.int64], recipe: Recipe, key: int | None) -> Task:
        columns = ([self.items[i] for i in indices.tolist()],)
        if key is not None:
            columns += (uniforms(key, indices, CROP_FLIP_DRAWS + recipe.draws),)
        prepared = recipe.preprocessing
        return Task(partial(_photos, recipe), columns, prepared.normalise, prepared.shape, chunk=1)


def class_and_name(file: str) -> str:
    return "/".join(file.split(os.sep)[-2:])


def _photos(recipe: Recipe, photos: Sequence[str | RecordImage], draws: NDArray[np.float64] | None = None) -> Made:
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
    """Small images (N, H, W) or (N, H, W, 3) held in memory (CIFAR, Fashion-MNIST), resized with PIL; training is a
    random shift and a flip."""

    def task(self, indices: NDArray[np.int64], recipe: Recipe, key: int | None) -> Task:
        columns = (self.items[indices],)
        if key is not None:
            columns += (uniforms(key, indices, SHIFT_FLIP_DRAWS + recipe.draws),)
        prepared = recipe.preprocessing
        return Task(partial(_arrays, recipe), columns, prepared.normalise, prepared.shape, chunk=16)


def _arrays(recipe: Recipe, images: NDArray[np.uint8], draws: NDArray[np.float64] | None = None) -> Made:
    preprocessing = recipe.preprocessing
    if not images.shape[1] == images.shape[2] == preprocessing.resize_size == preprocessing.image_size:
        images = np.stack([preprocessing.pixels(Image.fromarray(image)) for image in images])
    if draws is None:
        return images, []
    shown = []
    for pixels, row in zip(images, draws.tolist(), strict=True):
        shown.append(recipe.varied(random_shift_flip(pixels, row[:SHIFT_FLIP_DRAWS]), row[SHIFT_FLIP_DRAWS:]))
    return np.stack(shown), []


def required_folder(path: str | Path | None, what: str) -> Path:
    """`data.path` as a folder. Raises DataError, saying `what` to give, if it is not set or no folder."""
    if path is None:
        raise DataError(f"data.path is not set; give {what}")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(f"data.path {path} is not a folder; give {what}")
    return folder


def checked_labels(file: Path, labels: NDArray[np.uint8], num_classes: int) -> NDArray[np.int32]:
    """The labels (n,) of `file` as int32. Raises DataError for one that is no class."""
    if (largest := labels.max(initial=0)) >= num_classes:
        raise DataError(f"{file} holds label {largest}, but there are {num_classes} classes")
    return labels.astype(np.int32)
