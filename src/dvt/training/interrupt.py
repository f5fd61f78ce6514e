"""Ctrl-C, SIGTERM and SIGHUP end a run between two steps, never within one."""

import logging
import signal
from types import FrameType, TracebackType

from dvt.signals import stop_signals

log = logging.getLogger(__name__)


class StopBetweenSteps:
    """While entered, the signals of `dvt.signals.stop_signals` are remembered: `requested` says whether one has come.

    While MindSpore runs a compiled graph it handles SIGINT itself, by sending the process a SIGTERM.
    A step that is under way is finished, so weights, optimizer and step counter that are saved belong together. In
    another than the main thread, where Python takes no signals, this does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopBetweenSteps":
        try:
            self._before = {number: signal.signal(number, self._remember) for number in stop_signals()}
        except ValueError:  # not the main thread
            log.debug("signals are left alone outside the main thread")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            log.warning("stopping after this step")
        self.requested = True
