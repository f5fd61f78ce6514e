"""All ranks must run the same code on the same data and from the same weights, and give up together; otherwise they
would hang, or go on with wrong results. Each function raises its error on all ranks."""

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from dvt.cluster.preflight import FINGERPRINTS, fingerprint
from dvt.cluster.ranks import Ranks
from dvt.config.sections import RunConfig
from dvt.data import Splits
from dvt.errors import ConfigError, DataError

_MESSAGE_BYTES = 1000


class SharedDataError(DataError):
    """One that all ranks raise at the same place, so that they can still save and leave together."""


@contextmanager
def errors_shared(ranks: Ranks) -> Iterator[None]:
    """Around what each rank does alone: a DataError of one rank becomes a SharedDataError of all, with its message, cut
    to what fits. All ranks must come here equally often."""
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


def require_same_code(config: RunConfig, ranks: Ranks) -> None:
    """Raises ConfigError unless source files, configuration and versions are the same."""
    remedy = (
        "bring the source files of dvt, the configuration, Python, MindSpore and NumPy to the same state on every "
        "machine (compare `git rev-parse HEAD`, `git status` and `pip list`), then start all of them again"
    )
    _require_same(fingerprint(config), ranks, "runs other code, another configuration or other versions", remedy)


def require_same_data(splits: Splits, ranks: Ranks) -> None:
    """Raises ConfigError unless the classes and the names and labels of their images are the same."""
    digest = zlib.crc32(repr((splits.class_names, splits.identity())).encode())
    remedy = f"copy {splits.preprocessing['dataset']} whole to every machine (data.path)"
    _require_same(digest, ranks, "has other data", remedy)


def require_same_weights(weights: Mapping[str, np.ndarray], ranks: Ranks) -> None:
    """Raises ConfigError unless the weights, or whatever else the mapping holds, are the same."""
    digest = 0
    if ranks.world_size > 1:
        for name in sorted(weights):
            digest = zlib.crc32(np.ascontiguousarray(weights[name]), digest)
    remedy = "copy train.init_checkpoint, or the state of the run to be resumed, to every machine"
    _require_same(digest, ranks, "has other weights", remedy)


def _require_same(digest: int, ranks: Ranks, what: str, remedy: str) -> None:
    """Lists the ranks whose digest differs from that of most, or of as many, from that of the lowest."""
    digests = [int(value) for value in ranks.gather(np.array(digest % FINGERPRINTS))]
    usual = Counter(digests).most_common(1)[0][0]
    others = [f"{rank} ({value:06x})" for rank, value in enumerate(digests) if value != usual]
    if others:
        most = f"the other {len(digests) - len(others)} of {len(digests)} ranks ({usual:06x})"
        raise ConfigError(f"rank {', '.join(others)} {what} than {most}; {remedy}")
