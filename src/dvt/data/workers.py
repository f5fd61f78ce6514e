"""Makes the images of batches ahead of time, in threads or processes, among which each batch is divided.

8-bit pixels travel back, a quarter of the bytes of the model inputs that are made of them here. Processes are started
by "spawn", as a fork of a process with many threads may hang; so the main module of a run must do its work below
`if __name__ == "__main__"`. They leave the signals that end a run to their parent, and end with it.

Legend: n images of a batch, k of a part of it, C channels, S side of the model input.
"""

import math
import multiprocessing
import os
import signal
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from dvt.errors import DataError

MAX_WORKERS = 8
CARDS_PER_MACHINE = 8  # ranks that are taken to share a machine where the launcher does not say how many do
PROCESS_IMAGES = 2000  # shortest pass for which "auto" starts processes: they take about a second to start
STARTED_AHEAD = 1  # batches started before the one before is complete, so that workers never wait
READY_AHEAD = 2  # complete batches that wait for whoever takes them
PARTS_PER_WORKER = 4  # per batch: few enough that handing them out costs little, enough to keep all workers busy
GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # sent to all processes of a run
TERM_SECONDS = 10  # how long a worker process still serves its parent after SIGTERM

BadImages = list[tuple[int, str]]
"""Images that cannot be read: place in the batch or in a part of it, ascending, and why, with the name of the file."""
Made = tuple[NDArray, BadImages]  # the values of images that cannot be read are arbitrary
WorkerType = Literal["auto", "process", "thread"]
T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """The images of one batch, to be made in parts, which `make` is called with; picklable."""

    make: Callable[..., Made]
    columns: tuple[Sequence[Any], ...]  # what `make` needs for each image, (n,) each
    finish: Callable[[NDArray], NDArray[np.float32]]  # (k, C, S, S) of what `make` returns; called in this process
    shape: tuple[int, int, int]  # (C, S, S)
    chunk: int | None  # fewest images worth a part of their own; None: cheap, made at once by who asks for the batch

    def __len__(self) -> int:
        return len(self.columns[0])

    def joined(self, parts: Iterable[Made]) -> Made:
        """The batch, float32 (n, C, S, S), of what `make` returned for its parts."""
        images, bad, start = np.empty((len(self), *self.shape), np.float32), [], 0
        for made, unread in parts:
            images[start : start + len(made)] = self.finish(made)
            bad += [(start + place, reason) for place, reason in unread]
            start += len(made)
        return images, bad

    def run(self) -> Made:
        return self.joined([self.make(*self.columns)])


class Workers:
    """Threads or processes, which start with the first batch and end with this object. `count` None takes the cores of
    this process, at most 8, shared by the ranks of this machine; `kind` "auto" takes processes for long passes."""

    def __init__(self, count: int | None, kind: WorkerType) -> None:
        self._count, self._kind = count, kind
        self._pools: dict[str, Executor] = {}
        weakref.finalize(self, _shut_down, self._pools)

    def count(self, ranks: int = 1) -> int:
        return self._count or max(1, min(MAX_WORKERS, available_cores() // local_ranks(ranks)))

    def describe(self) -> str:
        auto = f"processes where a pass has more than {PROCESS_IMAGES:,} images, else threads"
        kind = {"auto": auto, "process": "processes", "thread": "threads"}[self._kind]
        return f"workers per rank: {self._count or f'at most {self.count()}'} ({kind})"

    def batches(self, tasks: Iterable[Task], images: int, ranks: int = 1) -> Iterator[Made]:
        """The batches of `tasks` in order, each started before the one before is handed out; they belong to the
        receiver. `images` is the number of the whole pass, which this and other processes, `ranks` in all, share.
        Raises DataError if processes died."""
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
        # What is in progress is not cancelled: Python's pool (3.12) hangs if a process dies that has cancelled parts.

    def one_batch(self, task: Task) -> Made:
        """A single batch of any size, made in threads."""
        return _result(task, self._started(task, "thread", self.count()))

    def _started(self, task: Task, kind: str, count: int) -> list[Future]:
        if task.chunk is None or (kind == "thread" and count == 1):
            return []
        chunk = max(task.chunk, math.ceil(len(task) / (PARTS_PER_WORKER * count)))
        starts = range(0, len(task), chunk)
        parts = (tuple(column[start : start + chunk] for column in task.columns) for start in starts)
        if kind not in self._pools:
            # Held apart from what follows: Python starts its tracker of semaphores here, and then lets signals through.
            with _signals_held():
                self._pools[kind] = (
                    ThreadPoolExecutor(count, thread_name_prefix="dvt-data")
                    if kind == "thread"
                    else ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_start_process)
                )
        with _signals_held():
            return [self._pools[kind].submit(task.make, *part) for part in parts]


def _result(task: Task, parts: list[Future]) -> Made:
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
    return len(os.sched_getaffinity(0))


def local_ranks(ranks: int) -> int:
    """How many of `ranks` processes share the cores of this one, if the launcher says so. `msrun` does not, but notes
    when it has bound each process to cores of its own; otherwise they fill machines of `CARDS_PER_MACHINE`."""
    if "MSRUN_CPU_LIST" in os.environ:
        return 1
    for name in ("LOCAL_RANK_SIZE", "LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"):
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > 0:
            return int(value)
    return min(ranks, CARDS_PER_MACHINE)


@contextmanager
def _signals_held() -> Iterator[None]:
    """What starts meanwhile holds back these signals: worker processes until they are ready for them, threads and
    Python's tracker of semaphores, which would die of a SIGHUP, for good."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # A scheduler stops all processes of a job at once; the parent still finishes its step and saves the run.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(TERM_SECONDS))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
