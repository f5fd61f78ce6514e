"""Small data sets on disk in the formats that `dvt.data` reads."""

from pathlib import Path

import numpy as np
import pytest
from data_files import write_idx, write_image

from dvt.data.sources.fashion_mnist import FILES


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """train/ with 6 and val/ with 3 images of each of three classes, in all formats and several sizes."""
    names = ("a.jpg", "b.PNG", "c.webp", "d.bmp", "e.JPEG", "f.JpG")
    for part, count in (("train", 6), ("val", 3)):
        for label, name in enumerate(("cat", "dog", "owl")):
            for i in range(count):
                write_image(tmp_path / "photos" / part / name / names[i], (40 + 9 * i, 61 - 8 * i), seed=10 * label + i)
    return tmp_path / "photos"


@pytest.fixture
def fashion_folder(tmp_path: Path) -> Path:
    """Fashion-MNIST files with 200 training and 60 test images of random pixels; one file is not compressed."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "fashion"
    folder.mkdir()
    for part, count in (("train", 200), ("val", 60)):
        images, labels = FILES[part]
        write_idx(folder / f"{images}.gz", rng.integers(0, 256, (count, 28, 28)))
        write_idx(folder / labels, np.arange(count) * 7 % 10)
    return folder
