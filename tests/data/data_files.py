"""Writes small images and IDX files, and finds the real photographs that test dependencies bring."""

import gzip
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image


def write_image(file: Path, size: tuple[int, int], seed: int = 0, mode: str = "RGB") -> Path:
    """A smooth random image of (width, height), in the format that the extension says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode).save(file)
    return file


def write_idx(file: Path, values: np.ndarray) -> Path:
    """An IDX file of unsigned bytes; gzip if the name says so."""
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    content = header + values.astype(np.uint8).tobytes()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return file


def photographs() -> list[Path]:
    """Real photographs that come with scikit-learn (landscape) and matplotlib (portrait)."""
    found = []
    for package, pattern in (
        ("sklearn", "datasets/images/*.jpg"),
        ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            found += sorted(Path(spec.origin).parent.glob(pattern))
    return found
