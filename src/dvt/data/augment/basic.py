"""Training augmentation of single images: crop, flip, shift, erasing.

Each function takes its random numbers as an argument, so that what an image looks like in an epoch depends on
(seed, epoch, index) alone (`draws`).

Legend: C channels, S side of the model input.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dvt.data.preprocess import RESAMPLING

CROP_SCALE = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
CROP_DRAWS = 4 * CROP_ATTEMPTS
"""Random numbers that `random_resized_crop_box` uses."""
CROP_FLIP_DRAWS = CROP_DRAWS + 2
"""Random numbers that `random_resized_crop_flip` uses: the box, the flip and the interpolation."""
SHIFT_FLIP_DRAWS = 3
"""Random numbers that `random_shift_flip` uses: vertical and horizontal place, flip."""

ERASED_AREA = (0.02, 1 / 3)
ERASED_RATIO = (0.3, 1 / 0.3)
ERASING_ATTEMPTS = 10
ERASING_DRAWS = 1 + 4 * ERASING_ATTEMPTS + 1
"""Random numbers that `random_erasing` uses: whether, the block, and the seed of the noise."""


def random_resized_crop_box(width: int, height: int, draws: Sequence[float]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a crop of 8 to 100 % of the area, width/height between 3/4 and 4/3 (log-uniform).

    Ten attempts as in torchvision, from `CROP_DRAWS` numbers in [0, 1); if none fits into the image, the largest centre
    crop with an allowed ratio.
    """
    box = _first_fitting_box((width, height), (width, height), CROP_SCALE, CROP_RATIO, draws[:CROP_DRAWS])
    if box is not None:
        return box
    w, h = width, height
    if width / height < CROP_RATIO[0]:
        h = round(width / CROP_RATIO[0])
    elif width / height > CROP_RATIO[1]:
        w = round(height * CROP_RATIO[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _first_fitting_box(
    size: tuple[int, int],
    largest: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    draws: Sequence[float],
) -> tuple[int, int, int, int] | None:
    """Of the boxes drawn, with four numbers each, the first that is not larger than `largest`; None: none is.

    Width and height of the image are `size`; the share of its area lies in `scale` (uniform), width/height in `ratio`
    (log-uniform).
    """
    log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
    for attempt in range(0, len(draws), 4):
        area_draw, ratio_draw, x, y = draws[attempt : attempt + 4]
        area = size[0] * size[1] * (scale[0] + area_draw * (scale[1] - scale[0]))
        aspect = math.exp(log_ratio[0] + ratio_draw * (log_ratio[1] - log_ratio[0]))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= largest[0] and 0 < h <= largest[1]:
            left, top = int(x * (size[0] - w + 1)), int(y * (size[1] - h + 1))
            return left, top, left + w, top + h
    return None


def random_resized_crop_flip(image: Image.Image, side: int, interpolation: str, draws: Sequence[float]) -> Image.Image:
    """The image cropped and resized to (side, side), flipped left to right in half of the cases.

    Args:
        image: Image in mode L or RGB.
        side: Side of the result, in pixels.
        interpolation: "bilinear", "bicubic", or "random": one of the two for each image.
        draws: `CROP_FLIP_DRAWS` numbers in [0, 1).
    """
    resample = random_resampling(draws[CROP_DRAWS + 1]) if interpolation == "random" else RESAMPLING[interpolation]
    # Cut first, then resize: the interpolation must not see pixels outside the crop, as in the published training.
    # `resize(box=...)` does look beyond the box, and is not quicker.
    image = image.crop(random_resized_crop_box(image.width, image.height, draws)).resize((side, side), resample)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draws[CROP_DRAWS] < 0.5 else image


def random_resampling(draw: float) -> Image.Resampling:
    """Bilinear or bicubic, each in half of the cases, from a number in [0, 1)."""
    return RESAMPLING["bilinear" if draw < 0.5 else "bicubic"]


def random_shift_flip(pixels: NDArray[np.uint8], draws: Sequence[float]) -> NDArray[np.uint8]:
    """Crop of (S, S[, 3]) pixels at a random place of the image padded with black by S // 8 (28 at 224), and flip.

    `draws` are `SHIFT_FLIP_DRAWS` numbers in [0, 1).
    """
    side = pixels.shape[0]
    padding = side // 8
    down, right = (int(draw * (2 * padding + 1)) - padding for draw in draws[:2])
    shifted = np.zeros_like(pixels)
    shifted[max(0, -down) : side - max(0, down), max(0, -right) : side - max(0, right)] = pixels[
        max(0, down) : side + min(0, down), max(0, right) : side + min(0, right)
    ]
    return shifted[:, ::-1] if draws[2] < 0.5 else shifted


def random_erasing(image: NDArray[np.float32], probability: float, draws: Sequence[float]) -> None:
    """Replaces one block of some images by noise, after normalisation (Zhong et al. 2017, as in the published recipe).

    The block covers 2 % to a third of the image, its width/height lies between 0.3 and 1/0.3 (log-uniform), and each of
    its values is drawn from the unit normal distribution. Of ten blocks drawn, the first that is lower and narrower
    than the image is taken; if none is, the image stays as it is.

    Args:
        image: (C, S, S), normalised; changed in place.
        probability: Share of the images that are erased.
        draws: `ERASING_DRAWS` numbers in [0, 1).
    """
    if draws[0] >= probability:
        return
    side, key = image.shape[1], int(draws[-1] * 2**53)
    box = _first_fitting_box((side, side), (side - 1, side - 1), ERASED_AREA, ERASED_RATIO, draws[1:-1])
    if box is not None:
        left, top, right, bottom = box
        shape = (image.shape[0], bottom - top, right - left)
        image[:, top:bottom, left:right] = np.random.default_rng(key).standard_normal(shape, np.float32)
