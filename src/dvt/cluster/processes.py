"""The processes of a job, as /proc shows them: which worker is which, how it ended, and ending what is left.

msrun starts each worker in a session of its own, so neither a signal to msrun nor one to its process group reaches
them, and it does not report their exit codes. Both are found in /proc.

`python -m dvt.cluster.processes MSRUN_PROCESS GRACE_SECONDS` ends a job whose launcher was killed: it can end nothing
itself then, and msrun and its workers would go on forever. The launcher starts this beside msrun, in a session of its
own; it waits for the end of a pipe that the launcher alone holds open.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

import psutil

from dvt.cluster.placement import python_environment

KILL_SECONDS = 10  # that the system may need to clear away a killed process


@dataclass
class Member:
    """One process that msrun started."""

    process: psutil.Process  # psutil notices when its id is given to another
    rank: int | None  # None for the scheduler
    exit_code: int | None = None  # negative for a signal; None while it runs, and where that could not be seen
    ended: datetime | None = None  # when that was noticed, local time

    def update(self, now: datetime) -> None:
        """Notes whether the process has ended; `now` is the same for all members that are checked together."""
        if self.ended is None and not is_running(self.process):
            self.ended = now
            self.exit_code = _exit_code_of_zombie(self.process.pid)


def find_members(msrun: psutil.Process, known: Iterable[int]) -> list[Member]:
    """The scheduler and the workers among the children of msrun, without those whose process ids are `known`."""
    known = set(known)
    found = []
    for child in _children(msrun):
        if child.pid in known:
            continue
        try:
            environment = child.environ()
        except psutil.Error:  # it has just ended
            continue
        role = environment.get("MS_ROLE")  # helpers have none, nor has a child that is about to become a worker
        if role == "MS_SCHED":
            found.append(Member(child, None))
        elif role == "MS_WORKER":
            found.append(Member(child, int(environment["RANK_ID"])))
    return found


def is_running(process: psutil.Process) -> bool:
    """Whether the process has not ended; one whose parent has not collected its exit code has ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end_all(msrun: psutil.Process, members: Iterable[Member], grace: "Deadline") -> None:
    """Ends a job: SIGTERM to the workers, so that they can save what they have, SIGKILL to all once `grace` is over.

    msrun is stopped first: it would kill all workers as soon as one of them has ended, in the middle of saving.
    """
    _signal(msrun, signal.SIGSTOP)
    members = [*members, *find_members(msrun, [member.process.pid for member in members])]
    everything = {process for member in members for process in (member.process, *_children(member.process, True))}
    everything |= set(_children(msrun, True))
    workers = [member.process for member in members if member.rank is not None]
    for worker in workers:
        _signal(worker, signal.SIGTERM)
    while any(map(is_running, workers)) and not grace.over:
        time.sleep(0.1)
    for worker in workers:  # its session holds what it started, also after its end
        _kill_group(worker)
    for process in everything:
        _signal(process, signal.SIGKILL)
    _signal(msrun, signal.SIGKILL)
    gone = Deadline(KILL_SECONDS)
    while any(map(is_running, everything)) and not gone.over:
        time.sleep(0.05)


class Deadline:
    """A time limit that can be cut short."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._end

    def cut(self) -> None:
        """Makes it over now."""
        self._end = time.monotonic()


def _children(process: psutil.Process, recursive: bool = False) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children(recursive)
    return []


def _signal(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):  # it has ended
        process.send_signal(number)


def _kill_group(leader: psutil.Process) -> None:
    # The system gives the id to another process only when both the leader and its group are gone.
    if psutil.pid_exists(leader.pid) and not leader.is_running():
        return
    with contextlib.suppress(ProcessLookupError):  # nobody is left in it
        os.killpg(leader.pid, signal.SIGKILL)


def _exit_code_of_zombie(pid: int) -> int | None:
    """The exit code of an ended process that its parent has not collected: the last field of its stat line."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces
    return os.waitstatus_to_exitcode(int(fields[-1])) if fields[0] == "Z" else None


@contextlib.contextmanager
def guarded(msrun: psutil.Process, grace_seconds: float, log: IO[str]) -> Iterator[None]:
    """While entered, the end of this process ends the job of `msrun`, which `log` then says; leaving it in order ends
    nothing. The workers have `grace_seconds` for saving."""
    guard = subprocess.Popen(
        [sys.executable, "-m", "dvt.cluster.processes", str(msrun.pid), str(grace_seconds)],
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
