"""Training augmentation of PIL images and pixel arrays, from given random numbers. Needs no MindSpore.

Each function takes its random numbers as an argument, so that what an image looks like in an epoch depends on
(seed, epoch, index) alone; see `dvt.data.draws`.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CROP_SCALE = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
CROP_DRAWS = 4 * CROP_ATTEMPTS
"""Random numbers that `random_resized_crop_box` uses."""


def random_resized_crop_box(width: int, height: int, draws: Sequence[float]) -> tuple[int, int, int, int]:
    """A crop of 8 to 100 % of the area, its width/height between 3/4 and 4/3 (log-uniform).

    Ten attempts as in torchvision; if none fits into the image, the largest centre crop with an allowed ratio.

    Args:
        width: Width of the image, in pixels.
        height: Height of the image, in pixels.
        draws: `CROP_DRAWS` numbers in [0, 1).

    Returns:
        (left, top, right, bottom).
    """
    log_ratio = (math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1]))
    for attempt in range(CROP_ATTEMPTS):
        scale, ratio, x, y = draws[4 * attempt : 4 * attempt + 4]
        area = width * height * (CROP_SCALE[0] + scale * (CROP_SCALE[1] - CROP_SCALE[0]))
        aspect = math.exp(log_ratio[0] + ratio * (log_ratio[1] - log_ratio[0]))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < CROP_RATIO[0]:
        h = round(width / CROP_RATIO[0])
    elif width / height > CROP_RATIO[1]:
        w = round(height * CROP_RATIO[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def random_resized_crop_flip(image: Image.Image, side: int, resample: int, draws: Sequence[float]) -> NDArray[np.uint8]:
    """The cropped image as (side, side[, 3]) pixels, flipped left to right in half of the cases.

    Args:
        image: Image in mode L or RGB.
        side: Side of the result, in pixels.
        resample: PIL's number of the interpolation.
        draws: `CROP_DRAWS` + 1 numbers in [0, 1).
    """
    # Cut first, then resize: the interpolation must not see pixels outside the crop, as in the published training.
    image = image.crop(random_resized_crop_box(image.width, image.height, draws)).resize((side, side), resample)
    pixels = np.asarray(image)
    return pixels[:, ::-1] if draws[CROP_DRAWS] < 0.5 else pixels


def random_shift_flip(pixels: NDArray[np.uint8], draws: Sequence[float]) -> NDArray[np.uint8]:
    """Crop of (S, S[, 3]) pixels at a random place of the image padded with black by S // 8 (28 at 224), and flip.

    Args:
        pixels: Pixels of the whole image.
        draws: Three numbers in [0, 1): vertical and horizontal place, flip.
    """
    side = pixels.shape[0]
    padding = side // 8
    down, right = (int(draw * (2 * padding + 1)) - padding for draw in draws[:2])
    shifted = np.zeros_like(pixels)
    shifted[max(0, -down) : side - max(0, down), max(0, -right) : side - max(0, right)] = pixels[
        max(0, down) : side + min(0, down), max(0, right) : side + min(0, right)
    ]
    return shifted[:, ::-1] if draws[2] < 0.5 else shifted
