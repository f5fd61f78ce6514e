"""Makes the images of batches ahead of time, in threads or processes.

A batch is divided among all workers, so that two batches in the making keep any number of workers busy. Workers import
neither MindSpore nor the list of files: what they need travels with each task.

Legend: n images of a batch, C channels, S side of the model input.
"""

import math
import os
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from dvt.data.processes import Processes, attached
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
        make: Called as make(out, *parts) with a part of the batch, out (k, C, S, S), and the same part of each of
            `columns`; fills `out`. Returns the images that it could not read, by their place in the part, if any.
            Must be picklable: a function of a module, or a `functools.partial` of one.
        columns: What it needs for each image, (n,) each; picklable.
        shape: (C, S, S).
        chunk: Fewest images that are worth a part of their own: 1 where each takes milliseconds, more for cheap ones;
            None: so cheap that all are made at once by whoever asks for the batch.
    """

    make: Callable[..., BadImages | None]
    columns: tuple[Sequence[Any], ...]
    shape: tuple[int, int, int]
    chunk: int | None

    def __len__(self) -> int:
        return len(self.columns[0])


class Workers:
    """Threads or processes, which start with the first batch and end with this object.

    Args:
        count: Threads or processes; None: the cores of this process, at most 8, shared by the ranks of this machine.
        kind: "process", "thread", or "auto": processes for passes of more than `PROCESS_IMAGES` images.
    """

    def __init__(self, count: int | None, kind: WorkerType) -> None:
        self._count, self._kind = count, kind
        self._pools: dict[str, ThreadPoolExecutor | Processes] = {}
        weakref.finalize(self, _shut_down, self._pools)

    def count(self, ranks: int = 1) -> int:
        """Threads or processes of this rank, if `ranks` share the work."""
        return self._count or max(1, min(MAX_WORKERS, available_cores() // local_ranks(ranks)))

    def describe(self) -> str:
        """Half a sentence for the log."""
        kind = {
            "auto": f"processes where a pass has more than {PROCESS_IMAGES:,} images, else threads",
            "process": "processes",
            "thread": "threads",
        }[self._kind]
        return f"workers per rank: {self._count or f'at most {self.count()}'} ({kind})"

    def batches(
        self, tasks: Iterable[Task], images: int, ranks: int = 1
    ) -> Iterator[tuple[NDArray[np.float32], BadImages]]:
        """The batches of `tasks` in order, each started before the one before is handed out.

        Args:
            tasks: One per batch; taken one by one.
            images: Images of the whole pass.
            ranks: Processes that share the work, of which this is one.

        Yields:
            Per task an array (n, C, S, S), which belongs to the receiver, and the images that could not be read, whose
            values in it are arbitrary.

        Raises:
            DataError: Worker processes died, or have not enough shared memory.
        """
        kind = self._kind
        if kind == "auto":
            kind = "process" if images > PROCESS_IMAGES else "thread"
        in_progress: deque[_Batch] = deque()
        try:
            for task in tasks:
                in_progress.append(self._start(task, kind, self.count(ranks)))
                if len(in_progress) > STARTED_AHEAD:
                    yield in_progress.popleft().result()
            while in_progress:
                yield in_progress.popleft().result()
        except BrokenProcessPool as error:
            if pool := self._pools.pop("process", None):
                pool.shutdown(wait=False, cancel_futures=True)
            raise DataError(
                "a worker process ended unexpectedly; unless it says why above, the system may have ended it for lack"
                " of memory: lower data.workers, or use data.worker_type thread"
            ) from error
        finally:
            for batch in in_progress:
                batch.end()

    def one_batch(self, task: Task) -> tuple[NDArray[np.float32], BadImages]:
        """A single batch of any size, made in threads; see `batches`."""
        return self._start(task, "thread", self.count()).result()

    def _start(self, task: Task, kind: str, count: int) -> "_Batch":
        """Hands out the parts of a batch."""
        shape = (len(task), *task.shape)
        if task.chunk is None or (kind == "thread" and count == 1):
            batch = _Batch(shape, np.empty(shape, np.float32))
            batch.bad = task.make(batch.memory, *task.columns) or []
            return batch
        if kind not in self._pools:
            made = Processes(count) if kind == "process" else ThreadPoolExecutor(count, thread_name_prefix="dvt-data")
            self._pools.setdefault(kind, made)
        pool = self._pools[kind]
        if kind == "process":
            batch = _Batch(shape, pool.take_memory(4 * math.prod(shape)), pool)
            target = batch.memory.name
        else:
            batch = _Batch(shape, np.empty(shape, np.float32))
            target = batch.memory
        chunk = max(task.chunk, math.ceil(len(task) / (PARTS_PER_WORKER * count)))
        try:
            for start in range(0, len(task), chunk):
                columns = tuple(column[start : start + chunk] for column in task.columns)
                batch.parts.append(pool.submit(_make_part, target, shape, start, task.make, columns))
        except BaseException:
            batch.end()
            raise
        return batch


@dataclass
class _Batch:
    """A batch of which parts may still be in the making."""

    shape: tuple[int, ...]  # (n, C, S, S)
    memory: NDArray[np.float32] | SharedMemory  # the array, or the memory that processes make it in
    pool: Processes | None = None  # lends the shared memory
    parts: list[Future] = field(default_factory=list)
    bad: BadImages = field(default_factory=list)

    def result(self) -> tuple[NDArray[np.float32], BadImages]:
        """The complete array, a copy where it was made in shared memory; and the images that could not be read."""
        try:
            for part in self.parts:
                self.bad += part.result()
            if self.pool is None:
                return self.memory, self.bad
            return np.ndarray(self.shape, np.float32, self.memory.buf).copy(), self.bad
        finally:
            self.end()

    def end(self) -> None:
        """Returns when no worker writes into the batch any more, and gives shared memory back."""
        for part in self.parts:
            part.cancel()
        wait(self.parts)
        if self.pool is not None:
            self.pool.give_back(self.memory)


def _make_part(
    target: NDArray[np.float32] | str, shape: tuple[int, ...], start: int, make: Callable, columns: tuple
) -> BadImages:
    """Makes a part of a batch in place: in an array, or in the shared memory of that name."""
    out = np.ndarray(shape, np.float32, attached(target).buf) if isinstance(target, str) else target
    bad = make(out[start : start + len(columns[0])], *columns)
    return [(start + place, reason) for place, reason in bad or ()]


def _shut_down(pools: dict[str, ThreadPoolExecutor | Processes]) -> None:
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
