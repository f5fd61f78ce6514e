"""What a training run writes for people to read, besides its log. Imports no MindSpore; only rank 0 makes records.

- `metrics.csv`: one row per epoch, rewritten whole each time, so that it is never torn and columns may be added;
- `tensorboard/`: losses and learning rate every few steps, and what is in the rows;
- `curves.png`: losses, accuracies and learning rate against the epoch, drawn when the run ends;
- `environment.json`: versions, command, device and revision of every start.

A resumed run begins at an earlier step than the last one recorded: what lies behind it is dropped, so that nothing
appears twice. Steps are counted from 1: step n is recorded once n steps are done. Exits are numbered from 0 in names
of columns, from 1 in the picture.
"""

import csv
import json
import logging
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from dvt.safe_files import explained, replacing
from dvt.training.board import Board
from dvt.training.curves import draw_curves

METRICS_FILE = "metrics.csv"
CURVES_FILE = "curves.png"
ENVIRONMENT_FILE = "environment.json"
TENSORBOARD_FOLDER = "tensorboard"

_GIT_SECONDS = 10  # a working tree on a slow network disk must not hold up the run

log = logging.getLogger(__name__)

Row = dict[str, float]


class RunRecords:
    """Metrics of one run, in its folder; use it as a context manager, or call `close`.

    Args:
        folder: The folder of the run; it must exist.
        resume_step: Steps that a resumed run has behind it; what was recorded after them is dropped. None: a new run,
            which replaces the records of an earlier one.
        title: Above the curves.

    Raises DVTError, here and in all methods but `close`, if the folder cannot be written to.
    """

    def __init__(self, folder: str | os.PathLike, resume_step: int | None = None, title: str = "") -> None:
        self.folder = Path(folder)
        self.title = title
        self._rows = [] if resume_step is None else _read_rows(self.folder / METRICS_FILE, resume_step)
        if resume_step is not None:
            self._write_rows()
        self._board: Board | None = Board(self.folder / TENSORBOARD_FOLDER, resume_step)

    @property
    def rows(self) -> list[Row]:
        """The rows of `metrics.csv`, oldest first."""
        return list(self._rows)

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
        self._rows = [earlier for earlier in self._rows if earlier["step"] < row["step"]] + [row]
        self._write_rows()
        self._to_board("epoch", int(row["step"]), {k: v for k, v in row.items() if k not in ("epoch", "step")})

    def close(self) -> None:
        """Finishes the files and draws the curves. Closing again does nothing.

        It runs while an exception is on its way too, which must not be replaced by another: a disk that is full is
        only logged.
        """
        if self._board is None:
            return
        board, self._board = self._board, None
        board.close()
        try:
            if self._rows:
                with replacing(self.folder / CURVES_FILE) as written:
                    written.write_bytes(draw_curves(self._rows, self.title))
        except OSError as error:
            log.warning("the records in %s are incomplete: %s", self.folder, error)

    def __enter__(self) -> "RunRecords":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _to_board(self, group: str, step: int, values: Mapping[str, float]) -> None:
        if self._board is None:
            raise ValueError("the records are closed")
        self._board.scalars(step, {f"{group}/{name}": value for name, value in values.items()})

    def _write_rows(self) -> None:
        columns = list(dict.fromkeys(key for row in self._rows for key in row))
        path = self.folder / METRICS_FILE
        with explained(path), replacing(path) as written, written.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows({key: _plain(value) for key, value in row.items()} for row in self._rows)


def write_environment(folder: str | os.PathLike, device: str) -> None:
    """Adds this start to `environment.json` in `folder`: what it ran with. A resumed run keeps the earlier starts.

    `device` describes the device in words. The revision is that of this package's checkout, null where it is none or
    git is missing. Raises DVTError if the folder cannot be written to.
    """
    path = Path(folder) / ENVIRONMENT_FILE
    starts = []
    if path.exists():
        try:
            starts = list(json.loads(path.read_text(encoding="utf-8"))["starts"])
        except (ValueError, KeyError, TypeError):
            log.warning("%s cannot be read and is begun anew", path)
    start = {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "folder": os.getcwd(),
        "device": device,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git": git_state(Path(__file__).resolve().parents[3]),
        "packages": _packages(),
    }
    with explained(path), replacing(path) as written:
        written.write_text(json.dumps({"starts": [*starts, start]}, indent=2) + "\n", encoding="utf-8")


def git_state(root: Path) -> dict[str, Any] | None:
    """`revision` and whether tracked files differ from it (`dirty`), if `root` is the top of a git checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True).stdout.strip()

    try:
        # An installed package may lie inside somebody else's checkout, whose revision says nothing about it.
        if Path(git("rev-parse", "--show-toplevel")) != root:
            return None
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _packages() -> dict[str, str]:
    found = {each.metadata["Name"]: each.version for each in metadata.distributions() if each.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _read_rows(path: Path, last_step: int) -> list[Row]:
    """The rows up to and including `last_step`; lines that are no numbers are dropped, and said to be."""
    if not path.exists():
        return []
    rows, broken = [], 0
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            try:
                row = {key: float(value) for key, value in line.items() if value != ""}
                step = row["step"]
            except (ValueError, TypeError, KeyError):
                broken += 1
                continue
            if step <= last_step:
                rows.append(row)
    if broken:
        log.warning("%s: %d lines are no numbers and were dropped", path, broken)
    return rows


def _plain(value: float) -> float | int:
    """Whole numbers without '.0', as people write epochs and steps."""
    return int(value) if math.isfinite(value) and value == int(value) else value
