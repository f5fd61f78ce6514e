"""Several processes at a time, of plain Python."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dvt.signals import INTERRUPTED
from experiments.processes import cores_of, run_all

ROOT = Path(__file__).parents[2]
SLEEP = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


def test_every_job_has_its_share_of_the_cores():
    assert cores_of(1, {0, 1, 2}) == [{0, 1, 2}]
    assert cores_of(2, {4, 5, 6}) == [{4}, {5, 6}]
    assert cores_of(3, {0, 1}) == [{0}, {1}, {0}]


def test_processes_run_side_by_side_on_their_cores(tmp_path: Path):
    """Each waits for the other, so one after the other they would wait in vain."""
    meet = (
        "import os, pathlib, sys, time\n"
        "pathlib.Path(sys.argv[1]).write_text(str(len(os.sched_getaffinity(0))))\n"
        "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.05)\n"
    )
    one, other = tmp_path / "one", tmp_path / "other"
    assert run_all([python(meet, one, other), python(meet, other, one)], 2, tmp_path) == 0
    cores = len(os.sched_getaffinity(0))
    assert int(one.read_text()) + int(other.read_text()) == max(cores, 2)


def test_the_first_failure_ends_the_others_and_starts_nothing(tmp_path: Path):
    def commands() -> Iterator[list[str]]:
        yield python(SLEEP, tmp_path / "began")
        yield python("import sys; sys.exit(2)")
        pytest.fail("a third one is asked for")

    started = time.monotonic()
    assert run_all(commands(), 2, tmp_path) == 2
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_batch(tmp_path: Path, sent: signal.Signals):
    """Ctrl-C goes to the whole group, SIGTERM to the first process alone."""
    batch = (
        "import sys; from pathlib import Path; from experiments.processes import run_all\n"
        "sleep, folder = sys.argv[1], Path(sys.argv[2])\n"
        "commands = [[sys.executable, '-c', sleep, str(folder / str(place))] for place in range(3)]\n"
        "sys.exit(min(run_all(commands, 2, folder) % 256, 255))\n"
    )
    process = subprocess.Popen(
        python(batch, SLEEP, tmp_path), cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL
    )
    while not all((tmp_path / name).exists() for name in "01"):
        assert process.poll() is None
        time.sleep(0.05)
    if sent == signal.SIGINT:
        os.killpg(process.pid, sent)
    else:
        process.send_signal(sent)
    code = process.wait(timeout=30)
    assert code in ({INTERRUPTED, 254} if sent == signal.SIGINT else {241})
    assert not (tmp_path / "2").exists()
