"""Worker processes that leave the signals which end a run to their parent, and end with it, however it ends.

They are started by "spawn": a fork of a process with a device and many threads may hang. They import the main module of
the run, which therefore must do its work below `if __name__ == "__main__"`.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection
from types import FrameType
from typing import Any

GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What terminals and schedulers send to all processes of a run."""
TERM_SECONDS = 10.0
"""How long a worker still serves its parent after SIGTERM."""


class Processes(ProcessPoolExecutor):
    """A pool of `count` worker processes, started with the first task."""

    def __init__(self, count: int) -> None:
        with _signals_held():
            super().__init__(count, multiprocessing.get_context("spawn"), initializer=_start_worker)

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future:
        """Runs a function of a module in one of the processes."""
        with _signals_held():
            return super().submit(function, *arguments)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Processes that start meanwhile hold back these signals: workers until they are ready for them, and for good the
    process with which Python keeps track of semaphores, which would die of a SIGHUP."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
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
