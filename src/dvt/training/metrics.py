"""The numbers of a training run, recorded for people to read. Imports no MindSpore; only rank 0 makes records.

- `metrics.csv`: one row per epoch, rewritten whole each time, so that it is never torn and columns may be added;
- `tensorboard/`: losses and learning rate every few steps, and what is in the rows;
- `curves.png`: losses, accuracies and learning rate against the epoch, drawn when the run ends.

A resumed run begins at an earlier step than the last one recorded. Records after that step are dropped, so that nothing
appears twice. Steps are counted from 1: step n is recorded once n steps are done. Exits are numbered from 0 in names
of columns, from 1 in the picture.
"""

import contextlib
import csv
import logging
import math
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from dvt.report.figures import LIGHT, exit_colour, png, style
from dvt.safe_files import explained, replacing, write_failure

METRICS_FILE = "metrics.csv"
CURVES_FILE = "curves.png"
TENSORBOARD_FOLDER = "tensorboard"

_FLUSH_SECONDS = 10  # how stale TensorBoard may be
_PANEL = (4.6, 3.5)  # inches
_PANELS = {
    "training loss": r"loss_exit_(\d+)",
    "validation accuracy (%)": r"val_accuracy_exit_(\d+)",
    "learning rate": "learning_rate",
}
_MARKED = 25  # the most points of a line that are marked

log = logging.getLogger(__name__)

Row = dict[str, float]


class RunRecords(contextlib.AbstractContextManager):
    """Metrics of one run, in its folder; use it as a context manager, or call `close`.

    Args:
        folder: The folder of the run; it must exist.
        resume_step: Steps that a resumed run has behind it; what was recorded after them is dropped. None: a new run,
            which replaces the records of an earlier one.
        title: Above the curves.

    Attributes:
        rows: The rows of `metrics.csv`, oldest first.

    Raises DVTError, here and in all methods but `close`, if the folder cannot be written to.
    """

    def __init__(self, folder: str | os.PathLike, resume_step: int | None = None, title: str = "") -> None:
        self.folder = Path(folder)
        self.title = title
        self.rows: list[Row] = []
        if resume_step is not None:
            self.rows = _read_rows(self.folder / METRICS_FILE, resume_step)
            self._write_rows()
        self._board: Board | None = Board(self.folder / TENSORBOARD_FOLDER, resume_step)

    def step(self, step: int, losses: Sequence[float], learning_rate: float) -> None:
        """Records the loss of each exit, (K,), and the learning rate of one step."""
        values = {f"loss_exit_{k}": float(loss) for k, loss in enumerate(losses)}
        self._to_board("step", step, values | {"learning_rate": float(learning_rate)})

    def epoch(self, values: Mapping[str, float]) -> None:
        """Adds a row: `epoch` and `step` (both done), and any numbers besides.

        The curves show `loss_exit_K`, `val_accuracy_exit_K` (percent) and `learning_rate`. Keys that earlier rows lack
        become new columns, empty above. The row of an epoch that a resumed run validates again takes the place of its
        earlier one.
        """
        row = {key: float(value) for key, value in values.items()}
        if not {"epoch", "step"} <= row.keys():
            raise ValueError(f"a row of {METRICS_FILE} needs 'epoch' and 'step'; it has {', '.join(row)}")
        self.rows = [earlier for earlier in self.rows if earlier["step"] < row["step"]] + [row]
        self._write_rows()
        self._to_board("epoch", int(row["step"]), {k: v for k, v in row.items() if k not in ("epoch", "step")})

    def close(self) -> None:
        """Finishes the files and draws the curves. Closing again does nothing.

        A full disk is only logged: the exception that may be ending the run must not be replaced by another.
        """
        if self._board is None:
            return
        board, self._board = self._board, None
        board.close()
        try:
            if self.rows:
                with replacing(self.folder / CURVES_FILE) as written:
                    written.write_bytes(draw_curves(self.rows, self.title))
        except OSError as error:
            log.warning("the records in %s are incomplete: %s", self.folder, error)

    def __exit__(self, *error: object) -> None:
        self.close()

    def _to_board(self, group: str, step: int, values: Mapping[str, float]) -> None:
        if self._board is None:
            raise ValueError("the records are closed")
        self._board.scalars(step, {f"{group}/{name}": value for name, value in values.items()})

    def _write_rows(self) -> None:
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        path = self.folder / METRICS_FILE
        with explained(path), replacing(path) as written, written.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows({key: _plain(value) for key, value in row.items()} for row in self.rows)


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


def _plain(value: float) -> float | int:
    """Whole numbers without '.0', as people write epochs and steps."""
    return int(value) if math.isfinite(value) and value == int(value) else value


class Board:
    """Numbers for TensorBoard: a new event file in `folder`.

    The run does not depend on it: where it can no longer be written, it logs that once and stops. tensorboardX's own
    `SummaryWriter` leaves the writing to a thread. A full disk, or a clock set back by a month, ends that thread, and
    ten numbers later the run would wait forever for its queue to empty.

    Args:
        folder: Made if it is missing.
        resume_step: Steps that a resumed run has behind it; TensorBoard forgets what was recorded after them. None: a
            new run.

    Raises DVTError if the file cannot be created.
    """

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        # Names hold the second of the start; a run stopped and resumed within it must not overwrite its own file.
        self._path = folder / f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{resume_step or 0}"
        with explained(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file: RecordWriter | None = RecordWriter(str(self._path))
        self._flushed = time.monotonic()
        self._write(Event(file_version="brain.Event:2"))
        if resume_step is not None:
            self._write(Event(step=resume_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records numbers by tag at one step."""
        shown = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(Event(step=step, summary=Summary(value=shown)))

    def close(self) -> None:
        """Finishes the file. Closing again does nothing."""
        if self._file is not None:
            with self._given_up_if_full():
                self._file.flush()
                self._file.close()
                self._file = None

    def _write(self, event: Event) -> None:
        if self._file is None:
            return
        event.wall_time = time.time()
        with self._given_up_if_full():
            self._file.write(event.SerializeToString())
            if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
                self._file.flush()
                self._flushed = time.monotonic()

    @contextlib.contextmanager
    def _given_up_if_full(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            log.warning("%s is incomplete: %s", self._path, write_failure(self._path, error))
            with contextlib.suppress(OSError):  # what is still buffered does not fit either
                self._file.close()
            self._file = None


def draw_curves(rows: Sequence[Mapping[str, float]], title: str = "") -> bytes:
    """PNG of the rows of `metrics.csv`; a panel is drawn for each of the three that the rows have numbers for."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    panels = {}
    for name, pattern in _PANELS.items():
        if matches := list(filter(None, (re.fullmatch(pattern, column) for column in columns))):
            panels[name] = matches
    with style(LIGHT):
        figure = Figure(figsize=(_PANEL[0] * max(len(panels), 1), _PANEL[1]), layout="constrained")
        for place, (name, matches) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(1, len(panels), place, sharex=figure.axes[0] if figure.axes else None)
            axes.set_title(name, loc="left", fontsize=11)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            for match in matches:
                _line(axes, rows, match[0], int(match[1]) if match.lastindex else None)
            if matches[0].lastindex:
                axes.legend()
            else:
                axes.set_ylim(bottom=0)
                axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:.3g}")
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        return png(figure)


def _line(axes: Axes, rows: Sequence[Mapping[str, float]], column: str, exit_index: int | None) -> None:
    """One column against the epoch; exits are named with their last value."""
    points = [(row["epoch"], row[column]) for row in rows if column in row]
    colour = LIGHT.ink if exit_index is None else exit_colour(exit_index)
    label = None if exit_index is None else f"exit {exit_index + 1}: {points[-1][1]:#.4g}"
    marker = "o" if len(points) <= _MARKED else None
    axes.plot(*zip(*points, strict=True), color=colour, marker=marker, ms=3.5, lw=1.6, label=label)
