"""The splits of a data set: which images belong to train, calibration and val, and batches of them.

`load_splits` is the entry point. Nothing here imports MindSpore before `Splits.pipeline` is called.

Legend: N images of a split, n of a batch, C channels, S side of the model input.
"""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dvt.config.sections import AugmentSection, DataSection
from dvt.data.augment.draws import even_subset, permutation, stream_key
from dvt.data.augment.mixing import Mixing
from dvt.data.augment.recipe import Recipe
from dvt.data.bad_images import BadImagePolicy, Pass
from dvt.data.images import Source, View
from dvt.data.sources.cifar import open_cifar
from dvt.data.sources.fashion_mnist import open_fashion_mnist
from dvt.data.sources.image_folder import open_image_folder
from dvt.data.sources.scale import open_scale
from dvt.data.workers import Workers
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
_SUBSET, _CALIBRATION, _CALIBRATION_AUGMENTATION, _ORDER, _AUGMENTATION, _MIXING = range(6)
_VAL_SUBSET_KEY = stream_key(0xDA7A, _SUBSET)

Batch = tuple[NDArray[np.float32], NDArray]
"""Images (n, C, S, S) and labels: int32 (n,), or float32 (n, classes) where training batches are mixed."""
Shard = tuple[int, int]
"""(rank, count): which of `count` processes, each with a share of the images, this is."""
WHOLE: Shard = (0, 1)


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
        bad_images: What becomes of images that cannot be read, and how many there were.
    """

    def __init__(
        self, source: Source, views: dict[str, View], seed: int, data: DataSection, mixing: Mixing, notes: list[str]
    ) -> None:
        self.class_names = source.class_names
        self.num_classes = len(source.class_names)
        self.in_channels = source.preprocessing.in_channels
        self.mean = source.preprocessing.mean
        self.std = source.preprocessing.std
        self.sizes = {split: len(view.indices) for split, view in views.items()}
        self.preprocessing: dict[str, Any] = source.preprocessing.to_dict()
        self._drawn = source.drawn
        self._views = views
        self._seed = seed
        self._workers = Workers(data.workers, data.worker_type)
        self.bad_images = BadImagePolicy(data, self.sizes)
        self._mixing = mixing
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
            self._workers.describe(),
            f"model input {self.in_channels} x {side} x {side}{cropped if p['resize_size'] > side else ''},"
            f" mean {list(self.mean)}, std {list(self.std)}",
        ]
        return "\n".join(lines)

    def labels(self, split: str) -> NDArray[np.int32]:
        """(N,) class of each image of a split, in index order."""
        return self._view(split).labels

    def attributes(self, split: str) -> dict[str, NDArray]:
        """What is known of each image of a split besides its class, in index order.

        Returns:
            {"item_size": (N,) pixels} for "fashion_mnist_scale", {} for other data sets and for images that are
            augmented in evaluation.
        """
        view = self._view(split)
        return {} if view.augmentation_key is not None else view.images.attributes(view.indices)

    def with_resize_size(self, resize_size: int | None) -> "Splits":
        """The same images with another `data.resize_size` in evaluation; None: these splits. Nothing is copied.

        Raises:
            ConfigError: It is smaller than the image size, or images of this data set are not resized.
        """
        if resize_size in (None, self.preprocessing["resize_size"]):
            return self
        if self._drawn:
            raise ConfigError(
                f"a resize size of {resize_size} was asked for, but images of {self.preprocessing['dataset']} are drawn"
                f" at {self.preprocessing['image_size']} pixels and not resized; leave it at null"
            )
        other = copy.copy(self)
        other._views = {
            split: replace(view, recipe=view.recipe.with_resize_size(resize_size))
            for split, view in self._views.items()
        }
        other.preprocessing = self.preprocessing | {"resize_size": resize_size}
        return other

    def batch(self, split: str, positions: ArrayLike) -> Batch:
        """Single images as evaluation sees them, for figures and checks; needs no MindSpore. Where bad images are
        skipped, the next readable one is shown in the place of each.

        Args:
            split: "train", "calibration" or "val".
            positions: (n,) positions 0..N-1 in the index order of the split.

        Returns:
            Images float32 (n, C, S, S), normalised, and labels int32 (n,).
        """
        images, positions = self._in_order(split, fill=True), np.asarray(positions, np.int64)
        labels = images.labels(positions)
        return self._workers.one_batch(self.bad_images.task(images, positions, labels)), labels

    def positions(self, split: str, shard: Shard = WHOLE) -> NDArray[np.int64]:
        """The positions 0..N-1 of a split that a shard evaluates, ascending: neighbours, since they lie side by side on
        the disk. Each position belongs to one shard; the sizes of shards, and with them the numbers of batches, may
        differ by one."""
        count = len(self._view(split).indices)
        rank, ranks = shard
        return np.arange(count * rank // ranks, count * (rank + 1) // ranks)

    def batches(
        self,
        split: str,
        batch_size: int,
        training: bool = False,
        epoch: int = 0,
        shard: Shard = WHOLE,
        skip: int = 0,
        multiple: int = 1,
    ) -> Iterator[Batch]:
        """The batches of one epoch as NumPy arrays; `pipeline` prepares the same ones ahead of time. The first `skip`
        are left out."""
        view = self._view(split)
        count = self.num_batches(split, batch_size, training, shard, multiple)
        rank, ranks = shard
        if training:
            order = permutation(stream_key(self._seed, _ORDER, epoch), len(view.indices))
            key = stream_key(self._seed, _AUGMENTATION, epoch)
            shown = Pass(split, view, order, fill=True, key=key, epoch=epoch)
            # Batch i of all ranks together is batch i of one process with a batch size `ranks` times as large.
            together = np.arange(count * ranks * batch_size).reshape(count, ranks, batch_size)
            places = list(together[:, rank])
        else:
            shown = self._in_order(split, fill=False)
            share = self.positions(split, shard)
            places = [share[start : start + batch_size] for start in range(0, len(share), batch_size)]
        places = places[skip:]
        targets = [shown.labels(each) for each in places]
        tasks = (self.bad_images.task(shown, *each) for each in zip(places, targets, strict=True))
        made = self._workers.batches(tasks, images=sum(map(len, places)), ranks=ranks)
        for i, (images, labels) in enumerate(zip(made, targets, strict=True), start=skip):
            if training and self._mixing.active:
                yield self._mixing(images, labels, stream_key(self._seed, _MIXING, epoch, i, rank))
            else:
                yield images, labels

    def num_batches(
        self, split: str, batch_size: int, training: bool = False, shard: Shard = WHOLE, multiple: int = 1
    ) -> int:
        """Batches of a shard per epoch: training drops the remainder, so that all shards have the same number of equal
        batches, a multiple of `multiple`; evaluation keeps it as a short batch.

        Raises:
            ConfigError: A batch size below 1, training with fewer images than `multiple` batches of all shards, or
                evaluation with fewer images than shards.
            ValueError: No such split or shard, or training on another one than "train".
        """
        count = len(self._view(split).indices)
        rank, ranks = shard
        if not 0 <= rank < ranks:
            raise ValueError(f"there is no shard {rank} of {ranks}; they count from 0")
        if batch_size < 1:
            raise ConfigError(f"the batch size is {batch_size}; it must be at least 1")
        if not training:
            if count < ranks:
                raise ConfigError(f"{split} has {count} images, fewer than the {ranks} processes that share them")
            return -(-len(self.positions(split, shard)) // batch_size)
        if split != "train":
            raise ValueError(f"training on the split {split!r}; only 'train' is for that")
        if count < batch_size * ranks * multiple:
            each = f" on each of {ranks} devices" if ranks > 1 else ""
            times = f" and train.accumulation_steps is {multiple}" if multiple > 1 else ""
            raise ConfigError(
                f"train.batch_size is {batch_size}{each}{times}, but there are {count} training images; lower it"
            )
        return count // (batch_size * ranks * multiple) * multiple

    def pipeline(
        self,
        split: str,
        batch_size: int,
        training: bool = False,
        epoch: int = 0,
        shard: Shard = WHOLE,
        skip: int = 0,
        multiple: int = 1,
    ) -> "mindspore.dataset.GeneratorDataset":
        """A `mindspore.dataset` of whole batches with the columns `image` (float32 (n, C, S, S), normalised) and
        `label` (int32 (n,)), prepared ahead of time in processes or threads.

        Not training: in index order, every image exactly once, the last batch short. Training ("train" only):
        shuffled and augmented, the remainder dropped; every pass is the next epoch, and what an epoch looks like
        depends on (seed, epoch) alone, not on workers, batch size (but for the cut into batches) or earlier epochs.
        With mixup or cutmix, `label` is float32 (n, classes) in training, and what is mixed also depends on the batch
        and the rank. Errors met while reading arrive as the `DataError` that names the file. With `data.on_bad_image`
        skip, a bad image has the label `bad_images.LEFT_OUT` in evaluation, and is replaced in training.

        Args:
            split: "train", "calibration" or "val".
            batch_size: Images n per batch.
            training: Shuffle and augment.
            epoch: Number of the first pass; to resume after e epochs, give e.
            shard: (rank, count) of the processes that share the images. In training, their batches side by side are
                those of one process with `count` times the batch size; in evaluation see `positions`.
            skip: Batches to leave out at the start of every pass, at no cost; to finish an epoch of which b batches
                are done, give b and make one pass.
            multiple: In training, drop batches at the end of an epoch until their number is a multiple of this.

        Raises:
            ConfigError: See `num_batches`.
        """
        count = self.num_batches(
            split, batch_size, training, shard, multiple
        )  # wrong use is told before the long import

        from dvt.data.pipelines import BatchDataset

        def batches(number: int) -> Iterator[Batch]:
            return self.batches(split, batch_size, training, number, shard, skip, multiple)

        return BatchDataset(batches, count - skip, epoch)

    def without(self, split: str, positions: ArrayLike) -> "Splits":
        """These splits less the images of one of them at some positions 0..N-1."""
        view, other = self._view(split), copy.copy(self)
        kept = replace(view, indices=np.delete(view.indices, np.asarray(positions, np.int64)))
        other._views = self._views | {split: kept}
        other.sizes = self.sizes | {split: len(kept.indices)}
        return other

    def _in_order(self, split: str, fill: bool) -> Pass:
        """The images of a split in index order, as evaluation sees them; `fill` as of `Pass`."""
        view = self._view(split)
        return Pass(split, view, np.arange(len(view.indices)), fill)

    def _view(self, split: str) -> View:
        if split not in self._views:
            raise ValueError(f"there is no split {split!r}; there are {', '.join(self._views)}")
        return self._views[split]


def load_splits(
    data: DataSection,
    image_size: int,
    seed: int,
    augment: AugmentSection | None = None,
    label_smoothing: float = 0.0,
) -> Splits:
    """Opens the data set of a configuration and divides it.

    - val: all of it, or `val_images` of them, the same ones for every seed.
    - calibration, held out: drawn from the training images, which do without them; evaluation preprocessing.
    - train: all (other) training images, or `train_images` of them.
    - calibration, not held out: drawn from the images trained on, cropped and flipped once and for all, without
      what `augment` adds. More images than there are is no error then: the published 50,000 fit ImageNet; `describe`
      says how many were taken.
    All draws are even per class; those from the training images depend on the seed.

    Args:
        data: The section `data` of a configuration.
        image_size: Side S of the model input, in pixels.
        seed: Fixes subsets, order and augmentation.
        augment: The section `augment`: how training batches are varied; None: crop and flip alone.
        label_smoothing: Of the soft targets that mixup and cutmix make, in 0..1.

    Raises:
        DataError: The data set is missing or faulty; the message names the file, folder or class.
        ConfigError: The configuration does not fit it; the message names the key.
    """
    try:
        source = SOURCES[data.dataset](data, image_size)
    except OSError as error:  # no permission, a broken disk: the files are there but cannot be read
        raise DataError(f"cannot read {error.filename or data.path}: {error.strerror or error}") from error
    augment = augment or AugmentSection()
    if source.drawn and augment.policy != "none":
        raise ConfigError(
            f"augment.policy is {augment.policy}, but {data.dataset} draws its items as they are; set it to none"
            " (erasing, mixup and cutmix can be used)"
        )
    recipe = Recipe.of(augment, source.preprocessing)
    plain = Recipe.crop_and_flip(source.preprocessing)
    mixing = Mixing(augment.mixup, augment.cutmix, label_smoothing, len(source.class_names))
    notes = [*source.notes, *_augmentation_notes(augment)]
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
        calibration = View(source.train, held_out, plain)
        notes.append(f"calibration: {len(held_out):,} training images, kept out of training")
    if data.train_images is not None:
        train = train[even_subset(source.train.labels[train], data.train_images, stream_key(seed, _SUBSET))]
    _check_labels(source, train, "; lower data.calibration_images or raise data.train_images")
    if not data.hold_out_calibration:
        drawn = even_subset(source.train.labels[train], data.calibration_images, stream_key(seed, _CALIBRATION))
        calibration = View(source.train, train[drawn], plain, stream_key(seed, _CALIBRATION_AUGMENTATION))
        capped = f" (all; {data.calibration_images:,} asked for)" if len(drawn) < data.calibration_images else ""
        notes.append(f"calibration: {len(drawn):,} of the images trained on{capped}, cropped and flipped")
    val = np.arange(len(source.val.labels))
    if data.val_images is not None:
        val = even_subset(source.val.labels, data.val_images, _VAL_SUBSET_KEY)
    views = {
        "train": View(source.train, train, recipe),
        "calibration": calibration,
        "val": View(source.val, val, plain),
    }
    return Splits(source, views, seed, data, mixing, notes)


def _augmentation_notes(augment: AugmentSection) -> list[str]:
    """One line on what training adds to crop and flip, if anything."""
    added = [] if augment.policy == "none" else [augment.policy]
    added += [f"{key} {value:g}" for key in ("erasing", "mixup", "cutmix") if (value := getattr(augment, key)) > 0]
    return [f"training images: crop and flip, {', '.join(added)}"] if added else []


def _check_labels(source: Source, train: NDArray[np.int64], remedy: str = "") -> None:
    """Every class must have training images, or the model has an output that it never learns."""
    counts = np.bincount(source.train.labels[train], minlength=len(source.class_names))
    empty = [source.class_names[i] for i in np.flatnonzero(counts == 0)]
    if empty:
        raise DataError(f"no training images of {len(empty)} class(es): {', '.join(empty[:5])}{remedy}")
