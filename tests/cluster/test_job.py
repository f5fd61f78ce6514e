"""The parts of a job that need no process: msrun's arguments, whose end counts, the console."""

import io
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import psutil
import pytest

from dvt.cluster.job import Follower, Member, msrun_command, own_ends, update
from dvt.cluster.placement import Placement

NOON = datetime(2026, 11, 25, 12)


class Process:
    """Stands for a process that has ended; only its number is left."""

    def __init__(self, pid: int) -> None:
        self.pid = pid


def ended(rank: int | None, pid: int, code: int | None, seconds: float) -> Member:
    return Member(Process(pid), rank, code, NOON + timedelta(seconds=seconds))


def msrun_named(pid: int, code: int) -> str:
    return f"[ERROR] ME(1:2,MainProcess): Worker process {pid} exit with exception. Error code: {code}.\n"


def test_msrun_gets_the_share_of_this_machine(tmp_path: Path):
    placement = Placement(4, 2, 1, "10.0.0.1", 9000, tmp_path / "table.json", 30, "true")
    arguments = msrun_command(["train.py", "--seed=1"], placement, tmp_path)
    assert arguments[0] == "msrun"
    assert arguments[-3:] == ["python3", "train.py", "--seed=1"]
    expected = {"--worker_num=8", "--local_worker_num=4", "--node_rank=1", "--master_addr=10.0.0.1", "--join=True"}
    expected |= {"--master_port=9000", f"--rank_table_file={tmp_path / 'table.json'}", "--cluster_time_out=30"}
    assert expected < set(arguments)
    assert not any(
        "rank_table" in word or "bind_core" in word for word in msrun_command(["t.py"], Placement(2), tmp_path)
    )


@pytest.mark.slow
def test_msrun_knows_these_arguments(tmp_path: Path):
    # Its own parser, so that an option that a version of MindSpore renames is noticed.
    code = "import sys; from mindspore.parallel.cluster.run import get_args; print(get_args().worker_num)"
    arguments = msrun_command(["train.py", "--seed=1"], Placement(3, bind_core="true"), tmp_path)[1:]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip().splitlines()[-1] == "3", done.stderr


def test_a_worker_killed_by_msrun_did_not_end_by_itself():
    members = [ended(0, 10, -9, 0.2), ended(1, 11, -9, 0.2), ended(2, 12, -9, 0.4)]
    assert own_ends(members, msrun_named(11, -9)) == {1: (-9, NOON + timedelta(seconds=0.2))}


def test_a_worker_killed_before_another_failed_did():
    members = [ended(0, 10, 1, 5), ended(1, 11, -9, 0)]
    assert own_ends(members, msrun_named(10, 1)) == {0: (1, NOON + timedelta(seconds=5)), 1: (-9, NOON)}


def test_msrun_knows_the_code_of_a_worker_that_it_collected_first():
    assert own_ends([ended(0, 10, None, 0), ended(1, 11, None, 1)], msrun_named(10, 2)) == {0: (2, NOON)}


def test_scheduler_and_running_workers_are_no_ends():
    running = Member(Process(11), 1)
    assert own_ends([ended(None, 10, 1, 0), running], "") == {}


def test_console_shows_whole_lines_without_the_chatter_of_the_cluster(tmp_path: Path):
    console, log = io.StringIO(), tmp_path / "worker_0.log"
    follower = Follower(log, console)
    follower.pump()  # not there yet
    log.write_text("[WARNING] DISTRIBUTED(1,7f,python3):2026-11-25-17:11:20.632.674 [a.cc:1] noise\nepoch 1\nepo")
    follower.pump()
    assert console.getvalue() == "epoch 1\n"
    with log.open("a") as file:
        file.write("ch 2\n[ERROR] DEVICE(1,7f,python3):2026-11-25-17:11:21.000.000 [a.cc:1] trouble\nlast words")
    follower.pump()
    assert console.getvalue().splitlines()[1:] == [
        "epoch 2",
        "[ERROR] DEVICE(1,7f,python3):2026-11-25-17:11:21.000.000 [a.cc:1] trouble",
    ]
    assert not follower.peer_lost
    follower.pump(finish=True)
    assert console.getvalue().endswith("last words\n")


def test_a_lost_peer_is_noticed(tmp_path: Path):
    log = tmp_path / "worker_0.log"
    log.write_text(
        "[WARNING] DISTRIBUTED(1,7f,p):2026-11-25-17:16:34.601.584 [init.cc:135] Kill this process with SIGTERM.\n"
    )
    follower = Follower(log, io.StringIO())
    follower.pump()
    assert follower.peer_lost


def test_a_member_that_runs_has_not_ended():
    member = Member(psutil.Process(), 0)
    update([member])
    assert (member.ended, member.exit_code) == (None, None)


@pytest.mark.slow
@pytest.mark.parametrize(("code", "expected"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -9)])
def test_the_exit_code_of_an_ended_worker_is_seen_before_msrun_collects_it(code: str, expected: int):
    child = subprocess.Popen([sys.executable, "-c", code])
    member = Member(psutil.Process(child.pid), 0)
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    update([member])
    assert member.ended is not None and member.exit_code == expected
    child.wait()
