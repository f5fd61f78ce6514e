"""The loop of early exits: images that an exit is confident of leave, the others go on to the next exit.

Plain NumPy; `classifier` (MindSpore) or `dvt.deploy` run the exits. Axis letters: B, n images, K exits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dvt.early_exit.decisions import leaving
from dvt.early_exit.scores import CONFIDENCE, ExitRule
from dvt.errors import ConfigError, DataError

DEFAULT_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)

HandedOn = dict[str, np.ndarray]
"""What an exit hands on, n rows each: "features" and "relations" where they are reused, and its own "probabilities"
where the next exit averages them with its own."""

RunExit = Callable[[int, np.ndarray, Mapping[str, np.ndarray]], tuple[np.ndarray, HandedOn]]
"""Runs one exit: index, images (n, I, S, S), what came from the exit before -> probabilities (n, classes), HandedOn."""


@dataclass(frozen=True)
class Predictions:
    """What `predict` returns, in the order of the images."""

    labels: np.ndarray  # (B,) int64, most probable class
    probabilities: np.ndarray  # (B, classes) float32, softmax of the exit taken
    confidence: np.ndarray  # (B,) float32, largest probability
    exit_index: np.ndarray  # (B,) int64, 0-based

    @classmethod
    def of(cls, probabilities: np.ndarray, exit_index: np.ndarray) -> "Predictions":
        """From the probabilities (B, classes) of the exits taken, and these."""
        return cls(probabilities.argmax(axis=1), probabilities, probabilities.max(axis=1), exit_index)


def run_cascade(
    run_exit: RunExit, images: np.ndarray, thresholds: np.ndarray, num_classes: int, rule: ExitRule = CONFIDENCE
) -> Predictions:
    """Runs exit after exit, each only on the images that are left, with their rows of what the exit before handed on.

    An image leaves at the first exit whose score by `rule` is at least its threshold; the last takes all that are left
    (paper, section 3.1). `images` (B, I, S, S) and `thresholds`, float32 (K,), are checked. Raises as `leaving`.
    """
    probabilities = np.zeros((len(images), num_classes), np.float32)
    exit_index = np.zeros(len(images), np.int64)
    left = np.arange(len(images))  # indices of the images still in the cascade
    handed_on: HandedOn = {}
    for index in range(len(thresholds)):
        if len(left) == 0:
            break
        exit_probabilities, handed_on = run_exit(index, images[left], handed_on)
        leaves = leaving(index, exit_probabilities, thresholds, rule)
        probabilities[left[leaves]], exit_index[left[leaves]] = exit_probabilities[leaves], index
        if leaves.any():
            handed_on = {name: part[~leaves] for name, part in handed_on.items()}
        left = left[~leaves]
    return Predictions.of(probabilities, exit_index)


def run_all(run_exit: RunExit, images: np.ndarray, num_exits: int, num_classes: int) -> np.ndarray:
    """Every exit on every one of the checked images (B, I, S, S) -> probabilities (K, B, classes)."""
    results, handed_on = np.zeros((num_exits, len(images), num_classes), np.float32), {}
    for index in range(num_exits if len(images) else 0):
        results[index], handed_on = run_exit(index, images, handed_on)
    return results


def run_in_batches(
    run: Callable[[list[np.ndarray]], Sequence[np.ndarray]],
    inputs: Sequence[np.ndarray],
    batch_sizes: Sequence[int],
    pad: bool = True,
) -> list[np.ndarray]:
    """Outputs of `run` for all n rows of `inputs`, given to it in batches of the listed sizes only, padded to them.

    Without `pad` any number of rows may be run at once, up to the largest size.
    """
    pieces = []
    for start, stop, size in cut(len(inputs[0]), batch_sizes if pad else batch_sizes[-1:]):
        outputs = run([padded(part[start:stop], size if pad else 0) for part in inputs])
        pieces.append([output[: stop - start] for output in outputs])
    return [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in zip(*pieces, strict=True)]


def cut(count: int, sizes: Sequence[int]) -> list[tuple[int, int, int]]:
    """(start, stop, size) of the batches that `count` images are run in; `sizes` rise.

    The rest goes into the next larger size if that wastes at most a quarter of it, else the largest that it fills.
    """
    pieces, start = [], 0
    while start < count:
        left = count - start
        size = next((size for size in sizes if 0.75 * size <= left <= size), None)
        if size is None:
            size = max((size for size in sizes if size <= left), default=sizes[0])
        pieces.append((start, min(start + size, count), size))
        start += size
    return pieces


def check_batch_sizes(batch_sizes: Sequence[int]) -> list[int]:
    """The sizes in rising order, each once. Raises ConfigError if there are none, or none that can be run."""
    sizes = sorted({int(size) for size in batch_sizes})
    if not sizes or sizes[0] < 1:
        raise ConfigError(f"batch_sizes is {list(batch_sizes)}; give one or more numbers of images, 1 or larger")
    return sizes


def check_images(images: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Images as contiguous float32 (B, *shape). Raises DataError for another shape, integers, NaN and infinity."""
    images = np.asarray(images)
    if not np.issubdtype(images.dtype, np.floating):
        raise DataError(
            f"images are {images.dtype}; this model needs normalised floats, that is (pixel / 255 - mean) / std"
        )
    if images.ndim != 4 or images.shape[1:] != tuple(shape):
        raise DataError(f"images have shape {images.shape}; this model needs (B, {', '.join(map(str, shape))})")
    images = np.ascontiguousarray(images, np.float32)
    if not np.isfinite(images).all():
        bad = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
        raise DataError(f"image {bad[0]} of the batch has NaN or infinite pixels ({len(bad)} such images in all)")
    return images


def padded(part: np.ndarray, size: int) -> np.ndarray:
    """`part` with its last image repeated up to `size` images."""
    missing = size - len(part)
    return part if missing <= 0 else np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])
