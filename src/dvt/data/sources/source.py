"""What an opened data set is, and what all of them need while they are opened."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dvt.config.sections import DataSection
from dvt.data.images import ImageSet
from dvt.data.preprocess import Preprocessing
from dvt.errors import DataError

PARTS = ("train", "val")


@dataclass(frozen=True)
class Source:
    """An opened data set."""

    train: ImageSet | None  # None where the validation images alone were opened
    val: ImageSet
    class_names: tuple[str, ...]  # in the order of the labels
    preprocessing: Preprocessing  # of evaluation
    notes: list[str]  # a sentence each on where the images come from and what was done with them, for the log
    drawn: bool = False  # images are drawn as model inputs: nothing is resized, no policy can be applied


@dataclass(frozen=True)
class Defaults:
    """Preprocessing of a data set where the configuration leaves it open."""

    mean: tuple[float, ...]  # per channel, of pixels in 0..1
    std: tuple[float, ...]
    interpolation: str = "bilinear"

    def preprocessing(self, data: DataSection, image_size: int, resize_size: int) -> Preprocessing:
        """With what the section `data` says in place of the defaults."""
        return Preprocessing(
            dataset=data.dataset,
            image_size=image_size,
            resize_size=resize_size,
            in_channels=len(self.mean),
            mean=tuple(data.mean or self.mean),
            std=tuple(data.std or self.std),
            interpolation=self.interpolation,
        )


def required_folder(path: str | Path | None, what: str) -> Path:
    """`data.path` as a folder. Raises DataError, saying `what` to give, if it is not set or no folder."""
    if path is None:
        raise DataError(f"data.path is not set; give {what}")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(f"data.path {path} is not a folder; give {what}")
    return folder


def checked_labels(file: Path, labels: NDArray[np.uint8], num_classes: int) -> NDArray[np.int32]:
    """The labels (n,) that `file` holds. Raises DataError, naming it, for one that is no class."""
    if labels.max() >= num_classes:
        raise DataError(f"{file} holds label {labels.max()}, but there are {num_classes} classes")
    return labels.astype(np.int32)
