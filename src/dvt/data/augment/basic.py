"""Training augmentation of single images: crop, flip, shift, erasing; from given random numbers in [0, 1) (`draws`).
Legend: C channels, S side of the model input."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dvt.data.preprocess import RESAMPLING

CROP_SCALE = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
CROP_DRAWS = 4 * 10  # ten attempts, as in torchvision
CROP_FLIP_DRAWS = CROP_DRAWS + 2  # the box, the flip and the interpolation
SHIFT_FLIP_DRAWS = 3  # vertical and horizontal place, flip

ERASED_AREA = (0.02, 1 / 3)  # share of the image
ERASED_RATIO = (0.3, 1 / 0.3)  # width / height, log-uniform
ERASING_DRAWS = 1 + 4 * 10 + 1  # whether, ten attempts at the block, and the seed of the noise

Box = tuple[int, int, int, int]  # left, top, right, bottom
Pair = tuple[float, float]


def random_resized_crop_box(width: int, height: int, draws: Sequence[float]) -> Box:
    """A crop of 8 to 100 % of the area, width/height between 3/4 and 4/3 (log-uniform), from `CROP_DRAWS` numbers; if
    no attempt fits into the image, the largest centre crop with an allowed ratio."""
    size = width, height
    if box := _first_fitting_box(size, size, CROP_SCALE, CROP_RATIO, draws[:CROP_DRAWS]):
        return box
    w, h = size
    if width / height < CROP_RATIO[0]:
        h = round(width / CROP_RATIO[0])
    elif width / height > CROP_RATIO[1]:
        w = round(height * CROP_RATIO[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _first_fitting_box(size: Pair, largest: Pair, scale: Pair, ratio: Pair, draws: Sequence[float]) -> Box | None:
    """The first box, of four numbers each, that is not larger than `largest`: its share of the area of `size` lies in
    `scale` (uniform), its width/height in `ratio` (log-uniform)."""
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
    """The image (mode L or RGB) cropped and resized to (side, side), flipped left to right in half of the cases;
    `interpolation` "random" is bilinear or bicubic, `draws` are `CROP_FLIP_DRAWS` numbers."""
    resample = random_resampling(draws[CROP_DRAWS + 1]) if interpolation == "random" else RESAMPLING[interpolation]
    # Cut first, then resize: the interpolation must not see pixels outside the crop, as in the published training.
    # `resize(box=...)` does look beyond the box, and is not quicker.
    image = image.crop(random_resized_crop_box(image.width, image.height, draws)).resize((side, side), resample)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draws[CROP_DRAWS] < 0.5 else image


def random_resampling(draw: float) -> Image.Resampling:
    """Bilinear or bicubic, each in half of the cases."""
    return RESAMPLING["bilinear" if draw < 0.5 else "bicubic"]


def random_shift_flip(pixels: NDArray[np.uint8], draws: Sequence[float]) -> NDArray[np.uint8]:
    """(S, S[, 3]) pixels at a random place of the image padded with black by S // 8 (28 at 224), flipped in half of the
    cases, from `SHIFT_FLIP_DRAWS` numbers."""
    side = pixels.shape[0]
    padding = side // 8
    down, right = (int(draw * (2 * padding + 1)) for draw in draws[:2])
    padded = np.zeros((side + 2 * padding, side + 2 * padding, *pixels.shape[2:]), np.uint8)
    padded[padding : padding + side, padding : padding + side] = pixels
    shifted = padded[down : down + side, right : right + side]
    return shifted[:, ::-1] if draws[2] < 0.5 else shifted


def random_erasing(image: NDArray[np.float32], probability: float, draws: Sequence[float]) -> None:
    """Replaces a block of some normalised images (C, S, S) by unit normal noise, in place (Zhong et al. 2017, as in the
    published recipe): of ten, the first that is lower and narrower than the image; `draws` are `ERASING_DRAWS` numbers.
    """
    if draws[0] >= probability:
        return
    side, key = image.shape[1], int(draws[-1] * 2**53)
    if box := _first_fitting_box((side, side), (side - 1, side - 1), ERASED_AREA, ERASED_RATIO, draws[1:-1]):
        left, top, right, bottom = box
        shape = (image.shape[0], bottom - top, right - left)
        image[:, top:bottom, left:right] = np.random.default_rng(key).standard_normal(shape, np.float32)
