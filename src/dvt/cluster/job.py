"""One run of msrun, from its start to the end of its last process.

msrun starts each worker in a session of its own, so that no signal to msrun or its group reaches them, and it does not
report their exit codes: /proc tells which worker is which, and how it ended.

`python -m dvt.cluster.job MSRUN_PROCESS SECONDS` ends a job whose launcher was killed: msrun and its workers would go
on forever. The launcher starts this beside msrun; it waits for the end of a pipe that the launcher alone holds open.
"""

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import IO, TextIO

import psutil

from dvt.cluster.diagnosis import WorkerLog
from dvt.cluster.placement import Placement, python_environment
from dvt.signals import stop_signals_handled

POLL_SECONDS = 0.2
SETTLE_SECONDS = 3  # after a failure, in which msrun and the other workers log what they know about it
GRACE_SECONDS = 60  # for saving, when the job is stopped by a signal
FAILURE_GRACE_SECONDS = 10  # for workers that wait for a lost peer and therefore hardly ever react
KILL_SECONDS = 10  # that the system may need to clear away a killed process
MSRUN_LOG = "msrun.log"

# Chatter of MindSpore about the cluster, of no use on a console; the log files keep it.
_CHATTER = re.compile(r"\[(INFO|WARNING)\] (DISTRIBUTED|DEVICE|ME)\(")
_PEER_LOST = "Kill this process with SIGTERM"
_WORKER_ENDED = re.compile(r"Worker process (\d+) exit with exception. Error code: (-?\d+)")

log = logging.getLogger(__name__)


@dataclass
class Member:
    """One process that msrun started."""

    process: psutil.Process  # psutil notices when its id is given to another
    rank: int | None  # None for the scheduler
    exit_code: int | None = None  # negative for a signal; None while it runs, and where that could not be seen
    ended: datetime | None = None  # when that was noticed, local time


@dataclass(frozen=True)
class Outcome:
    """How a job ended on this machine."""

    succeeded: bool  # all workers
    signal_number: int | None  # that stopped the launcher
    logs: tuple[WorkerLog, ...]  # of all processes; empty if all went well


@dataclass
class Job:
    """Starts msrun, shows the log of the first worker of this machine, watches the workers, ends everything."""

    command: Sequence[str]  # the Python script of the workers with its arguments
    placement: Placement
    log_dir: Path  # that is there, for msrun.log, scheduler.log and worker_RANK.log
    environment: Mapping[str, str]  # in whose PATH msrun is looked up
    _members: list[Member] = field(default_factory=list)
    _signal_number: int | None = None
    _at_once: threading.Event = field(default_factory=threading.Event)  # set by a second signal

    def run(self, console: TextIO = sys.stdout) -> Outcome:
        """Blocks until every process of the job has ended; a signal that asks to stop ends it, a second one at once."""
        follower = Follower(self.log_dir / f"worker_{self.placement.ranks.start}.log", console)
        with stop_signals_handled(self._on_signal), (self.log_dir / MSRUN_LOG).open("w") as file:
            msrun = psutil.Popen(
                msrun_command(self.command, self.placement, self.log_dir),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=dict(self.environment),
                start_new_session=True,  # Ctrl-C in the terminal reaches the launcher alone
            )
            with guarded(msrun, file):
                try:
                    succeeded = self._watch(msrun, follower)
                finally:
                    grace = FAILURE_GRACE_SECONDS if self._signal_number is None else GRACE_SECONDS
                    end_all(msrun, self._members, grace, self._at_once)
                    msrun.wait()
                    follower.pump(finish=True)
        return Outcome(succeeded, self._signal_number, () if succeeded else tuple(self._logs()))

    def _watch(self, msrun: psutil.Popen, follower: "Follower") -> bool:
        """Waits until msrun has ended, a process has failed or a signal came; whether msrun ended well."""
        expected = self.placement.device_num + self.placement.is_master
        settled = None  # when what follows from a failure has been logged
        while msrun.poll() is None and self._signal_number is None and not (settled and time.monotonic() > settled):
            if len(self._members) < expected:
                self._members += find_members(msrun, self._members)
            update(self._members)
            follower.pump()
            if settled is None and (follower.peer_lost or any(member.exit_code for member in self._members)):
                settled = time.monotonic() + SETTLE_SECONDS
            time.sleep(POLL_SECONDS)
        update(self._members)
        return msrun.poll() == 0 and self._signal_number is None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal_number is None:
            self._signal_number = number
            log.warning("%s: stopping the workers, which save what they have", signal.Signals(number).name)
        else:
            log.warning("%s again: not waiting any longer", signal.Signals(number).name)
            self._at_once.set()

    def _logs(self) -> Iterable[WorkerLog]:
        ends = own_ends(self._members, (self.log_dir / MSRUN_LOG).read_text(errors="replace"))
        names = [(rank, f"worker_{rank}.log") for rank in self.placement.ranks]
        for rank, name in [*names, (None, "scheduler.log"), (None, MSRUN_LOG)]:
            path = self.log_dir / name
            if path.exists():
                text, modified = path.read_text(errors="replace"), datetime.fromtimestamp(path.stat().st_mtime)
                yield WorkerLog(rank, str(path), text, modified, *ends.get(rank, (None, None)))


def msrun_command(command: Sequence[str], placement: Placement, log_dir: Path) -> list[str]:
    """The command that runs the share of this machine."""
    options = {
        "worker_num": placement.world_size,
        "local_worker_num": placement.device_num,
        "master_addr": placement.master_addr,
        "master_port": placement.master_port,
        "node_rank": placement.node_rank,
        "cluster_time_out": placement.cluster_timeout,
        "log_dir": log_dir,
        "join": True,  # msrun stays until its workers have ended
        "tail_worker_log": placement.world_size,  # no such rank: the launcher itself shows a log
        "rank_table_file": placement.rank_table_file,
        "bind_core": placement.bind_core,
    }
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    return ["msrun", *given, "python3", *command]  # it would take plain "python", which not every environment has


def own_ends(members: Iterable[Member], msrun_log: str) -> dict[int, tuple[int, datetime]]:
    """Exit code and time of the workers that ended by themselves, by rank: msrun names the first worker that it sees
    fail and kills all others, which are not counted."""
    named = {int(pid): int(code) for pid, code in _WORKER_ENDED.findall(msrun_log)}
    workers = {each.process.pid: each for each in members if each.rank is not None and each.ended is not None}
    first_failure = min((workers[pid].ended for pid in named if pid in workers), default=datetime.max)
    ends = {}
    for pid, worker in workers.items():
        code = named.get(pid, worker.exit_code)
        killed = code == -signal.SIGKILL and pid not in named and worker.ended >= first_failure
        if code is not None and not killed:
            ends[worker.rank] = (code, worker.ended)
    return ends


class Follower:
    """Copies what is added to a worker's log to the console, and notices when the worker loses its peers."""

    def __init__(self, path: Path, console: TextIO) -> None:
        self.path, self.console = path, console
        self.peer_lost = False
        self._read = 0

    def pump(self, finish: bool = False) -> None:
        """Shows the lines that are complete by now; to `finish`, also a last line without its end."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            added = file.read()
        whole = len(added) if finish else added.rfind(b"\n") + 1
        self._read += whole
        for line in added[:whole].decode(errors="replace").splitlines():
            self.peer_lost = self.peer_lost or _PEER_LOST in line
            if not _CHATTER.match(line):
                print(line, file=self.console, flush=True)


def update(members: Iterable[Member]) -> None:
    """Notes which of them have ended, all of them with one time."""
    now = datetime.now()
    for member in members:
        if member.ended is None and not is_running(member.process):
            member.ended, member.exit_code = now, _exit_code_of_zombie(member.process.pid)


def find_members(msrun: psutil.Process, known: Iterable[Member]) -> list[Member]:
    """The scheduler and the workers among the children of msrun, without those that are `known`."""
    pids = {member.process.pid for member in known}
    found = []
    for child in _children(msrun):
        with contextlib.suppress(psutil.Error):  # it has just ended
            environment = {} if child.pid in pids else child.environ()
            role = environment.get("MS_ROLE")  # helpers have none, nor has a child that is about to become a worker
            if role in ("MS_SCHED", "MS_WORKER"):
                found.append(Member(child, int(environment["RANK_ID"]) if role == "MS_WORKER" else None))
    return found


def is_running(process: psutil.Process) -> bool:
    """Whether the process has not ended; one whose parent has not collected its exit code has ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end_all(msrun: psutil.Process, members: Iterable[Member], grace: float, at_once: threading.Event) -> None:
    """Ends a job: SIGTERM to the workers, so that they can save what they have, SIGKILL to all after `grace` seconds,
    or as soon as `at_once` is set."""
    _signal(
        msrun, signal.SIGSTOP
    )  # it would kill all workers as soon as one of them has ended, in the middle of saving
    members = [*members]
    members += find_members(msrun, members)
    everything = {process for member in members for process in (member.process, *_children(member.process, True))}
    everything |= set(_children(msrun, True))
    workers = [member.process for member in members if member.rank is not None]
    for worker in workers:
        _signal(worker, signal.SIGTERM)
    end = time.monotonic() + grace
    while any(map(is_running, workers)) and time.monotonic() < end and not at_once.is_set():
        time.sleep(0.1)
    for worker in workers:  # its session holds what it started, also after its end
        _kill_group(worker)
    for process in (*everything, msrun):
        _signal(process, signal.SIGKILL)
    end = time.monotonic() + KILL_SECONDS
    while any(map(is_running, everything)) and time.monotonic() < end:
        time.sleep(0.05)


def _children(process: psutil.Process, recursive: bool = False) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children(recursive)
    return []


def _signal(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):  # it has ended
        process.send_signal(number)


def _kill_group(leader: psutil.Process) -> None:
    # The system gives the id to another process only when both the leader and its group are gone.
    if leader.is_running() or not psutil.pid_exists(leader.pid):
        with contextlib.suppress(ProcessLookupError):  # nobody is left in it
            os.killpg(leader.pid, signal.SIGKILL)


def _exit_code_of_zombie(pid: int) -> int | None:
    """The exit code of an ended process that its parent has not collected: the last field of its stat line."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # the name before it may hold spaces
        return os.waitstatus_to_exitcode(int(fields[-1])) if fields[0] == "Z" else None
    return None


@contextlib.contextmanager
def guarded(msrun: psutil.Process, msrun_log: IO[str]) -> Iterator[None]:
    """While entered, the end of this process ends the job of `msrun`; leaving it in order ends nothing."""
    guard = subprocess.Popen(
        [sys.executable, "-m", "dvt.cluster.job", str(msrun.pid), str(GRACE_SECONDS)],
        stdin=subprocess.PIPE,
        stdout=msrun_log,
        stderr=subprocess.STDOUT,
        env=python_environment(),
        start_new_session=True,  # what is sent to the launcher's group must not end it
    )
    try:
        yield
    finally:
        guard.kill()
        guard.communicate()


def main(process: str, grace: str) -> None:
    """Waits until the launcher is gone, then lets the workers save and ends the job."""
    with contextlib.suppress(psutil.NoSuchProcess):  # the job was that short
        msrun = psutil.Process(int(process))
        sys.stdin.buffer.read()
        print("The launcher was killed; stopping the workers, which save what they have", flush=True)
        end_all(msrun, [], float(grace), threading.Event())


if __name__ == "__main__":
    main(*sys.argv[1:])
