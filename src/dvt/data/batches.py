"""Batches of a data set that is divided into splits: in order for evaluation, shuffled and augmented for training.
Legend: N images of a split, n of a batch, C channels, S side of the model input.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dvt.data.augment.basic import ERASING_DRAWS, random_erasing
from dvt.data.augment.draws import Purpose, stream_key, uniforms
from dvt.data.augment.mixing import Mixing
from dvt.data.bad_images import BadImagePolicy
from dvt.data.images import Source, View
from dvt.data.workers import Workers, taken_ahead
from dvt.errors import ConfigError

if TYPE_CHECKING:
    import mindspore.dataset

Batch = tuple[NDArray[np.float32], NDArray]
"""Images (n, C, S, S), normalised, and labels: int32 (n,), or float32 (n, classes) where training batches are mixed."""
Shard = tuple[int, int]  # rank and count of the processes that share the images
WHOLE: Shard = (0, 1)


@dataclass(frozen=True)
class Splits:
    """A data set divided into "train", "calibration" and "val"; made by `dvt.data.load_splits`."""

    source: Source
    views: Mapping[str, View]  # the images of each split
    workers: Workers
    bad_images: BadImagePolicy  # what becomes of images that cannot be read, and how many there were
    notes: tuple[str, ...]  # for the log
    seed: int = 0  # fixes order and augmentation of training
    mixing: Mixing | None = None  # mixup and cutmix of training batches
    erasing: float = 0.0  # share of the training images of which a block is replaced by noise, after mixing

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the labels."""
        return self.source.class_names

    @property
    def sizes(self) -> dict[str, int]:
        """Images N of each split."""
        return {split: len(view.indices) for split, view in self.views.items()}

    @property
    def preprocessing(self) -> dict[str, Any]:
        """That of evaluation, to be stored with checkpoints and read by `dvt.data.Preprocessing.from_dict`."""
        return self.source.preprocessing.to_dict()

    def describe(self) -> str:
        """A few lines for the log."""
        p, counts = self.source.preprocessing, ", ".join(f"{count:,} {split}" for split, count in self.sizes.items())
        first = f"{p.dataset}: {len(self.class_names)} classes; images: {counts}"
        last = f"model input {p.in_channels} x {p.image_size} x {p.image_size}"
        if p.resize_size > p.image_size:
            last += f" (shorter side to {p.resize_size}, {p.interpolation}, centre crop)"
        last += f", mean {list(p.mean)}, std {list(p.std)}"
        return "\n".join([first, *self.notes, self.workers.describe(), last])

    def labels(self, split: str) -> NDArray[np.int32]:
        """(N,) class of each image of a split."""
        return self._view(split).labels()

    def identity(self) -> dict[str, dict[str, Any]]:
        """What tells this data set from others, wherever it lies: part -> `images`, how many there are, and
        `fingerprint`, which changes with their names (or pixels, of images in memory), order and classes."""
        parts = {"train": self.source.train, "val": self.source.val}
        return {
            part: {"images": len(each.labels), "fingerprint": each.fingerprint} for part, each in parts.items() if each
        }

    def difference(self, before: Mapping[str, Mapping[str, Any]], *parts: str) -> str:
        """How these images differ from those of which `identity` was `before`, in words; "" if they do not. Of these
        `parts` alone, or of all in `before`."""
        found = []
        for part, now in self.identity().items():
            then = before.get(part) if part in (parts or before) else None
            if then and then["images"] != now["images"]:
                found.append(f"{part} had {then['images']:,} images and has {now['images']:,}")
            elif then and then["fingerprint"] != now["fingerprint"]:
                count = f"{now['images']:,}"
                found.append(f"the {count} images of {part} are not the same ones, or not of the same classes")
        return "; ".join(found)

    def attributes(self, split: str) -> dict[str, NDArray]:
        """What is known of each image of a split besides its class, in index order: {"item_size": (N,) pixels} for
        "fashion_mnist_scale", else {}, and for images that are augmented."""
        view = self._view(split)
        return {} if view.key is not None else view.images.attributes(view.indices)

    def with_resize_size(self, resize_size: int | None) -> "Splits":
        """The same images with another `data.resize_size` in evaluation; None: these splits. Raises ConfigError if it
        is smaller than the image size, or images of this data set are not resized."""
        preprocessing = self.source.preprocessing
        if resize_size in (None, preprocessing.resize_size):
            return self
        if self.source.drawn:
            raise ConfigError(
                f"a resize size of {resize_size} was asked for, but images of {preprocessing.dataset} are drawn at"
                f" {preprocessing.image_size} pixels and not resized; leave it at null"
            )
        preprocessing = replace(preprocessing, resize_size=resize_size)
        views = {
            split: replace(view, recipe=replace(view.recipe, preprocessing=preprocessing))
            for split, view in self.views.items()
        }
        return replace(self, source=replace(self.source, preprocessing=preprocessing), views=views)

    def without(self, split: str, positions: ArrayLike) -> "Splits":
        """These splits less the images of one of them at some positions."""
        view = self._view(split)
        kept = replace(view, indices=np.delete(view.indices, np.asarray(positions, np.int64)))
        return replace(self, views={**self.views, split: kept})

    def batch(self, split: str, positions: ArrayLike) -> Batch:
        """The images at some positions (n,) of a split as evaluation sees them, and their labels. The next readable
        image takes the place of a bad one that is skipped."""
        shown, places = self._view(split), np.asarray(positions, np.int64)
        images, bad = self.workers.one_batch(shown.task(places))
        batch = images, shown.labels(places)
        self.bad_images.replace(shown, places, batch, bad)
        return batch

    def positions(self, split: str, shard: Shard = WHOLE) -> NDArray[np.int64]:
        """The positions 0..N-1 of a split that a shard evaluates, side by side; sizes of shards may differ by one."""
        count, (rank, ranks) = len(self._view(split).indices), shard
        return np.arange(count * rank // ranks, count * (rank + 1) // ranks)

    def num_batches(self, split: str, batch_size: int, shard: Shard = WHOLE) -> int:
        """Batches of a shard in evaluation. Raises ConfigError for a batch size below 1 or fewer images than shards."""
        count = len(self._view(split).indices)
        _check_batch(batch_size, shard)
        if count < shard[1]:
            raise ConfigError(f"{split} has {count} images, fewer than the {shard[1]} processes that share them")
        return -(-len(self.positions(split, shard)) // batch_size)

    def batches(self, split: str, batch_size: int, shard: Shard = WHOLE, skip: int = 0) -> Iterator[Batch]:
        """A split as evaluation sees it: in index order, every image exactly once, the last batch short. Batches are
        made ahead of time and belong to the receiver; those to `skip` at the start cost nothing. Raises DataError for
        bad images that are not left out (with the label `bad_images.LEFT_OUT`), and worker processes that died."""
        self.num_batches(split, batch_size, shard)
        share = self.positions(split, shard)
        places = [share[start : start + batch_size] for start in range(skip * batch_size, len(share), batch_size)]
        return taken_ahead(self._made(self._view(split), places, shard[1], self.bad_images.leave_out))

    def training(self, batch_size: int, shard: Shard = WHOLE, multiple: int = 1) -> "TrainingBatches":
        """The training images, shuffled and augmented, epoch by epoch."""
        return TrainingBatches(self, batch_size, shard, multiple)

    def pipeline(
        self, split: str, batch_size: int, training: bool = False, epoch: int = 0, shard: Shard = WHOLE
    ) -> "mindspore.dataset.GeneratorDataset":
        """`batches`, or in training, for the split "train" alone, `training` from `epoch` on, every pass the next, as a
        `mindspore.dataset` with the columns `image` and `label`, for `mindspore.Model`. Errors after the first batch
        are MindSpore's RuntimeError, which quotes the DataError. Lower `mindspore.dataset.config.set_prefetch_size`,
        16 batches, for large images."""
        from dvt.data.pipelines import as_dataset  # imports MindSpore

        if not training:
            count = self.num_batches(split, batch_size, shard)
            return as_dataset(lambda number: self.batches(split, batch_size, shard), count, epoch)
        if split != "train":
            raise ValueError(f"training on the split {split!r}; only 'train' is for that")
        found = self.training(batch_size, shard)
        return as_dataset(found.epoch, found.per_epoch, epoch)

    def _view(self, split: str) -> View:
        if split not in self.views:
            raise ValueError(f"there is no split {split!r}; there are {', '.join(self.views)}")
        return self.views[split]

    def _made(
        self, shown: View, places: list[NDArray[np.int64]], ranks: int, handle_bad: Callable[..., None]
    ) -> Generator[Batch, None, None]:
        tasks = (shown.task(each) for each in places)
        with closing(self.workers.batches(tasks, images=sum(map(len, places)), ranks=ranks)) as made:
            for each, (images, bad) in zip(places, made, strict=True):
                batch = images, shown.labels(each)
                handle_bad(shown, each, batch, bad)
                yield batch


class TrainingBatches:
    """The training batches of one of the processes that train together; made by `Splits.training`.

    An epoch depends on (seed, epoch) alone, and with mixup or cutmix on batch and rank. The batches of all processes
    side by side are those of one process with as many times the batch size. `per_epoch`, their number, is a multiple
    of `multiple`; images that are left over are dropped.
    """

    def __init__(self, splits: Splits, batch_size: int, shard: Shard = WHOLE, multiple: int = 1) -> None:
        _check_batch(batch_size, shard)
        count, ranks = splits.sizes["train"], shard[1]
        if count < batch_size * ranks * multiple:
            each = f" on each of {ranks} devices" if ranks > 1 else ""
            times = f" and train.accumulation_steps is {multiple}" if multiple > 1 else ""
            raise ConfigError(
                f"train.batch_size is {batch_size}{each}{times}, but there are {count} training images; lower it"
            )
        self.per_epoch = count // (batch_size * ranks * multiple) * multiple
        self._splits, self._batch_size, self._shard = splits, batch_size, shard

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (from 0), as `Splits.batches` gives those of evaluation."""
        splits, (rank, ranks) = self._splits, self._shard
        view = splits.views["train"]
        order = np.random.default_rng(stream_key(splits.seed, Purpose.ORDER, number)).permutation(view.indices)
        key = stream_key(splits.seed, Purpose.AUGMENTATION, number)
        shown = replace(view, indices=order, key=key, epoch=number)
        # Batch i of all processes together is batch i of one process with a batch size `ranks` times as large.
        together = np.arange(self.per_epoch * ranks * self._batch_size).reshape(self.per_epoch, ranks, -1)
        return taken_ahead(self._augmented(shown, list(together[:, rank]), skip))

    def _augmented(self, shown: View, places: list[NDArray[np.int64]], skip: int) -> Generator[Batch, None, None]:
        # Mixed first and then erased, so that no erased block is blended, as published.
        splits, (rank, ranks) = self._splits, self._shard
        erasing_key = stream_key(splits.seed, Purpose.ERASING, shown.epoch)
        with closing(splits._made(shown, places[skip:], ranks, splits.bad_images.replace)) as made:
            for i, (images, labels) in enumerate(made, start=skip):
                if splits.mixing:
                    key = stream_key(splits.seed, Purpose.MIXING, shown.epoch, i, rank)
                    images, labels = splits.mixing(images, labels, key)
                if splits.erasing > 0:
                    draws = uniforms(erasing_key, shown.indices[places[i]], ERASING_DRAWS).tolist()
                    for image, row in zip(images, draws, strict=True):
                        random_erasing(image, splits.erasing, row)
                yield images, labels


def _check_batch(batch_size: int, shard: Shard) -> None:
    if not 0 <= shard[0] < shard[1]:
        raise ValueError(f"there is no shard {shard[0]} of {shard[1]}; they count from 0")
    if batch_size < 1:
        raise ConfigError(f"the batch size is {batch_size}; it must be at least 1")
