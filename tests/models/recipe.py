"""The weights, images and targets that the reference numbers belong to, made by a recipe instead of being stored."""

import zlib
from collections.abc import Mapping

import numpy as np

from dvt.models.grids import sinusoid_positions


def weights(shapes: Mapping[str, tuple[int, ...]], tokenizer: str) -> dict[str, np.ndarray]:
    """float32 weights under released names; each tensor depends on its own name and shape alone."""
    return {name: _tensor(name, shape, tokenizer) for name, shape in shapes.items()}


def images_and_targets() -> tuple[np.ndarray, np.ndarray]:
    """Images (2, 3, 224, 224) and soft targets (2, 1000), float32."""
    rng = np.random.default_rng(2022)
    coarse = rng.standard_normal((2, 3, 14, 14))
    noise = rng.standard_normal((2, 3, 224, 224))
    images = np.kron(coarse, np.ones((1, 1, 16, 16))) + 0.3 * noise
    return images.astype(np.float32), rng.dirichlet(np.full(1000, 0.01), size=2).astype(np.float32)


def is_fixed(name: str, tokenizer: str) -> bool:
    """Whether a released tensor is not trained: random features, and the sinusoid positions of T2T."""
    leaf = name.rsplit(".", 1)[-1]
    return leaf == "w" or (leaf == "pos_embed" and tokenizer == "t2t")


def _tensor(name: str, shape: tuple[int, ...], tokenizer: str) -> np.ndarray:
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "pos_embed" and tokenizer == "t2t":
        return sinusoid_positions(*shape[1:])
    normal = np.random.default_rng([zlib.crc32(name.encode()), 2021]).standard_normal(shape)
    if leaf == "w":
        value = normal * np.sqrt(0.5)
    elif leaf == "bias":
        value = 0.1 * normal
    elif leaf in ("cls_token", "pos_embed"):
        value = 0.2 * normal
    elif len(shape) == 1:
        value = 1 + 0.1 * normal
    else:
        value = normal / np.sqrt(np.prod(shape[1:]))
    return value.astype(np.float32)
