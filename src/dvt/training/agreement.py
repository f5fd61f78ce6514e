"""That all ranks train on the same data and from the same weights; otherwise they would hang, or go on wrongly."""

import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dvt import device
from dvt.data import Splits
from dvt.errors import ConfigError

_DIGESTS = 2**24  # a float32 holds every whole number below this exactly


def require_same_data(splits: Splits) -> None:
    """Raises ConfigError on all ranks unless they have the same images, as far as classes, labels and numbers tell."""
    parts = [repr(splits.class_names).encode(), *(splits.labels(split).tobytes() for split in splits.sizes)]
    _require_same(parts, "other data", f"copy {splits.preprocessing['dataset']} whole to every machine (data.path)")


def require_same_weights(weights: Mapping[str, np.ndarray]) -> None:
    """Raises ConfigError on all ranks unless their weights, or whatever else the mapping holds, are the same."""
    parts = (np.ascontiguousarray(weights[name]).tobytes() for name in sorted(weights))
    _require_same(
        parts, "other weights", "copy train.init_checkpoint, or the state of the run to be resumed, to every machine"
    )


def _require_same(parts: Iterable[bytes], what: str, remedy: str) -> None:
    if device.world_size() == 1:
        return
    digest = 0
    for part in parts:
        digest = zlib.crc32(part, digest)
    digests = device.gather_over_ranks(np.array(digest % _DIGESTS)).astype(int).tolist()
    others = ranks_that_differ(digests)
    if others:
        raise ConfigError(f"rank {', '.join(map(str, others))} of {len(digests)} has {what} than rank 0; {remedy}")


def ranks_that_differ(digests: Sequence[int]) -> list[int]:
    """The ranks whose digest is not that of rank 0."""
    return [rank for rank, digest in enumerate(digests) if digest != digests[0]]
