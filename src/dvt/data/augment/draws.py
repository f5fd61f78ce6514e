"""Random numbers as a pure function of (seed, epoch, image index) by splitmix64, a counter-based generator: nothing
depends on batch size, threads or earlier images. And even draws of images per class."""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_GAMMA = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF


class Purpose(IntEnum):
    """A part of the key of random numbers, so that no two purposes share a stream."""

    SUBSET = 0
    CALIBRATION = 1
    CALIBRATION_AUGMENTATION = 2
    ORDER = 3
    AUGMENTATION = 4
    MIXING = 5
    ERASING = 6


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def stream_key(*parts: int) -> int:
    """One 64-bit key for a sequence of integers, such as (seed, purpose, epoch); negative ones are fine."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = _mix(key + np.uint64((part + _GAMMA) & _MASK))
    return int(key[0])


def uniforms(key: int, indices: NDArray[np.integer], count: int) -> NDArray[np.float64]:
    """(n, count) numbers in [0, 1): row i depends on `key` and indices[i] only."""
    start = _mix(np.uint64(key) + _mix(np.asarray(indices).astype(np.uint64) + np.uint64(_GAMMA)))  # (n,)
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GAMMA)
    return (_mix(start[:, None] + steps) >> np.uint64(11)) * 2.0**-53


def even_subset(labels: NDArray[np.integer], count: int, key: int) -> NDArray[np.int64]:
    """Ascending indices of min(count, n) images of which `labels` (n,) are the classes: the same number per class as
    far as they are large enough; where `count` does not divide evenly, random classes get one more."""
    rng = np.random.default_rng(key)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    sizes = np.array([len(indices) for indices in members])
    count = min(count, int(sizes.sum()))
    quota = np.zeros_like(sizes)
    while missing := count - int(quota.sum()):
        open_classes = np.flatnonzero(quota < sizes)
        share = missing // len(open_classes)
        if share == 0:
            quota[rng.permutation(open_classes)[:missing]] += 1
        else:
            quota[open_classes] = np.minimum(quota[open_classes] + share, sizes[open_classes])
    chosen = [rng.permutation(indices)[:size] for indices, size in zip(members, quota, strict=True)]
    return np.sort(np.concatenate([*chosen, np.zeros(0, np.int64)]))
