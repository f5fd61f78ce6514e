"""Evaluation preprocessing: an image file or PIL image becomes one normalised model input.

The shorter side is resized to `resize_size`, the centre is cropped, and pixels become (x / 255 - mean) / std. Resize
and crop are PIL's own, except for extremely long images (`MAX_RATIO`); the arithmetic of the sizes is that of
torchvision, with which the published models were evaluated. Legend: C channels, S side of the square model input.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dvt.data.decode import Exif, read_image, to_mode, upright
from dvt.errors import ConfigError
from dvt.value_checks import bounds, check_fields

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# Of images longer than so many times their width, evaluation resizes only what it keeps: the rest may not fit into
# memory. That differs from PIL's resize and crop by rounding, one level in a few pixels of a thousand.
MAX_RATIO = 64


@dataclass(frozen=True)
class Preprocessing:
    """What evaluation does to every image; stored with a checkpoint, so that its model sees what it was trained on.
    Raises ConfigError for a value that no image can be prepared with."""

    dataset: str  # for which it was made
    image_size: int = field(metadata=bounds(1))  # side S of the model input, in pixels
    resize_size: int  # shorter side before the centre crop, in pixels
    in_channels: Literal[1, 3]  # grey or RGB
    mean: tuple[float, ...] = field(metadata=bounds(-1000, 1000))  # per channel, of pixels in 0..1
    std: tuple[float, ...] = field(metadata=bounds(1e-6, 1000))
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"  # both with PIL's antialiasing

    def __post_init__(self) -> None:
        for key in ("mean", "std"):
            object.__setattr__(self, key, tuple(float(value) for value in getattr(self, key)))
        check_fields(self, "")
        if self.resize_size < self.image_size:
            raise ConfigError(
                f"data.resize_size is {self.resize_size}, smaller than the image size {self.image_size} that is cropped"
                " from it; give at least the image size"
            )
        for key in ("mean", "std"):
            if (count := len(getattr(self, key))) != self.in_channels:
                raise ConfigError(
                    f"data.{key} has {count} entries, but images of {self.dataset} have {self.in_channels}"
                    " channel(s); give one number per channel"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, fit for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "Preprocessing":
        """The inverse of `to_dict`. Raises ConfigError if a key is missing or unknown."""
        try:
            return cls(**stored)
        except TypeError as error:
            raise ConfigError(f"stored preprocessing {stored} cannot be used: {error}") from error

    @property
    def mode(self) -> str:
        return "L" if self.in_channels == 1 else "RGB"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, S, S)."""
        return self.in_channels, self.image_size, self.image_size

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """(S, S) or (S, S, 3) pixels of the resized and cropped image."""
        image = to_mode(image, self.mode)
        size = resized_size(image.width, image.height, self.resize_size)
        box, resample = centre_box(*size, self.image_size), RESAMPLING[self.interpolation]
        if max(size) > MAX_RATIO * min(size):
            scale = np.array(image.size * 2) / np.array(size * 2)
            return np.asarray(image.resize((self.image_size,) * 2, resample, tuple(box * scale)))
        return np.asarray(image.resize(size, resample).crop(box))

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pixels (..., S, S) of grey or (..., S, S, 3) of RGB images -> float32 (..., C, S, S)."""
        values = pixels[..., None] if self.in_channels == 1 else pixels
        values = np.moveaxis(values, -1, -3).astype(np.float32, order="C")  # (..., C, S, S)
        values /= np.float32(255)
        values -= np.array(self.mean, np.float32)[:, None, None]
        values /= np.array(self.std, np.float32)[:, None, None]
        return values

    def __call__(self, image: Image.Image | str | Path, exif: Exif = "ignore") -> NDArray[np.float32]:
        """One image or image file -> float32 (C, S, S). Raises DataError as `read_image` does."""
        if not isinstance(image, Image.Image):
            image = read_image(image, self.mode, exif=exif)
        elif exif == "honour":
            image = upright(image)
        return self.normalise(self.pixels(image))


def default_resize_size(image_size: int) -> int:
    """Shorter side before the centre crop as in the published evaluation: 256 for 224, and in proportion."""
    return round(image_size / (224 / 256))


def resized_size(width: int, height: int, shorter: int) -> tuple[int, int]:
    """(width, height) after the shorter side has become `shorter`; the longer one is rounded down."""
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def centre_box(width: int, height: int, side: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the centre crop; halves go to the even neighbour, as Python rounds."""
    left, top = round((width - side) / 2), round((height - side) / 2)
    return left, top, left + side, top + side
