"""Worker processes and threads that prepare the images of batches, and the memory that batches are made in.

Processes are those of `concurrent.futures`, started afresh ("spawn") with the first batch and kept for all epochs.
MindSpore's own (`GeneratorDataset(python_multiprocessing=True)`) were tried first. They are forked anew for every pass,
from a process that by then holds a device and many threads; each makes whole batches and keeps four of them in shared
memory, 300 MB per worker at 128 x 3 x 224 x 224; and they know no epochs, of which a pass may have several. Here a
batch is divided among all workers, so that a handful of batches in shared memory is enough whatever the number of
workers, and workers import neither MindSpore nor the list of files: what they need travels with each task.

Legend: n images of a batch, C channels, S side of the model input.
"""

import functools
import math
import multiprocessing
import os
import signal
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.shared_memory import SharedMemory
from types import FrameType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dvt.errors import DataError

MAX_WORKERS = 8
CARDS_PER_MACHINE = 8
"""Ranks that are taken to share a machine where the launcher does not say how many do."""
PROCESS_IMAGES = 2000
"""Shortest pass for which worker processes are started by themselves: they take about a second to start."""
AHEAD = 1
"""Batches begun before the one before is handed out, so that workers never wait for whoever takes the batches."""
PARTS_PER_WORKER = 4
"""Tasks per worker and batch: few enough that handing them out costs little, enough to keep all workers busy."""
GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What terminals and schedulers send to all processes of a run."""
TERM_SECONDS = 10.0
"""How long a worker still serves its parent after SIGTERM."""
SHARED_FOLDER = "/dev/shm"

BadImages = Sequence[tuple[int, str]]
"""Images that cannot be read: place in the batch or in a part of it, ascending, and why, with the name of the file."""
WorkerType = Literal["auto", "process", "thread"]
Segment = SharedMemory | NDArray[np.uint8]


@dataclass(frozen=True)
class Task:
    """The images of one batch, to be made in parts.

    Args:
        make: Called as make(out, *parts) with a part of the batch, out (k, C, S, S), and the same part of each of
            `columns`; fills `out`. Returns the images that it could not, by their place in the part; None: it could.
            Must be picklable: a function of a module, or a `functools.partial` of one.
        columns: What it needs for each image, (n,) each; picklable.
        shape: (C, S, S).
        chunk: Images worth a task of their own: 1 where each takes milliseconds, more for cheap ones; None: so cheap
            that all are made at once by whoever asks for the batch.
        mend: Called as mend(out, bad) by whoever asks for the batch, if some images of it could not be made; None: they
            are an error.
    """

    make: Callable[..., BadImages | None]
    columns: tuple[Sequence[Any], ...]
    shape: tuple[int, int, int]
    chunk: int | None
    mend: Callable[[NDArray[np.float32], BadImages], None] | None = None

    def __len__(self) -> int:
        return len(self.columns[0])

    def part(self, start: int, stop: int) -> tuple[Sequence[Any], ...]:
        """The columns of some of the images."""
        return tuple(column[start:stop] for column in self.columns)


class Workers:
    """Makes the batches of passes; its threads or processes start with the first one and end with this object.

    Worker processes end, too, when their parent is killed, and leave `GROUP_SIGNALS` to it. They import
    the main module of the run, which therefore must do its work below `if __name__ == "__main__"`.

    Args:
        count: Processes or threads; None: the cores of this process, at most 8, shared by the ranks of this machine.
        kind: "process", "thread", or "auto": processes for passes of more than `PROCESS_IMAGES` images.
    """

    def __init__(self, count: int | None, kind: WorkerType) -> None:
        self._count, self._kind = count, kind
        self._executors: dict[str, Executor] = {}
        self._buffers = {"thread": _Buffers(shared=False), "process": _Buffers(shared=True)}
        weakref.finalize(self, _shut_down, self._executors)

    def count(self, ranks: int = 1) -> int:
        """Processes or threads of this rank, if `ranks` share the work."""
        return self._count or max(1, min(MAX_WORKERS, available_cores() // local_ranks(ranks)))

    def describe(self) -> str:
        """Half a sentence for the log."""
        kind = {
            "auto": f"processes where a pass has more than {PROCESS_IMAGES:,} images, else threads",
            "process": "processes",
            "thread": "threads",
        }[self._kind]
        number = self._count or f"at most {self.count()}"
        return f"workers per rank: {number} ({kind})"

    def batches(self, tasks: Iterable[Task], images: int, ranks: int = 1) -> Iterator[NDArray[np.float32]]:
        """The batches of `tasks` in order, each begun before the one before is handed out.

        The memory of a batch is used again once nothing refers to it any more.

        Args:
            tasks: One per batch; taken one by one.
            images: Images of the whole pass.
            ranks: Processes that share the work, of which this is one.

        Yields:
            (n, C, S, S) per task.

        Raises:
            DataError: A bad image (the first one in the order of the batch), or workers that died.
        """
        kind = self._kind
        if kind == "auto":
            kind = "process" if images > PROCESS_IMAGES else "thread"
        begun: deque[_Batch] = deque()
        try:
            for task in tasks:
                place = self._buffers["thread" if task.chunk is None else kind].take((len(task), *task.shape))
                begun.append(self._begin(task, place.array(), place.reference, kind, ranks))
                if len(begun) > AHEAD:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        except BrokenProcessPool as error:
            self._executors.pop("process", None)
            raise DataError(
                "a worker process ended unexpectedly; unless it says why above, the system may have ended it for lack"
                " of memory: lower data.workers, or use data.worker_type thread"
            ) from error
        finally:
            for batch in begun:
                batch.abandon()

    def one_batch(self, task: Task) -> NDArray[np.float32]:
        """A single batch of any size, made in threads and in memory of its own; see `batches`."""
        out = np.empty((len(task), *task.shape), np.float32)
        return self._begin(task, out, None, "thread", ranks=1).result()

    def _begin(self, task: Task, out: NDArray[np.float32], shared: str | None, kind: str, ranks: int) -> "_Batch":
        """Hands out the parts of a batch; `shared` is the name of its memory if other processes can attach it."""
        count = self.count(ranks)
        batch = _Batch(out, task.mend)
        if task.chunk is None or (kind == "thread" and count == 1):
            batch.bad = list(task.make(out, *task.columns) or ())
            return batch
        if kind not in self._executors:
            with _signals_held():
                self._executors[kind] = _process_pool(count) if kind == "process" else _thread_pool(count)
        chunk = max(task.chunk, math.ceil(len(task) / (PARTS_PER_WORKER * count)))
        target = out if shared is None else shared
        try:
            with _signals_held():
                for start in range(0, len(task), chunk):
                    columns = task.part(start, start + chunk)
                    part = self._executors[kind].submit(_fill, target, out.shape, start, task.make, columns)
                    batch.parts.append(part)
        except BaseException:
            batch.abandon()
            raise
        return batch


@dataclass
class _Batch:
    """A batch of which parts may still be in the making."""

    out: NDArray[np.float32]
    mend: Callable[[NDArray[np.float32], BadImages], None] | None
    parts: list[Future] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)

    def result(self) -> NDArray[np.float32]:
        try:
            for part in self.parts:
                self.bad += part.result()
        except BaseException:
            self.abandon()
            raise
        if self.bad and self.mend is None:
            raise DataError(self.bad[0][1])
        if self.bad:
            self.mend(self.out, self.bad)
        return self.out

    def abandon(self) -> None:
        """Returns when no worker writes into the batch any more."""
        for part in self.parts:
            part.cancel()
        wait(self.parts)


def _thread_pool(count: int) -> Executor:
    """PIL decodes and resizes without holding Python's lock."""
    return ThreadPoolExecutor(count, thread_name_prefix="dvt-data")


def _process_pool(count: int) -> Executor:
    """Not forked: a fork of a process with a device and many threads may hang, and shares all of its memory."""
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_start_worker)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Workers that start meanwhile hold back these signals until they are ready for them. So does, for good, the
    process with which Python keeps track of shared memory, if it starts now; by itself it would die of a SIGHUP."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _shut_down(executors: dict[str, Executor]) -> None:
    for executor in executors.values():
        executor.shutdown(wait=False, cancel_futures=True)


def _fill(
    reference: NDArray[np.float32] | str,
    shape: tuple[int, ...],
    start: int,
    make: Callable[..., BadImages | None],
    columns: tuple,
) -> BadImages:
    """Makes a part of a batch in place: of an array, or of the shared memory of that name."""
    out = reference
    if isinstance(out, str):
        out = np.ndarray(shape, np.float32, buffer=_attached(out).buf)
    bad = make(out[start : start + len(columns[0])], *columns)
    return [(start + place, reason) for place, reason in bad or ()]


@functools.lru_cache(maxsize=32)
def _attached(name: str) -> SharedMemory:
    return SharedMemory(name)


def _start_worker() -> None:
    """Signals to the whole process group are the parent's to handle; and a worker must not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_later(number: int, frame: FrameType | None) -> None:
    # A scheduler stops all processes of a job at once; the parent still finishes its step and saves the run.
    timer = threading.Timer(TERM_SECONDS, os._exit, [1])
    timer.daemon = True
    timer.start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


class _Buffers:
    """Memory for batches, used again and again: to get 77 MB from the system costs as much as to fill them.

    Args:
        shared: Whether other processes can attach it.
    """

    def __init__(self, shared: bool) -> None:
        self._shared = shared
        self._free: list[Segment] = []
        self._made: list[SharedMemory] = []
        weakref.finalize(self, _unlink, self._made)

    def take(self, shape: tuple[int, ...]) -> "_Place":
        """Room for float32 numbers of a shape, until the array made of it is gone."""
        size = 4 * math.prod(shape)
        for i, segment in enumerate(self._free):
            if (segment.size if isinstance(segment, SharedMemory) else segment.nbytes) >= size:
                return _Place(self._free.pop(i), shape, self._free)
        return _Place(self._new(size), shape, self._free)

    def _new(self, size: int) -> Segment:
        if not self._shared:
            return np.empty(size, np.uint8)
        if os.path.isdir(SHARED_FOLDER):  # else writing beyond what is there would end the worker without a word
            status = os.statvfs(SHARED_FOLDER)
            free = status.f_bavail * status.f_frsize
            if free < size:
                raise DataError(
                    f"a batch takes {size / 2**20:.0f} MiB of shared memory, but {SHARED_FOLDER} has"
                    f" {free / 2**20:.0f} MiB left; enlarge it (containers: --shm-size), or use data.worker_type thread"
                )
        with _signals_held():
            segment = SharedMemory(create=True, size=size)
        self._made.append(segment)
        return segment


@dataclass(eq=False)
class _Place:
    """Memory lent to one array: the array and all of its views keep this object, which gives it back at their end."""

    segment: Segment
    shape: tuple[int, ...]
    free: list[Segment]
    __array_interface__: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        # An address rather than a buffer, since shared memory cannot be closed while a buffer of it is exported.
        memory = self.segment.buf if isinstance(self.segment, SharedMemory) else self.segment
        address = np.frombuffer(memory, np.uint8).ctypes.data
        self.__array_interface__ = {"version": 3, "shape": self.shape, "typestr": "<f4", "data": (address, False)}

    @property
    def reference(self) -> str | None:
        """The name under which other processes attach the memory."""
        return self.segment.name if isinstance(self.segment, SharedMemory) else None

    def array(self) -> NDArray[np.float32]:
        """The array; its values are whatever was there before."""
        return np.asarray(self)

    def __del__(self) -> None:
        self.free.append(self.segment)


def _unlink(segments: list[SharedMemory]) -> None:
    for segment in segments:
        segment.unlink()


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
