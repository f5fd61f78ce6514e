"""What the fixtures of 0.1.0 were made of, made again: images on disk, model inputs, numbers that sum up weights.

Used by `make_fixtures.py`, which ran once on 0.1.0, and by the tests. Names no module of the package, so that it means
the same whatever the package looks like.
"""

import importlib
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "élan")
PER_CLASS = {"train": 32, "val": 12}
PICTURE_SIDE = 24
IMAGE_SIZE = 16

RUN_STEPS = 27  # 3 epochs of 9 steps; the stored state is that after step 13, four steps into the second epoch
STOPPED_AFTER = 13
SGD_STEPS = 27
SGD_STOPPED_AFTER = 13


def write_images(folder: Path) -> Path:
    """An image folder of three classes, 24 x 24 pixels, lossless; each class has a pattern of its own under noise."""
    rng = np.random.default_rng(20240501)
    rows, columns = np.mgrid[:PICTURE_SIDE, :PICTURE_SIDE]
    patterns = (rows % 8 < 4, columns % 8 < 4, (rows + columns) % 12 < 6)
    for split, count in PER_CLASS.items():
        for name, pattern in zip(CLASSES, patterns, strict=True):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                tint = rng.integers(40, 200, 3)
                noise = rng.integers(-60, 61, (PICTURE_SIDE, PICTURE_SIDE, 3))
                pixels = np.where(pattern[:, :, None], tint, 128) + noise
                picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
                picture.save(folder / split / name / f"{number:03d}.png")
    return folder


def inputs(count: int = 24, channels: int = 3, side: int = IMAGE_SIZE, seed: int = 7) -> np.ndarray:
    """Model inputs, float32 (count, channels, side, side)."""
    return np.random.default_rng(seed).standard_normal((count, channels, side, side)).astype(np.float32)


def coarse_weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 11) -> dict[str, np.ndarray]:
    """Weights of three different values, the same ones where names differ by numbers alone, which compress well; around
    1 for scales of norms, named `gamma`."""
    weights = {}
    for name in sorted(shapes):
        rng = np.random.default_rng([seed, zlib.crc32(re.sub(r"\d+", "", name).encode())])
        scale = 1 / max(1.0, float(np.sqrt(np.prod(shapes[name][1:])))) if len(shapes[name]) > 1 else 0.1
        values = rng.integers(-1, 2, shapes[name]) * np.float32(scale)
        weights[name] = (values + (1 if name.endswith("gamma") else 0)).astype(np.float32)
    return weights


def enlarged(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Larger heads, with which a model that has learnt little is sure of some images and unsure of others. Exact: the
    factor is a power of two."""
    return {name: value * np.float32(16 if ".head." in name else 1) for name, value in weights.items()}


def summed_up(weights: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    """Per tensor: its sum, its norm and its product with fixed random numbers, in double precision."""
    result = {}
    for name in sorted(weights):
        values = np.asarray(weights[name], np.float64).ravel()
        others = np.random.default_rng([5, values.size]).standard_normal(values.size)
        result[name] = [float(values.sum()), float(np.sqrt(values @ values)), float(values @ others)]
    return result


def spread_thresholds(probabilities: np.ndarray, share: float) -> list[float]:
    """Thresholds (K,) at which about `share` of the images leave, in the widest gap nearby, so that rounding decides
    nothing; the last exit takes all."""
    result = []
    for values in np.sort(probabilities.max(axis=2).astype(np.float64), axis=1)[:-1]:
        centre, reach = (1 - share) * (len(values) - 1), len(values) / 6
        near = [i for i in range(len(values) - 1) if abs(i - centre) <= reach]
        widest = max(near, key=lambda i: values[i + 1] - values[i])
        result.append(float((values[widest] + values[widest + 1]) / 2))
    return [*result, 0.0]


def resolves(name: str) -> bool:
    """Whether `name` is a module, or something that a module has."""
    value, path = importlib.import_module("dvt"), "dvt"
    for part in name.split(".")[1:]:
        path += f".{part}"
        try:
            value = getattr(value, part)
        except AttributeError:
            try:
                value = importlib.import_module(path)
            except ImportError:
                return False
    return True
