"""Makes the images of batches ahead of time, in threads or processes.

A batch is divided among all workers, so that two batches in the making keep any number of workers busy. Workers import
neither MindSpore nor the list of files: what they need travels with each task, and 8-bit pixels travel back, a quarter
of the bytes of the model inputs that are made of them here.

Legend: n images of a batch, k of a part of it, C channels, S side of the model input.
"""

import math
import os
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from dvt.data.processes import Processes
from dvt.errors import DataError

MAX_WORKERS = 8
CARDS_PER_MACHINE = 8
"""Ranks that are taken to share a machine where the launcher does not say how many do."""
PROCESS_IMAGES = 2000
"""Shortest pass for which "auto" starts processes: they take about a second to start."""
STARTED_AHEAD = 1
"""Batches started before the one before is complete, so that workers never wait."""
READY_AHEAD = 2
"""Complete batches that wait for whoever takes them."""
PARTS_PER_WORKER = 4
"""Parts per worker and batch: few enough that handing them out costs little, enough to keep all workers busy."""

BadImages = list[tuple[int, str]]
"""Images that cannot be read: place in the batch or in a part of it, ascending, and why, with the name of the file."""
WorkerType = Literal["auto", "process", "thread"]
T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """The images of one batch, to be made in parts.

    Args:
        make: Called with a part of each of `columns`; returns what stands for k images, and those it could not read, by
            their place in the part. Must be picklable: a function of a module, or a `functools.partial` of one.
        columns: What it needs for each image, (n,) each; picklable.
        finish: Makes model inputs (k, C, S, S) of what `make` returns; called in this process.
        shape: (C, S, S).
        chunk: Fewest images that are worth a part of their own: 1 where each takes milliseconds, more for cheap ones;
            None: so cheap that all are made at once by whoever asks for the batch.
    """

    make: Callable[..., tuple[NDArray, BadImages]]
    columns: tuple[Sequence[Any], ...]
    finish: Callable[[NDArray], NDArray[np.float32]]
    shape: tuple[int, int, int]
    chunk: int | None

    def __len__(self) -> int:
        return len(self.columns[0])

    def joined(self, parts: Iterable[tuple[NDArray, BadImages]]) -> tuple[NDArray[np.float32], BadImages]:
        """The batch (n, C, S, S) and its bad images, of what `make` returned for its parts in order."""
        images, bad, start = np.empty((len(self), *self.shape), np.float32), [], 0
        for made, unread in parts:
            images[start : start + len(made)] = self.finish(made)
            bad += [(start + place, reason) for place, reason in unread]
            start += len(made)
        return images, bad

    def run(self) -> tuple[NDArray[np.float32], BadImages]:
        """The same, made at once in this thread."""
        return self.joined([self.make(*self.columns)])


class Workers:
    """Threads or processes, which start with the first batch and end with this object.

    Args:
        count: Threads or processes; None: the cores of this process, at most 8, shared by the ranks of this machine.
        kind: "process", "thread", or "auto": processes for passes of more than `PROCESS_IMAGES` images.
    """

    def __init__(self, count: int | None, kind: WorkerType) -> None:
        self._count, self._kind = count, kind
        self._pools: dict[str, Executor] = {}
        weakref.finalize(self, _shut_down, self._pools)

    def count(self, ranks: int = 1) -> int:
        """Threads or processes of this rank, if `ranks` share the work."""
        return self._count or max(1, min(MAX_WORKERS, available_cores() // local_ranks(ranks)))

    def describe(self) -> str:
        """Half a sentence for the log."""
        auto = f"processes where a pass has more than {PROCESS_IMAGES:,} images, else threads"
        kind = {"auto": auto, "process": "processes", "thread": "threads"}[self._kind]
        return f"workers per rank: {self._count or f'at most {self.count()}'} ({kind})"

    def batches(
        self, tasks: Iterable[Task], images: int, ranks: int = 1
    ) -> Iterator[tuple[NDArray[np.float32], BadImages]]:
        """The batches of `tasks` in order, each started before the one before is handed out; `images` is the number of
        the whole pass, which this and other processes, `ranks` in all, share.

        Yields:
            Per task an array (n, C, S, S), which belongs to the receiver, and the images that could not be read, whose
            values in it are arbitrary.

        Raises:
            DataError: Worker processes died.
        """
        auto = "process" if images > PROCESS_IMAGES else "thread"
        kind = auto if self._kind == "auto" else self._kind
        in_progress: deque[tuple[Task, list[Future]]] = deque()
        try:
            for task in tasks:
                in_progress.append((task, self._started(task, kind, self.count(ranks))))
                if len(in_progress) > STARTED_AHEAD:
                    yield _result(*in_progress.popleft())
            while in_progress:
                yield _result(*in_progress.popleft())
        except BrokenProcessPool as error:
            if pool := self._pools.pop("process", None):
                pool.shutdown(wait=False, cancel_futures=True)
            raise DataError(
                "a worker process ended unexpectedly; unless it says why above, the system may have ended it for lack"
                " of memory: lower data.workers, or use data.worker_type thread"
            ) from error
        finally:
            for _, parts in in_progress:
                for part in parts:
                    part.cancel()

    def one_batch(self, task: Task) -> tuple[NDArray[np.float32], BadImages]:
        """A single batch of any size, made in threads; see `batches`."""
        return _result(task, self._started(task, "thread", self.count()))

    def _started(self, task: Task, kind: str, count: int) -> list[Future]:
        """Hands the parts of a batch out; none where it is made by whoever asks for it."""
        if task.chunk is None or (kind == "thread" and count == 1):
            return []
        if kind not in self._pools:
            made = Processes(count) if kind == "process" else ThreadPoolExecutor(count, thread_name_prefix="dvt-data")
            self._pools.setdefault(kind, made)
        chunk = max(task.chunk, math.ceil(len(task) / (PARTS_PER_WORKER * count)))
        starts = range(0, len(task), chunk)
        parts = (tuple(column[start : start + chunk] for column in task.columns) for start in starts)
        return [self._pools[kind].submit(task.make, *part) for part in parts]


def _result(task: Task, parts: list[Future]) -> tuple[NDArray[np.float32], BadImages]:
    return task.joined(part.result() for part in parts) if parts else task.run()


def _shut_down(pools: dict[str, Executor]) -> None:
    for pool in pools.values():
        pool.shutdown(wait=False, cancel_futures=True)


def taken_ahead(items: Generator[T, None, None], count: int = READY_AHEAD) -> Iterator[T]:
    """The same items (none of them None), of which a thread holds up to `count` ready before they are asked for."""
    with closing(items), ThreadPoolExecutor(1, thread_name_prefix="dvt-ahead") as thread:
        waiting = deque(thread.submit(next, items, None) for _ in range(count))
        try:
            while (item := waiting.popleft().result()) is not None:
                waiting.append(thread.submit(next, items, None))
                yield item
        finally:
            for each in waiting:
                each.cancel()


def available_cores() -> int:
    """Processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def local_ranks(ranks: int) -> int:
    """How many of `ranks` processes share the cores of this one.

    Launchers that say so are believed. `msrun` does not say, but notes when it has bound each process to cores of its
    own; otherwise they are taken to fill one machine of `CARDS_PER_MACHINE` after the other.
    """
    if "MSRUN_CPU_LIST" in os.environ:
        return 1
    for name in ("LOCAL_RANK_SIZE", "LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"):
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > 0:
            return int(value)
    return min(ranks, CARDS_PER_MACHINE)
