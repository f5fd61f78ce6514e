"""The numbers of a training run, recorded for people to read. Imports no MindSpore; only rank 0 makes records.

- `metrics.csv`: one row per epoch, rewritten whole each time, so that it is never torn and columns may be added;
- `tensorboard/`: losses and learning rate every few steps, and what is in the rows.

Step n is recorded once n steps are done. Exits are numbered from 0.
"""

import contextlib
import csv
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from dvt.safe_files import explained, replacing, write_failure

METRICS_FILE = "metrics.csv"
TENSORBOARD_FOLDER = "tensorboard"

log = logging.getLogger(__name__)

Row = dict[str, float]


class RunRecords(contextlib.AbstractContextManager):
    """Metrics of one run, in its folder; use it as a context manager, or call `close`.

    The run does not depend on TensorBoard: where its file can no longer be written, that is logged once. The thread in
    which tensorboardX's `SummaryWriter` writes would end on a full disk, and the run wait forever for its queue.

    Args:
        folder: The folder of the run; it must exist.
        resume_step: Steps that a resumed run has behind it; what was recorded after them is dropped, so that nothing
            appears twice. None: a new run, which replaces the records of an earlier one.

    Raises DVTError, here and in `epoch`, if the folder cannot be written to.
    """

    def __init__(self, folder: str | os.PathLike, resume_step: int | None = None) -> None:
        self.folder = Path(folder)
        self.rows: list[Row] = []
        if resume_step is not None:
            self.rows = _read_rows(self.folder / METRICS_FILE, resume_step)
            self._write_rows()
        board = self.folder / TENSORBOARD_FOLDER
        with explained(board):
            board.mkdir(exist_ok=True)
            # Names hold the second of the start; a run stopped and resumed within it must not overwrite its own file.
            self._board: EventsWriter | None = EventsWriter(str(board / "events"), f".{resume_step or 0}")
        if resume_step is not None:  # TensorBoard forgets what was recorded after these steps
            self._to_board(Event(step=resume_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def step(self, step: int, losses: Sequence[float], learning_rate: float) -> None:
        """Records the loss of each exit, (K,), and the learning rate of one step."""
        values = {f"loss_exit_{k}": float(loss) for k, loss in enumerate(losses)}
        self._scalars("step", step, values | {"learning_rate": float(learning_rate)})

    def epoch(self, values: Mapping[str, float]) -> None:
        """Adds a row: `epoch` and `step` (both done), and any numbers besides. Keys that earlier rows lack become new
        columns. The row of an epoch that a resumed run validates again takes the place of its earlier one."""
        row = {key: float(value) for key, value in values.items()}
        self.rows = [earlier for earlier in self.rows if earlier["step"] < row["step"]] + [row]
        self._write_rows()
        self._scalars("epoch", int(row["step"]), {k: v for k, v in row.items() if k not in ("epoch", "step")})

    def close(self) -> None:
        """Finishes the files. A full disk is only logged: the exception that may be ending the run must not be replaced
        by another."""
        board, self._board = self._board, None
        try:
            if board is not None:
                board.close()
        except OSError as error:
            log.warning("the records in %s are incomplete: %s", self.folder, error)

    def __exit__(self, *error: object) -> None:
        self.close()

    def _scalars(self, group: str, step: int, values: Mapping[str, float]) -> None:
        shown = [Summary.Value(tag=f"{group}/{name}", simple_value=value) for name, value in values.items()]
        self._to_board(Event(step=step, summary=Summary(value=shown)))

    def _to_board(self, event: Event) -> None:
        if self._board is None:
            return
        event.wall_time = time.time()
        try:
            self._board.write_event(event)
            self._board.flush()  # so nothing is left to write at the end
        except OSError as error:
            path = self.folder / TENSORBOARD_FOLDER
            log.warning("%s is incomplete: %s", path, write_failure(path, error))
            self._board = None

    def _write_rows(self) -> None:
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        path = self.folder / METRICS_FILE
        with explained(path), replacing(path) as written, written.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            # Whole numbers without ".0", as people write epochs and steps.
            writer.writerows({key: repr(value).removesuffix(".0") for key, value in row.items()} for row in self.rows)


def _read_rows(path: Path, last_step: int) -> list[Row]:
    """The rows up to and including `last_step`; lines that are not numbers are dropped with a warning."""
    if not path.exists():
        return []
    rows, broken = [], 0
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            try:
                row = {key: float(value) for key, value in line.items() if value != ""}
                if row["step"] <= last_step:
                    rows.append(row)
            except (ValueError, TypeError, KeyError):
                broken += 1
    if broken:
        log.warning("%s: %d lines are not numbers and were dropped", path, broken)
    return rows
