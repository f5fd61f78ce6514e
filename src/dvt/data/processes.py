"""Worker processes, and the shared memory in which they make batches.

The processes are those of `concurrent.futures`, started by "spawn": a fork of a process with a device and many threads
may hang. They end with their parent, however it ends, and leave the signals that end a run to it.
"""

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.shared_memory import SharedMemory
from types import FrameType
from typing import Any

from dvt.errors import DataError

GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What terminals and schedulers send to all processes of a run."""
TERM_SECONDS = 10.0
"""How long a worker still serves its parent after SIGTERM."""
SHARED_FOLDER = "/dev/shm"


class Processes:
    """A pool of worker processes, started with the first task, and memory that they share with this process.

    They import the main module of the run, which therefore must do its work below `if __name__ == "__main__"`.
    """

    def __init__(self, count: int) -> None:
        with _signals_held():
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(count, context, initializer=_start_worker)
        self._lock = threading.Lock()
        self._free: list[SharedMemory] = []
        self._all: list[SharedMemory] = []

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        """Runs a function of a module in one of the processes."""
        with _signals_held():
            return self._executor.submit(function, *arguments)

    def take_memory(self, size: int) -> SharedMemory:
        """At least `size` bytes, until `give_back`; memory of earlier batches if it is large enough.

        Raises:
            DataError: `SHARED_FOLDER` has no room for it.
        """
        with self._lock:
            while self._free:
                segment = self._free.pop()
                if segment.size >= size:
                    return segment
                self._all.remove(segment)  # of a pass with smaller batches
                segment.unlink()
            with _signals_held():
                segment = _new_segment(size)
            self._all.append(segment)
            return segment

    def give_back(self, segment: SharedMemory) -> None:
        """Nobody writes into the memory or reads it any more."""
        with self._lock:
            self._free.append(segment)

    def shutdown(self, wait: bool, cancel_futures: bool) -> None:
        """Ends the processes, as of `concurrent.futures.Executor`, and frees the memory."""
        self._executor.shutdown(wait, cancel_futures=cancel_futures)
        while self._all:
            self._all.pop().unlink()
        self._free.clear()


def _new_segment(size: int) -> SharedMemory:
    if os.path.isdir(SHARED_FOLDER):  # writing beyond what is there would end the worker without a message
        status = os.statvfs(SHARED_FOLDER)
        free = status.f_bavail * status.f_frsize
        if free < size:
            raise DataError(
                f"a batch takes {size / 2**20:.0f} MiB of shared memory, but {SHARED_FOLDER} has"
                f" {free / 2**20:.0f} MiB left; enlarge it (containers: --shm-size), or use data.worker_type thread"
            )
    return SharedMemory(create=True, size=size)


@functools.lru_cache(maxsize=8)
def attached(name: str) -> SharedMemory:
    """In a worker: the shared memory of that name."""
    return SharedMemory(name)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Processes that start meanwhile hold back these signals: workers until they are ready for them, and for good the
    process with which Python keeps track of shared memory, which would die of a SIGHUP."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """Signals to the whole process group are the parent's to handle; and a worker must not outlive its parent."""
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
