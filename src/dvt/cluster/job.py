"""One run of msrun from its start to the end of its last process."""

import logging
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TextIO

import psutil

from dvt.cluster.diagnosis import WorkerLog
from dvt.cluster.placement import Placement
from dvt.cluster.processes import Deadline, Member, end_all, find_members, guarded
from dvt.signals import stop_signals_handled

POLL_SECONDS = 0.2
SETTLE_SECONDS = 3  # after a failure, in which msrun and the other workers log what they know about it
GRACE_SECONDS = 60  # for saving, when the job is stopped by a signal
FAILURE_GRACE_SECONDS = 10  # for workers that wait for a lost peer and therefore hardly ever react
MSRUN_LOG = "msrun.log"

# Chatter of MindSpore about the cluster, of no use on a console; the log files keep it.
_CHATTER = re.compile(r"\[(INFO|WARNING)\] (DISTRIBUTED|DEVICE|ME)\(")
_PEER_LOST = "Kill this process with SIGTERM"
_WORKER_ENDED = re.compile(r"Worker process (\d+) exit with exception. Error code: (-?\d+)")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a job ended on this machine."""

    succeeded: bool  # all workers
    signal_number: int | None  # that stopped the launcher
    logs: tuple[WorkerLog, ...]  # of all processes; empty if all went well


class Job:
    """Starts msrun, shows the log of the first worker of this machine, watches the workers, ends everything.

    `command` is the Python script of the workers with its arguments. `log_dir` is there, for msrun.log, scheduler.log
    and worker_RANK.log. msrun is looked up in the PATH of `environment`.
    """

    def __init__(
        self, command: Sequence[str], placement: Placement, log_dir: Path, environment: Mapping[str, str]
    ) -> None:
        self.placement, self.log_dir, self.environment = placement, log_dir, environment
        self.arguments = msrun_command(command, placement, log_dir)
        self._members: list[Member] = []
        self._signal_number: int | None = None
        self._deadline: Deadline | None = None

    def run(self, console: TextIO = sys.stdout) -> Outcome:
        """Blocks until every process of the job has ended; a signal that asks to stop ends it, a second one at once."""
        with stop_signals_handled(self._on_signal), (self.log_dir / MSRUN_LOG).open("w") as file:
            msrun = psutil.Popen(
                self.arguments,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=dict(self.environment),
                start_new_session=True,  # Ctrl-C in the terminal reaches the launcher alone
            )
            with guarded(msrun, GRACE_SECONDS, file):
                succeeded = self._attend(msrun, console)
        return Outcome(succeeded, self._signal_number, () if succeeded else tuple(self._logs()))

    def _attend(self, msrun: psutil.Popen, console: TextIO) -> bool:
        """Waits until all processes have ended; whether all ended well."""
        follower = Follower(self.log_dir / f"worker_{self.placement.ranks.start}.log", console)
        try:
            return self._watch(msrun, follower)
        finally:
            self._deadline = Deadline(FAILURE_GRACE_SECONDS if self._signal_number is None else GRACE_SECONDS)
            end_all(msrun, self._members, self._deadline)
            msrun.wait()
            follower.pump(finish=True)

    def _watch(self, msrun: psutil.Popen, follower: "Follower") -> bool:
        """Waits until msrun has ended, a process has failed or a signal came; whether msrun ended well."""
        expected = self.placement.device_num + self.placement.is_master
        settled = None
        while msrun.poll() is None and self._signal_number is None and not (settled and settled.over):
            if len(self._members) < expected:
                self._members += find_members(msrun, [member.process.pid for member in self._members])
            self._update_members()
            follower.pump()
            if settled is None and (follower.peer_lost or any(member.exit_code for member in self._members)):
                settled = Deadline(SETTLE_SECONDS)
            time.sleep(POLL_SECONDS)
        self._update_members()
        return msrun.poll() == 0 and self._signal_number is None

    def _update_members(self) -> None:
        now = datetime.now()
        for member in self._members:
            member.update(now)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal_number is None:
            self._signal_number = number
            log.warning("%s: stopping the workers, which save what they have", signal.Signals(number).name)
        elif self._deadline is not None:
            log.warning("%s again: not waiting any longer", signal.Signals(number).name)
            self._deadline.cut()

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
    arguments = [
        "msrun",
        f"--worker_num={placement.world_size}",
        f"--local_worker_num={placement.device_num}",
        f"--master_addr={placement.master_addr}",
        f"--master_port={placement.master_port}",
        f"--node_rank={placement.node_rank}",
        f"--cluster_time_out={placement.cluster_timeout}",
        f"--log_dir={log_dir}",
        "--join=True",  # msrun stays until its workers have ended
        f"--tail_worker_log={placement.world_size}",  # no such rank: the launcher itself shows a log
    ]
    if placement.rank_table_file is not None:
        arguments.append(f"--rank_table_file={placement.rank_table_file}")
    if placement.bind_core is not None:
        arguments.append(f"--bind_core={placement.bind_core}")
    # msrun would take plain "python", which not every environment has.
    return [*arguments, "python3", *command]


def own_ends(members: Iterable[Member], msrun_log: str) -> dict[int, tuple[int, datetime]]:
    """Exit code and time of the workers that ended by themselves, by rank.

    msrun names the first worker that it sees fail and kills all others. Workers killed from then on are not counted.
    """
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
