"""Ends a job whose launcher was killed: `python -m dvt.cluster.guard MSRUN_PROCESS GRACE_SECONDS`.

A launcher that gets SIGKILL can end nothing itself, and msrun and its workers would go on forever. So the launcher
starts this process beside msrun, in a session of its own. It waits for the end of a pipe that the launcher alone holds
open.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import IO

import psutil

from dvt.cluster.placement import python_environment
from dvt.cluster.processes import Deadline, end_all


@contextlib.contextmanager
def guarded(msrun: psutil.Process, grace_seconds: float, log: IO[str]) -> Iterator[None]:
    """While entered, the end of this process ends the job of `msrun`; leaving it in order ends nothing.

    Args:
        msrun: The process whose children are the workers.
        grace_seconds: Time that the workers have for saving.
        log: File that notes that the launcher was killed.
    """
    guard = subprocess.Popen(
        [sys.executable, "-m", "dvt.cluster.guard", str(msrun.pid), str(grace_seconds)],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=python_environment(),
        start_new_session=True,  # what is sent to the launcher's group must not end it
    )
    try:
        yield
    finally:
        guard.kill()
        guard.communicate()


def main(process: str, grace_seconds: str) -> None:
    """Waits until the launcher is gone, then lets the workers save and ends the job."""
    try:
        msrun = psutil.Process(int(process))
    except psutil.NoSuchProcess:  # the job was that short
        return
    sys.stdin.buffer.read()
    print("The launcher was killed; stopping the workers, which save what they have", flush=True)
    end_all(msrun, [], Deadline(float(grace_seconds)))


if __name__ == "__main__":
    main(*sys.argv[1:])
