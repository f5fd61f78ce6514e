"""The calibration images: those on which thresholds and temperatures are found, a slice of the training set."""

import numpy as np
from numpy.typing import NDArray

from dvt.config.sections import DataSection
from dvt.data.augment.draws import Purpose, even_subset, stream_key
from dvt.errors import ConfigError


def held_out_calibration(labels: NDArray[np.int32], data: DataSection, seed: int) -> NDArray[np.int64]:
    """The calibration images that training does without (`data.hold_out_calibration`), of all training images.

    Raises:
        ConfigError: There are no more training images than are asked for.
    """
    if data.calibration_images >= len(labels):
        raise ConfigError(
            f"data.calibration_images is {data.calibration_images}, but there are {len(labels)} training images and"
            " data.hold_out_calibration takes the slice away from them; lower it"
        )
    return calibration_images(labels, np.arange(len(labels)), data.calibration_images, seed)


def calibration_images(
    labels: NDArray[np.int32], candidates: NDArray[np.int64], count: int, seed: int
) -> NDArray[np.int64]:
    """The calibration images: `count` of the candidates or all of them, even per class.

    Args:
        labels: (N,) class of each training image.
        candidates: Ascending indices of the training images to draw from.
        count: How many to draw.
        seed: Fixes the draw.

    Returns:
        Their ascending indices.
    """
    return candidates[even_subset(labels[candidates], count, stream_key(seed, Purpose.CALIBRATION))]
