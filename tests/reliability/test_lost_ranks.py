"""Data-parallel jobs whose launcher or a rank of which is killed: all processes end, and what was saved loads."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from faults import arguments, make_pictures

from dvt.checkpoint import read_checkpoint
from processes import processes_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def launched(folder: Path, *train_arguments: str) -> Iterator[subprocess.Popen]:
    """A job of two CPU workers; whatever is left of it in the end is killed."""
    command = [sys.executable, "-m", "dvt.cli.launch", "--device_num", "2", "--", *train_arguments]
    with (folder / "said").open("w") as said:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=said)
    try:
        yield process
    finally:
        for left in processes_of(folder):
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        process.wait()


def wait_for_rows(run: Path, rows: int, process: subprocess.Popen) -> None:
    end = time.monotonic() + 180
    while not (run / "metrics.csv").exists() or len((run / "metrics.csv").read_text().splitlines()) <= rows:
        assert process.poll() is None and time.monotonic() < end, (run.parent / "said").read_text()
        time.sleep(0.05)


def test_killed_launcher_and_killed_rank(tmp_path: Path) -> None:
    """The launcher first: its workers save and end. The job resumed from there then loses rank 1."""
    run = tmp_path / "run"
    endless = arguments(make_pictures(tmp_path / "pictures"), run, "--train.epochs=100000", "--train.batch_size=2")
    with launched(tmp_path, *endless) as launcher:
        wait_for_rows(run, 2, launcher)
        launcher.send_signal(signal.SIGKILL)
        end = time.monotonic() + 60
        while processes_of(tmp_path) and time.monotonic() < end:
            time.sleep(0.1)
        assert processes_of(tmp_path) == []
    (logs,) = (run / "logs").iterdir()
    assert "The launcher was killed; stopping the workers" in (logs / "msrun.log").read_text()
    assert "--resume goes on" in (logs / "worker_0.log").read_text()
    saved = read_checkpoint(run / "state.ckpt").metadata["step"]
    rows = len((run / "metrics.csv").read_text().splitlines())

    with launched(tmp_path, *endless, "--resume") as launcher:
        wait_for_rows(run, rows + 1, launcher)
        workers = [each for each in processes_of(tmp_path) if each.environ().get("RANK_ID") == "1"]
        next(each for each in workers if each.environ().get("MS_ROLE") == "MS_WORKER").kill()
        assert launcher.wait(60) == 1
        assert processes_of(tmp_path) == []
    said = (tmp_path / "said").read_text()
    assert f"resuming after step {saved} of" in said
    assert re.search(r"Earliest error: rank 1 at .*\n    ended by signal 9 \(SIGKILL\)", said)
    assert read_checkpoint(run / "state.ckpt").metadata["step"] > saved
