"""Commands in processes of their own, one after the other or several at a time. Imports no framework."""

import os
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from dvt.signals import INTERRUPTED

POLL_SECONDS = 0.2


def cores_of(jobs: int, usable: set[int]) -> list[set[int]]:
    """For each of `jobs` processes its own share of the cores; with fewer cores than jobs they take turns."""
    cores = sorted(usable)
    if jobs > len(cores):
        return [{cores[job % len(cores)]} for job in range(jobs)]
    return [set(cores[job * len(cores) // jobs : (job + 1) * len(cores) // jobs]) for job in range(jobs)]


def run_all(commands: Iterable[list[str]], jobs: int, folder: Path) -> int:
    """Runs the commands, `jobs` at a time, each bound to its own share of the cores.

    A command is taken from `commands` when there is room for it, and none after Ctrl-C or the first that fails. Ctrl-C
    reaches the processes too, which save their state and end; SIGTERM, and the failure of one, is handed on to them.

    Args:
        commands: What to run; may be a generator.
        jobs: Processes at a time.
        folder: In which they run.

    Returns:
        The exit code of the first process that failed, 130 after Ctrl-C; 0 if all went well.
    """
    shares = cores_of(jobs, os.sched_getaffinity(0))
    running: dict[int, subprocess.Popen] = {}
    waiting = iter(commands)
    code = 0

    def end(*_: object) -> None:
        for process in running.values():
            process.terminate()

    before = signal.signal(signal.SIGTERM, end)
    try:
        while True:
            try:
                for job in range(jobs):
                    if job in running and running[job].poll() is not None:
                        ended = running.pop(job).returncode
                        if ended and not code:
                            code = ended
                            end()
                    if job not in running and not code and (command := next(waiting, None)):
                        running[job] = _start(command, folder, shares[job])
                if not running:
                    return code
                time.sleep(POLL_SECONDS)
            except KeyboardInterrupt:
                code = code or INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)


def _start(command: list[str], folder: Path, cores: set[int]) -> subprocess.Popen:
    # A process inherits the cores of the thread that starts it, and its pools of threads are then as large as they.
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        return subprocess.Popen(command, cwd=folder)
    finally:
        os.sched_setaffinity(0, everywhere)
