"""Numbers for TensorBoard, written by whoever calls. Imports no MindSpore.

tensorboardX's own `SummaryWriter` leaves the writing to a thread. A full disk, or a clock set back by a month, ends
that thread, and ten numbers later the run would wait for ever for its queue to empty.
"""

import contextlib
import logging
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from dvt.safe_files import explained, write_failure

_FLUSH_SECONDS = 10  # how stale TensorBoard may be

log = logging.getLogger(__name__)


class Board:
    """A new event file in `folder`. No run depends on it: where it can no longer be written, it says so once and stops.

    Args:
        folder: Made if it is missing.
        resume_step: Steps that a resumed run has behind it; TensorBoard forgets what was recorded after them. None: a
            new run.

    Raises DVTError if the file cannot be begun.
    """

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        # Names hold the second of the start; a run stopped and resumed within it must not overwrite its own file.
        self._path = folder / f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{resume_step or 0}"
        with explained(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file: RecordWriter | None = RecordWriter(str(self._path))
        self._flushed = time.monotonic()
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if resume_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=resume_step + 1, session_log=start))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records numbers by tag at one step."""
        shown = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=shown)))

    def close(self) -> None:
        """Finishes the file. Closing again does nothing."""
        if self._file is None:
            return
        try:
            self._file.flush()
        except OSError as error:
            self._give_up(error)
        else:
            self._file.close()
            self._file = None

    def _write(self, event: Event) -> None:
        if self._file is None:
            return
        try:
            self._file.write(event.SerializeToString())
            if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
                self._file.flush()
                self._flushed = time.monotonic()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        log.warning("%s is incomplete: %s", self._path, write_failure(self._path, error))
        with contextlib.suppress(OSError):  # what is still buffered does not fit either
            self._file.close()
        self._file = None
