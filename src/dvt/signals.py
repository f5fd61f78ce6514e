"""What asks a command to stop: Ctrl-C, SIGTERM (schedulers), SIGHUP (a terminal that was closed).

Imports nothing that takes time, so that an entry script can call `interrupt_on_signals` before all that does.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
"""Exit code of a command that was asked to stop; one for all signals, as MindSpore turns a SIGINT into a SIGTERM."""
GRACE = 5.0
"""Seconds that a command has to end after such a signal."""


def stop_signals() -> tuple[signal.Signals, ...]:
    """The signals that ask to stop; without SIGHUP where it is ignored, as `nohup` arranges."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM) if ignored else (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def stop_signals_handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """While entered, `handler` takes them. Does nothing outside the main thread, where Python takes no signals."""
    before = {}
    with contextlib.suppress(ValueError):  # not the main thread
        before = {number: signal.signal(number, handler) for number in stop_signals()}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def interrupt_on_signals() -> None:
    """From now on they raise KeyboardInterrupt, and end the process itself where that is lost for `GRACE` seconds.

    MindSpore calls Python from C++, which may drop the exception or turn it into one of its own (`stop_was_asked`
    tells). While something is imported the process ends at once. What is ignored stays ignored. Does nothing outside
    the main thread.
    """
    with contextlib.suppress(ValueError):  # not the main thread
        for number in stop_signals():
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _interrupt)


def stop_was_asked() -> bool:
    """Whether a signal raised KeyboardInterrupt since the last `stop_done`."""
    return bool(_deadlines)


def stop_done() -> None:
    """The command has ended, for whatever reason: it need not be ended any more."""
    while _deadlines:
        _deadlines.pop().cancel()


_deadlines: list[threading.Timer] = []  # of the process, as signals are


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _end_process()
        frame = frame.f_back
    deadline = threading.Timer(GRACE, _end_process)
    deadline.daemon = True
    _deadlines.append(deadline)
    deadline.start()
    raise KeyboardInterrupt


def _end_process() -> NoReturn:
    with contextlib.suppress(OSError):  # the terminal may be closed
        os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)
