"""Ctrl-C, SIGTERM and SIGHUP end a run between two steps, never within one."""

import contextlib
import logging
from types import FrameType

from dvt.signals import stop_signals_handled

log = logging.getLogger(__name__)


class StopBetweenSteps(contextlib.ExitStack):
    """While entered, signals that ask to stop are remembered: `requested` says whether one has come.

    The step under way is finished, so that the weights, the optimizer and the counters that are saved belong together.
    While MindSpore runs a compiled graph it handles SIGINT itself, by sending the process a SIGTERM.
    """

    def __init__(self) -> None:
        super().__init__()
        self.requested = False

    def __enter__(self) -> "StopBetweenSteps":
        self.enter_context(stop_signals_handled(self._remember))
        return self

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            log.warning("stopping after this step")
        self.requested = True
