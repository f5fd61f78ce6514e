"""The launcher with real workers on the CPU: a good end, an error, a killed rank, a signal, two machines.

The workers are those of toy_worker.py, which only add up over all ranks.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from dvt.cli import launch
from dvt.cluster.placement import Placement
from processes import processes_of

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "run_distribute_train.sh"
TOY = Path(__file__).with_name("launch_toy.py")
FOR_EVER = "100000"


@dataclass
class Launched:
    """A launcher with its run folder `output`; `rank` is the first of its workers."""

    process: subprocess.Popen
    output: Path
    rank: int = 0

    @property
    def logs(self) -> Path:
        """The folder of its last start: on a busy machine there may have been more than one."""
        return max((self.output / "logs").iterdir(), key=lambda folder: folder.stat().st_mtime)

    def wait_for(self, text: str, rank: int | None = None, seconds: float = 120) -> str:
        """The log of a worker, as soon as it holds `text`."""
        name = f"worker_{self.rank if rank is None else rank}.log"
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            path = self.logs / name if (self.output / "logs").exists() else self.output
            content = path.read_text() if path.is_file() else ""
            if text in content:
                return content
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.2)
        raise AssertionError(f"{text!r} is not in {path} after {seconds} s:\n{content}")

    def process_of(self, rank: int) -> psutil.Process:
        return psutil.Process(int(re.search(r"process (\d+)", self.wait_for("process ", rank))[1]))

    def end(self, seconds: float = 90) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err


@contextlib.contextmanager
def launched(folder: Path, *arguments: str, rank: int = 0, prefix: tuple[str, ...] = (), **variables: str):
    """launch_toy.py with `arguments`; whatever is left of it in the end is killed."""
    output = folder / f"run_{rank}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "CLUSTER_TIMEOUT": "90", **variables}
    process = subprocess.Popen(
        [*prefix, sys.executable, str(TOY), str(output), *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Launched(process, output, rank)
    finally:
        for left in processes_of(folder):
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        process.wait()


@pytest.mark.slow
def test_all_goes_well(tmp_path: Path):
    with launched(tmp_path, "2", "well", "3") as job:
        code, out, err = job.end()
    assert code == 0, err
    assert "step 2: 2 ranks" in out.splitlines()
    assert "DISTRIBUTED" not in out
    assert "failed" not in err
    assert sorted(path.name for path in job.logs.iterdir()) == [
        "msrun.log",
        "scheduler.log",
        "worker_0.log",
        "worker_1.log",
    ]


@pytest.mark.slow
def test_an_error_of_one_rank_is_named_and_ends_all(tmp_path: Path):
    with launched(tmp_path, "2", "raise", FOR_EVER) as job:
        code, _, err = job.end(120)
        assert processes_of(tmp_path) == []
    assert code == 1
    assert re.search(r"Earliest error: rank 1 at [\d:]+, \S+/worker_1.log, line \d+\n    Traceback", err)
    assert "    ValueError: rank 1 has had enough\n" in err
    assert f"All logs are in {job.logs}" in err


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_within_a_minute(tmp_path: Path):
    with launched(tmp_path, "2", "well", FOR_EVER) as job:
        job.wait_for("step 2")
        job.process_of(1).kill()
        killed = time.monotonic()
        code, _, err = job.end(60)
        assert time.monotonic() - killed < 60
        assert processes_of(tmp_path) == []
    assert code == 1
    assert re.search(r"Earliest error: rank 1 at .*\n    ended by signal 9 \(SIGKILL\)\nUsual cause: .*out-of-mem", err)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_every_worker_save_and_leaves_nothing_behind(tmp_path: Path, number: int):
    with launched(tmp_path, "2", "save", FOR_EVER) as job:
        job.wait_for("step 2")
        job.process.send_signal(number)
        code, _, err = job.end()
        assert processes_of(tmp_path) == []
    assert code == 128 + number
    assert "stopped; all workers have ended" in err
    assert {path.name for path in tmp_path.glob("saved_*")} == {"saved_0", "saved_1"}


@pytest.mark.slow
def test_a_second_signal_does_not_wait_for_workers_that_do_not_react(tmp_path: Path):
    with launched(tmp_path, "2", "save", FOR_EVER) as job:
        job.wait_for("step 2")
        job.process_of(1).suspend()
        job.process.send_signal(signal.SIGINT)
        time.sleep(2)
        assert job.process.poll() is None  # it waits: the grace time is a minute
        job.process.send_signal(signal.SIGINT)
        code, _, _ = job.end(20)
        assert processes_of(tmp_path) == []
    assert code == 128 + signal.SIGINT


@pytest.fixture
def two_machines() -> Iterator[tuple[tuple[str, ...], tuple[str, ...], str]]:
    """Prefixes that run a command on either of two machines (network namespaces), and the address of the first."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    names = [f"dvt-{os.getpid()}-{machine}" for machine in "ab"]
    addresses = ["10.231.7.1", "10.231.7.2"]

    def ip(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["ip", *arguments], capture_output=True, text=True)

    try:
        if any(ip("netns", "add", name).returncode for name in names):
            pytest.skip("this system allows no network namespaces")
        made = ip("link", "add", "veth0", "netns", names[0], "type", "veth", "peer", "name", "veth0", "netns", names[1])
        if made.returncode:
            pytest.skip(f"this system has no virtual network cards: {made.stderr.strip()}")
        for name, address in zip(names, addresses, strict=True):
            for command in (["addr", "add", f"{address}/24", "dev", "veth0"], ["link", "set", "lo", "up"]):
                assert ip("-n", name, *command).returncode == 0
            assert ip("-n", name, "link", "set", "veth0", "up").returncode == 0
        yield ("ip", "netns", "exec", names[0]), ("ip", "netns", "exec", names[1]), addresses[0]
    finally:
        for name in names:
            ip("netns", "del", name)


@pytest.mark.slow
def test_two_machines(tmp_path: Path, two_machines):
    first, second, address = two_machines
    variables = {"NNODES": "2", "MASTER_ADDR": address}
    with (
        launched(tmp_path, "1", "well", "3", prefix=first, NODE_RANK="0", **variables) as job_0,
        launched(tmp_path, "1", "well", "3", rank=1, prefix=second, NODE_RANK="1", **variables) as job_1,
    ):
        ends = [job.end(150) for job in (job_0, job_1)]
    assert [code for code, _, _ in ends] == [0, 0], ends
    for _, out, _ in ends:
        assert "step 2: 2 ranks" in out.splitlines()


@pytest.mark.slow
def test_a_rank_killed_on_one_machine_ends_both_and_the_other_says_where_to_look(tmp_path: Path, two_machines):
    first, second, address = two_machines
    variables = {"NNODES": "2", "MASTER_ADDR": address}
    with (
        launched(tmp_path, "1", "well", FOR_EVER, prefix=first, NODE_RANK="0", **variables) as job_0,
        launched(tmp_path, "1", "well", FOR_EVER, rank=1, prefix=second, NODE_RANK="1", **variables) as job_1,
    ):
        job_1.wait_for("step 2")
        job_1.process_of(1).kill()
        killed = time.monotonic()
        (code_1, _, err_1), (code_0, _, err_0) = job_1.end(60), job_0.end(60)
        assert time.monotonic() - killed < 60
        assert processes_of(tmp_path) == []
    assert (code_0, code_1) == (1, 1)
    assert "ended by signal 9 (SIGKILL)" in err_1
    assert "most likely on another machine" in err_0


@pytest.mark.slow
@pytest.mark.parametrize(("failures", "code", "starts"), [(1, 0, 2), (9, 1, 3)])
def test_a_start_spoilt_by_the_scheduler_is_repeated(tmp_path: Path, failures: int, code: int, starts: int):
    # In place of msrun: writes what a refused worker writes, the first few times.
    msrun = tmp_path / "msrun"
    msrun.write_text(
        f"""#!/bin/bash
for word in "$@"; do case $word in --log_dir=*) logs=${{word#*=}} ;; esac; done
echo start >>{tmp_path}/starts
(($(wc -l <{tmp_path}/starts) > {failures})) && exit 0
echo 'error: Reason: Repeated registration node: 0 to the scheduler.' >"$logs/worker_0.log"
exit 1
"""
    )
    msrun.chmod(0o755)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    assert launch.run(["train.py"], Placement(1), tmp_path, environment) == code
    assert len(list((tmp_path / "logs").iterdir())) == starts


def test_each_start_gets_a_folder_of_its_own(tmp_path: Path):
    folders = {launch.new_log_dir(tmp_path, Placement(1)) for _ in range(3)}
    assert len(folders) == 3
    assert {folder.parent for folder in folders} == {tmp_path / "logs"}
    assert launch.new_log_dir(tmp_path, Placement(1, 2, 1)).name.endswith("-node1")


def test_the_script_of_the_checkout_trains():
    assert launch.train_command() == [str(ROOT / "train.py")]


def run_script(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, **variables}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], capture_output=True, text=True, timeout=300, env=environment
    )


@pytest.mark.slow
def test_the_script_explains_itself():
    done = run_script("-h")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: bash scripts/run_distribute_train.sh DATA_PATH CONFIG_PATH [DEVICE_NUM]")


@pytest.mark.slow
def test_the_script_refuses_before_anything_starts(tmp_path: Path):
    config = str(ROOT / "config" / "smoke_cpu.yaml")
    output = ("--output", str(tmp_path / "run"))

    def refusal(*arguments: str, **variables: str) -> str:
        done = run_script(*arguments, **variables)
        assert done.returncode == 2, done
        return done.stderr

    assert "DATA_PATH /none is not a folder" in refusal("/none", config)
    assert "CONFIG_PATH /none is not a file" in refusal(str(tmp_path), "/none")
    assert "DRY_RUN is 2; it must be 0, 1 or largest" in refusal(str(tmp_path), config, DRY_RUN="2")
    assert "DEVICE_NUM two is not a whole number" in refusal(str(tmp_path), config, "two")
    assert "did you mean '--train.epochs'" in refusal(str(tmp_path), config, "2", "--train.epoch", "3", *output)
    assert "NODE_RANK" in refusal(str(tmp_path), config, "2", *output, DEVICE_TARGET="CPU", NNODES="2")
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        said = refusal(str(tmp_path), config, "2", *output, DEVICE_TARGET="CPU", MASTER_PORT=port)
    assert f"MASTER_PORT {port} is in use" in said
    assert not (tmp_path / "run" / "logs").exists()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of two classes of made images."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for brightness, name in enumerate(("dark", "light")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 128, (50, 60, 3)) + 127 * brightness
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "images"


@pytest.mark.slow
def test_the_script_trains_on_two_workers_and_refuses_to_do_it_again(tmp_path: Path, images: Path):
    arguments = [str(images), str(ROOT / "config" / "smoke_cpu.yaml"), "2", "--output", str(tmp_path / "run")]
    done = run_script(*arguments, DEVICE_TARGET="CPU")
    assert done.returncode == 0, done.stderr
    assert "CPU: 2 worker(s) on this machine" in done.stderr
    assert re.search(r"fingerprint of code, configuration and versions: [0-9a-f]{6}\n", done.stderr)
    assert "2 ranks" in done.stdout
    bound = re.findall(r"taskset -c (\S+)", next((tmp_path / "run" / "logs").glob("*/msrun.log")).read_text())
    assert len(set(bound)) == 2 or len(os.sched_getaffinity(0)) < 2
    assert (tmp_path / "run" / "last.ckpt").exists()
    again = run_script(*arguments, DEVICE_TARGET="CPU")
    assert again.returncode == 2
    assert "already holds a run" in again.stderr
    assert len(list((tmp_path / "run" / "logs").iterdir())) == 1
