"""That all ranks train on the same data and from the same weights, and give up together; otherwise they would hang, or
go on wrongly."""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from dvt import device
from dvt.data import Splits
from dvt.errors import ConfigError, DataError

_DIGESTS = 2**24  # a float32 holds every whole number below this exactly
_MESSAGE_BYTES = 1000


class SharedDataError(DataError):
    """One that all ranks raise at the same place, so that they can still save and leave together."""


@contextmanager
def errors_shared() -> Iterator[None]:
    """Around what each rank does for itself: a DataError of one becomes a SharedDataError of all, with its message.

    All ranks must come here equally often. Those without an error of their own hear that of the first rank that has
    one, as far as it fits.
    """
    error = None
    try:
        yield
    except DataError as met:
        error = met
    message = np.frombuffer(str(error or "").encode()[:_MESSAGE_BYTES].ljust(_MESSAGE_BYTES, b"\0"), np.uint8)
    for heard in device.gather_over_ranks(message):
        if heard.any():
            text = heard.astype(np.uint8).tobytes().rstrip(b"\0").decode(errors="ignore")
            raise SharedDataError(text if error is None else str(error)) from error


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
