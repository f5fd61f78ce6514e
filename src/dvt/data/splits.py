"""Which images of a data set belong to train, calibration and val; `load_splits` is the entry point."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dvt.config.sections import AugmentSection, DataSection
from dvt.data.augment.draws import Purpose, even_subset, stream_key
from dvt.data.augment.mixing import Mixing
from dvt.data.bad_images import BadImagePolicy
from dvt.data.batches import Splits
from dvt.data.classes import ModelClasses
from dvt.data.images import PARTS, Recipe, Source, View
from dvt.data.sources.cifar import open_cifar
from dvt.data.sources.fashion_mnist import open_fashion_mnist
from dvt.data.sources.image_folder import open_image_folder
from dvt.data.sources.scale import open_scale
from dvt.data.workers import Workers
from dvt.errors import ConfigError, DataError, listing

SPLITS = ("train", "calibration", "val")
SOURCES = {
    "image_folder": open_image_folder,
    "cifar10": open_cifar,
    "cifar100": open_cifar,
    "fashion_mnist": open_fashion_mnist,
    "fashion_mnist_scale": open_scale,
}
_VAL_SUBSET_KEY = stream_key(0xDA7A, Purpose.SUBSET)  # the same images for every seed


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
      what `augment` adds. More images than there are is no error then: the published 50,000 fit ImageNet.
    All draws are even per class; those from the training images depend on the seed, as do order and augmentation.
    Raises DataError if the data set is missing or faulty, ConfigError if the configuration does not fit it.
    """
    augment = augment or AugmentSection()
    if data.class_map:
        raise ConfigError("data.class_map is set, but it is for the evaluation of a checkpoint alone; leave it out")
    source = _open(data, image_size, augment)
    splits = _trained_on(source, data, seed, augment)
    mixed = augment.mixup > 0 or augment.cutmix > 0
    mixing = Mixing(augment.mixup, augment.cutmix, label_smoothing, len(source.class_names)) if mixed else None
    # A class without training images would be an output that the model never learns.
    counts = np.bincount(splits.labels("train"), minlength=len(source.class_names))
    if empty := [source.class_names[i] for i in np.flatnonzero(counts == 0)]:
        raise DataError(
            f"no training images of {len(empty)} class(es): {listing(empty, shown=5)}; give each some, lower"
            " data.calibration_images or raise data.train_images"
        )
    return replace(splits, mixing=mixing, erasing=augment.erasing)


def load_evaluation(data: DataSection, image_size: int, seed: int, classes: ModelClasses) -> Splits:
    """As `load_splits`, for the evaluation of a model: images of a folder are labelled by the classes of the model, and
    there need not be some of each class."""
    augment = AugmentSection()
    return _trained_on(_open(data, image_size, augment, PARTS, classes), data, seed, augment)


def load_validation(data: DataSection, image_size: int, classes: ModelClasses | None = None) -> Splits:
    """The validation images alone, as the others have them, but that mean and standard deviation are not computed."""
    source = _open(data, image_size, AugmentSection(), ("val",), classes)
    return _divided(source, data, (_validation(source, data),), tuple(source.notes))


def _trained_on(source: Source, data: DataSection, seed: int, augment: AugmentSection) -> Splits:
    plain = Recipe(source.preprocessing, source.preprocessing.interpolation)  # crop and flip alone
    labels, train, key = source.train.labels, np.arange(len(source.train.labels)), None
    calibration_key = stream_key(seed, Purpose.CALIBRATION)
    if data.hold_out_calibration:
        if data.calibration_images >= len(labels):
            raise ConfigError(
                f"data.calibration_images is {data.calibration_images}, but there are {len(labels)} training images and"
                " data.hold_out_calibration takes the slice away from them; lower it"
            )
        calibration = even_subset(labels, data.calibration_images, calibration_key)
        train = np.setdiff1d(train, calibration, assume_unique=True)
        note = f"calibration: {len(calibration):,} training images, kept out of training"
    if data.train_images is not None:
        train = train[even_subset(labels[train], data.train_images, stream_key(seed, Purpose.SUBSET))]
    if not data.hold_out_calibration:
        asked, key = data.calibration_images, stream_key(seed, Purpose.CALIBRATION_AUGMENTATION)
        calibration = train[even_subset(labels[train], asked, calibration_key)]
        capped = f" (all; {asked:,} asked for)" if len(calibration) < asked else ""
        note = f"calibration: {len(calibration):,} of the images trained on{capped}, cropped and flipped"
    views = (
        View("train", source.train, train, Recipe.of(augment, source.preprocessing)),
        View("calibration", source.train, calibration, plain, key),
        _validation(source, data),
    )
    added = [] if augment.policy == "none" else [augment.policy]
    added += [f"{key} {value:g}" for key in ("mixup", "cutmix", "erasing") if (value := getattr(augment, key)) > 0]
    variation = [f"training images: crop and flip, {', '.join(added)}"] if added else []
    return replace(_divided(source, data, views, (*source.notes, *variation, note)), seed=seed)


def _validation(source: Source, data: DataSection) -> View:
    val = np.arange(len(source.val.labels))
    if data.val_images is not None:
        val = even_subset(source.val.labels, data.val_images, _VAL_SUBSET_KEY)
    return View("val", source.val, val, Recipe(source.preprocessing, source.preprocessing.interpolation))


def _divided(source: Source, data: DataSection, views: Sequence[View], notes: tuple[str, ...]) -> Splits:
    return Splits(
        source=source,
        views={view.split: view for view in views},
        workers=Workers(data.workers, data.worker_type),
        bad_images=BadImagePolicy(data, {view.split: len(view.indices) for view in views}),
        notes=notes,
    )


def _open(
    data: DataSection,
    image_size: int,
    augment: AugmentSection,
    parts: Sequence[str] = PARTS,
    classes: ModelClasses | None = None,
) -> Source:
    by_folder = (classes,) if data.dataset == "image_folder" else ()
    try:
        source = SOURCES[data.dataset](data, image_size, parts, *by_folder)
    except OSError as error:  # no permission, a broken disk: the files are there but cannot be read
        raise DataError(f"cannot read {error.filename or data.path}: {error.strerror or error}") from error
    if source.drawn and augment.policy != "none":
        raise ConfigError(
            f"augment.policy is {augment.policy}, but {data.dataset} draws its items as they are; set it to none"
            " (erasing, mixup and cutmix can be used)"
        )
    return source
