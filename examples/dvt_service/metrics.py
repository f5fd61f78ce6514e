"""What Prometheus collects from the service."""

from collections.abc import Callable, Sequence

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one service, in a registry of their own.

    Args:
        num_exits: Number of exits.
        max_pending: Most requests that may be pending.
        pending: Says how many are.
    """

    def __init__(self, num_exits: int, max_pending: int, pending: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self._taken = np.zeros(num_exits, np.int64)  # images that left at each exit
        self._images = Counter(
            "dvt_images", "Images classified, by exit and thresholds", ["exit", "setting"], registry=self.registry
        )
        share = Gauge("dvt_exit_share", "Share of all images that left at this exit", ["exit"], registry=self.registry)
        self._requests = Counter("dvt_requests", "Requests to classify, by status", ["status"], registry=self.registry)
        self._seconds = Histogram(
            "dvt_request_seconds",
            "From the headers of a request to its answer, once per image",
            ["exit"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._batch = Histogram(
            "dvt_batch_size", "Images per run of an exit", ["exit"], buckets=BATCH_SIZES, registry=self.registry
        )
        Gauge("dvt_pending", "Requests without an answer yet", registry=self.registry).set_function(pending)
        Gauge("dvt_pending_limit", "Requests that may be pending", registry=self.registry).set(max_pending)
        for index in range(num_exits):
            share.labels(_name(index)).set_function(lambda index=index: self.exit_shares()[index])

    def answered(self, exit_indices: Sequence[int], setting: str, seconds: float) -> None:
        """The images of a request left at these exits, `seconds` after it had begun."""
        for exit_index in exit_indices:
            self._taken[exit_index] += 1
            self._images.labels(_name(exit_index), setting).inc()
            self._seconds.labels(_name(exit_index)).observe(seconds)
        self._requests.labels("200").inc()

    def refused(self, status: int) -> None:
        """A request ended with an error."""
        self._requests.labels(str(status)).inc()

    def ran(self, exit_index: int, size: int) -> None:
        """An exit ran on a batch."""
        self._batch.labels(_name(exit_index)).observe(size)

    def exit_shares(self) -> np.ndarray:
        """(K,) share of the images that left at each exit; zeros before the first."""
        return self._taken / max(1, self._taken.sum())

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)


def _name(exit_index: int) -> str:
    return str(exit_index + 1)
