"""The splits of a data set: which images belong to train, calibration and val, and batches of them.

`load_splits` is the entry point. Nothing here imports MindSpore before `Splits.pipeline` is called.

Legend: N images of a split, n of a batch, C channels, S side of the model input.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dvt.config import DataSection
from dvt.data.cifar import open_cifar
from dvt.data.draws import even_subset, permutation, stream_key
from dvt.data.fashion_mnist import open_fashion_mnist
from dvt.data.image_folder import open_image_folder
from dvt.data.images import ImageSet, Source
from dvt.data.scale import open_scale
from dvt.errors import ConfigError, DataError

if TYPE_CHECKING:
    import mindspore.dataset

SPLITS = ("train", "calibration", "val")
SOURCES = {
    "image_folder": open_image_folder,
    "cifar10": open_cifar,
    "cifar100": open_cifar,
    "fashion_mnist": open_fashion_mnist,
    "fashion_mnist_scale": open_scale,
}
# Purposes of random numbers, so that no two of them share a stream.
_SUBSET, _CALIBRATION, _CALIBRATION_AUGMENTATION, _ORDER, _AUGMENTATION = range(5)
_VAL_SUBSET_KEY = stream_key(0xDA7A, _SUBSET)

Batch = tuple[NDArray[np.float32], NDArray[np.int32]]


@dataclass(frozen=True)
class View:
    """The images of one split.

    Args:
        images: Where they come from.
        indices: (N,) ascending indices into `images`.
        augmentation_key: Evaluation shows these images augmented with this key; None: evaluation preprocessing.
    """

    images: ImageSet
    indices: NDArray[np.int64]
    augmentation_key: int | None = None

    def evaluation(self, positions: NDArray[np.int64]) -> Batch:
        """Images (n, C, S, S) and labels (n,) at positions 0..N-1 of the split."""
        indices = self.indices[positions]
        if self.augmentation_key is None:
            images = self.images.evaluation(indices)
        else:
            images = self.images.training(indices, self.augmentation_key)
        return images, self.images.labels[indices]

    def training(self, positions: NDArray[np.int64], key: int) -> Batch:
        """The same, augmented with the random numbers of (key, image)."""
        indices = self.indices[positions]
        return self.images.training(indices, key), self.images.labels[indices]


class Splits:
    """A data set divided into "train", "calibration" and "val"; made by `load_splits`.

    Attributes:
        class_names: Names in the order of the labels.
        num_classes: Their number.
        in_channels: Channels C of the model input.
        mean: Mean per channel of pixels in 0..1.
        std: Standard deviation per channel of pixels in 0..1.
        sizes: Images per split.
        preprocessing: Evaluation preprocessing as plain numbers and strings, to be stored with checkpoints;
            `dvt.data.Preprocessing.from_dict` applies it to single images.
    """

    def __init__(self, source: Source, views: dict[str, View], seed: int, notes: list[str]) -> None:
        self.class_names = source.class_names
        self.num_classes = len(source.class_names)
        self.in_channels = source.preprocessing.in_channels
        self.mean = source.preprocessing.mean
        self.std = source.preprocessing.std
        self.sizes = {split: len(view.indices) for split, view in views.items()}
        self.preprocessing: dict[str, Any] = source.preprocessing.to_dict()
        self._views = views
        self._seed = seed
        self._notes = notes

    def describe(self) -> str:
        """A few lines for the log: images per split, where they come from, what was done with them."""
        p = self.preprocessing
        side = p["image_size"]
        cropped = f" (shorter side to {p['resize_size']}, {p['interpolation']}, centre crop)"
        counts = ", ".join(f"{count:,} {split}" for split, count in self.sizes.items())
        lines = [
            f"{p['dataset']}: {self.num_classes} classes; images: {counts}",
            *self._notes,
            f"model input {self.in_channels} x {side} x {side}{cropped if p['resize_size'] > side else ''},"
            f" mean {list(self.mean)}, std {list(self.std)}",
        ]
        return "\n".join(lines)

    def labels(self, split: str) -> NDArray[np.int32]:
        """(N,) class of each image of a split, in index order."""
        view = self._view(split)
        return view.images.labels[view.indices]

    def attributes(self, split: str) -> dict[str, NDArray]:
        """What is known of each image of a split besides its class, in index order.

        Returns:
            {"item_size": (N,) pixels} for "fashion_mnist_scale", {} for other data sets and for images that are
            augmented in evaluation.
        """
        view = self._view(split)
        return {} if view.augmentation_key is not None else view.images.attributes(view.indices)

    def batch(self, split: str, positions: ArrayLike) -> Batch:
        """Single images as evaluation sees them, for figures and checks; needs no MindSpore.

        Args:
            split: "train", "calibration" or "val".
            positions: (n,) positions 0..N-1 in the index order of the split.

        Returns:
            Images float32 (n, C, S, S), normalised, and labels int32 (n,).
        """
        return self._view(split).evaluation(np.asarray(positions, np.int64))

    def batches(self, split: str, batch_size: int, training: bool = False, epoch: int = 0) -> Iterator[Batch]:
        """The batches of one epoch as NumPy arrays; `pipeline` prepares the same ones ahead of time."""
        view = self._view(split)
        count = self.num_batches(split, batch_size, training)
        if not training:
            for start in range(0, len(view.indices), batch_size):
                yield view.evaluation(np.arange(start, min(start + batch_size, len(view.indices))))
            return
        order = permutation(stream_key(self._seed, _ORDER, epoch), len(view.indices))
        key = stream_key(self._seed, _AUGMENTATION, epoch)
        for i in range(count):
            yield view.training(order[i * batch_size : (i + 1) * batch_size], key)

    def num_batches(self, split: str, batch_size: int, training: bool = False) -> int:
        """Batches per epoch: training drops the remainder, evaluation keeps it as a short batch.

        Raises:
            ConfigError: Training with fewer images than one batch, or a batch size below 1.
            ValueError: No such split, or training on another one than "train".
        """
        count = len(self._view(split).indices)
        if batch_size < 1:
            raise ConfigError(f"the batch size is {batch_size}; it must be at least 1")
        if not training:
            return -(-count // batch_size)
        if split != "train":
            raise ValueError(f"training on the split {split!r}; only 'train' is for that")
        if count < batch_size:
            raise ConfigError(f"train.batch_size is {batch_size}, but there are {count} training images; lower it")
        return count // batch_size

    def pipeline(
        self, split: str, batch_size: int, training: bool = False, epoch: int = 0
    ) -> "mindspore.dataset.GeneratorDataset":
        """A `mindspore.dataset` of whole batches with the columns `image` (float32 (n, C, S, S), normalised) and
        `label` (int32 (n,)), prepared ahead of time in threads.

        Not training: in index order, every image exactly once, the last batch short. Training ("train" only):
        shuffled and augmented, the remainder dropped; every pass is the next epoch, and what an epoch looks like
        depends on (seed, epoch) alone, not on threads, batch size (but for the cut into batches) or earlier epochs.
        Errors met while reading arrive as the `DataError` that names the file.

        Args:
            split: "train", "calibration" or "val".
            batch_size: Images n per batch.
            training: Shuffle and augment.
            epoch: Number of the first pass; to resume after e epochs, give e.

        Raises:
            ConfigError: See `num_batches`.
        """
        count = self.num_batches(split, batch_size, training)  # wrong use is told before the long import

        from dvt.data.pipelines import BatchDataset

        return BatchDataset(lambda number: self.batches(split, batch_size, training, number), count, epoch)

    def _view(self, split: str) -> View:
        if split not in self._views:
            raise ValueError(f"there is no split {split!r}; there are {', '.join(self._views)}")
        return self._views[split]


def load_splits(data: DataSection, image_size: int, seed: int) -> Splits:
    """Opens the data set of a configuration and divides it.

    - val: all of it, or `val_images` of them, the same ones for every seed.
    - calibration, held out: drawn from the training images, which do without them; evaluation preprocessing.
    - train: all (other) training images, or `train_images` of them.
    - calibration, not held out: drawn from the images trained on, augmented once and for all as in training. More
      images than there are is no error then: the published 50,000 fit ImageNet; `describe` says how many were taken.
    All draws are even per class; those from the training images depend on the seed.

    Args:
        data: The section `data` of a configuration.
        image_size: Side S of the model input, in pixels.
        seed: Fixes subsets, order and augmentation.

    Raises:
        DataError: The data set is missing or faulty; the message names the file, folder or class.
        ConfigError: The configuration does not fit it; the message names the key.
    """
    try:
        source = SOURCES[data.dataset](data, image_size)
    except OSError as error:  # no permission, a broken disk: the files are there but cannot be read
        raise DataError(f"cannot read {error.filename or data.path}: {error.strerror or error}") from error
    notes = list(source.notes)
    _check_labels(source, np.arange(len(source.train.labels)))
    train = np.arange(len(source.train.labels))
    if data.hold_out_calibration:
        if data.calibration_images >= len(train):
            raise ConfigError(
                f"data.calibration_images is {data.calibration_images}, but there are {len(train)} training images and"
                " data.hold_out_calibration takes the slice away from them; lower it"
            )
        held_out = even_subset(source.train.labels, data.calibration_images, stream_key(seed, _CALIBRATION))
        train = np.setdiff1d(train, held_out, assume_unique=True)
        calibration = View(source.train, held_out)
        notes.append(f"calibration: {len(held_out):,} training images, kept out of training")
    if data.train_images is not None:
        train = train[even_subset(source.train.labels[train], data.train_images, stream_key(seed, _SUBSET))]
    _check_labels(source, train, "; lower data.calibration_images or raise data.train_images")
    if not data.hold_out_calibration:
        drawn = even_subset(source.train.labels[train], data.calibration_images, stream_key(seed, _CALIBRATION))
        calibration = View(source.train, train[drawn], stream_key(seed, _CALIBRATION_AUGMENTATION))
        capped = f" (all; {data.calibration_images:,} asked for)" if len(drawn) < data.calibration_images else ""
        notes.append(f"calibration: {len(drawn):,} of the images trained on{capped}, augmented as in training")
    val = np.arange(len(source.val.labels))
    if data.val_images is not None:
        val = even_subset(source.val.labels, data.val_images, _VAL_SUBSET_KEY)
    views = {"train": View(source.train, train), "calibration": calibration, "val": View(source.val, val)}
    return Splits(source, views, seed, notes)


def _check_labels(source: Source, train: NDArray[np.int64], remedy: str = "") -> None:
    """Every class must have training images, or the model has an output that it never learns."""
    counts = np.bincount(source.train.labels[train], minlength=len(source.class_names))
    empty = [source.class_names[i] for i in np.flatnonzero(counts == 0)]
    if empty:
        raise DataError(f"no training images of {len(empty)} class(es): {', '.join(empty[:5])}{remedy}")
