"""All ranks must train on the same data and from the same weights, and give up together; otherwise they would hang, or
go on with wrong results."""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from dvt.cluster.ranks import Ranks
from dvt.data import Splits
from dvt.errors import ConfigError, DataError

_DIGESTS = 2**24  # a float32 holds every whole number below this exactly
_MESSAGE_BYTES = 1000


class SharedDataError(DataError):
    """One that all ranks raise at the same place, so that they can still save and leave together."""


@contextmanager
def errors_shared(ranks: Ranks) -> Iterator[None]:
    """Around what each rank does alone: a DataError of one rank becomes a SharedDataError of all, with its message.

    All ranks must come here equally often. A rank without an error of its own gets that of the first rank that has one,
    cut to what fits into a message.
    """
    error = None
    try:
        yield
    except DataError as raised:
        error = raised
    message = np.frombuffer(str(error or "").encode()[:_MESSAGE_BYTES].ljust(_MESSAGE_BYTES, b"\0"), np.uint8)
    for received in ranks.gather(message):
        if received.any():
            text = received.astype(np.uint8).tobytes().rstrip(b"\0").decode(errors="ignore")
            raise SharedDataError(text if error is None else str(error)) from error


def require_same_data(splits: Splits, ranks: Ranks) -> None:
    """Raises ConfigError on all ranks unless the classes, labels and numbers of their images are the same."""
    parts = [repr(splits.class_names).encode(), *(splits.labels(split).tobytes() for split in splits.sizes)]
    remedy = f"copy {splits.preprocessing['dataset']} whole to every machine (data.path)"
    _require_same(parts, ranks, "other data", remedy)


def require_same_weights(weights: Mapping[str, np.ndarray], ranks: Ranks) -> None:
    """Raises ConfigError on all ranks unless their weights, or whatever else the mapping holds, are the same."""
    parts = (np.ascontiguousarray(weights[name]).tobytes() for name in sorted(weights))
    remedy = "copy train.init_checkpoint, or the state of the run to be resumed, to every machine"
    _require_same(parts, ranks, "other weights", remedy)


def _require_same(parts: Iterable[bytes], ranks: Ranks, what: str, remedy: str) -> None:
    if ranks.world_size == 1:
        return
    digest = 0
    for part in parts:
        digest = zlib.crc32(part, digest)
    digests = ranks.gather(np.array(digest % _DIGESTS)).astype(int).tolist()
    others = ranks_that_differ(digests)
    if others:
        raise ConfigError(f"rank {', '.join(map(str, others))} of {len(digests)} has {what} than rank 0; {remedy}")


def ranks_that_differ(digests: Sequence[int]) -> list[int]:
    """The ranks whose digest is not that of rank 0."""
    return [rank for rank, digest in enumerate(digests) if digest != digests[0]]
