"""Training runs that meet a fault: how they end, what they say, and that the same command with --resume goes on."""

import csv
import fcntl
import logging
import os
import pty
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path

import pytest
from faults import NOBODY, arguments, ended, forked, make_pictures, small_disk

from dvt.checkpoint import read_checkpoint
from dvt.cli.main import main
from dvt.config import RunConfig
from dvt.errors import ConfigError
from dvt.training.folder import RunFolder
from dvt.training.metrics import RunRecords
from dvt.training.monitor import Monitor

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FAKETIME = next((path for path in Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return make_pictures(tmp_path / "pictures")


@pytest.fixture
def in_epoch_2(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Takes what is to happen when the second of the epochs begins, once."""

    def arrange(fault: Callable[[], None]) -> None:
        begin_epoch, faults = Monitor.begin_epoch, [fault]

        def begin(self: Monitor, epoch: int, done: int) -> None:
            begin_epoch(self, epoch, done)
            if epoch == 1 and faults:
                faults.pop()()

        monkeypatch.setattr(Monitor, "begin_epoch", begin)

    return arrange


def train(pictures: Path, output: Path, *more: str) -> int:
    return main(["train", *arguments(pictures, output, *more)])


def fill_up(filler: Path) -> None:
    """Writes into `filler` until its disk is full."""
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))


def steps_recorded(run: Path) -> list[str]:
    with (run / "metrics.csv").open() as file:
        return [row["step"] for row in csv.DictReader(file)]


def assert_whole(run: Path) -> None:
    """Three epochs of four steps, each recorded once."""
    assert read_checkpoint(run / "last.ckpt").metadata["step"] == 12
    assert read_checkpoint(run / "state.ckpt").metadata["step"] == 12
    assert steps_recorded(run) == ["4", "8", "12"]
    assert not list(run.glob(".*"))


@pytest.mark.parametrize("every", [1, 1000])
def test_a_broken_image_in_validation_loses_nothing(every: int, pictures: Path, tmp_path: Path, capsys) -> None:
    broken, run = pictures / "val" / "dark" / "0.png", tmp_path / "run"
    keys = f"--train.checkpoint_every_epochs={every}"
    content = broken.read_bytes()
    broken.write_bytes(content[:100])
    assert train(pictures, run, keys) == 1
    said = capsys.readouterr().err
    assert "0.png" in said and "--resume goes on" in said
    assert f"The last good weights are in {run / 'last.ckpt'}" in said
    assert read_checkpoint(run / "state.ckpt").metadata["step"] == 4
    assert not (run / "metrics.csv").exists()
    broken.write_bytes(content)
    assert train(pictures, run, keys, "--resume") == 0
    assert "resuming after step 4 of 12" in capsys.readouterr().err
    assert_whole(run)
    assert main(["train", *arguments(pictures, tmp_path / "unbroken")]) == 0
    for name, value in read_checkpoint(tmp_path / "unbroken" / "last.ckpt").weights.items():
        assert value == pytest.approx(read_checkpoint(run / "last.ckpt").weights[name], abs=1e-6)


def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint_before(
    pictures: Path, tmp_path: Path, in_epoch_2, capsys
) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        filler, run = disk / "filler", disk / "run"
        in_epoch_2(lambda: fill_up(filler))
        assert train(pictures, run) == 1
        said = capsys.readouterr().err
        assert f"error: cannot save the checkpoint {run / 'last.ckpt'}: No space left on device: " in said
        assert f"MiB are free in {run}; make room or choose another folder. " in said
        assert "The last.ckpt saved before is untouched." in said
        assert read_checkpoint(run / "state.ckpt").metadata["step"] == 4
        assert read_checkpoint(run / "last.ckpt").metadata["step"] == 4
        filler.unlink()
        assert train(pictures, run, "--resume") == 0
        assert_whole(run)


def test_a_full_disk_does_not_hold_up_what_only_tensorboard_needs(tmp_path: Path, caplog) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        records = RunRecords(disk)
        fill_up(disk / "filler")
        for step in range(1000):
            records.step(step, [0.5], 0.1)
        records.close()
    assert [record.message for record in caplog.records if "incomplete: No space left" in record.message] == [
        caplog.records[0].message
    ]


def test_a_log_that_cannot_be_written_is_told_once(tmp_path: Path, caplog, capsys) -> None:
    (tmp_path / "train.log").symlink_to("/dev/full")
    with RunFolder.opened(RunConfig(output=str(tmp_path)), writes=True) as folder:
        folder.begin()
        for _ in range(3):
            logging.getLogger("dvt.training").info("a line")
    assert caplog.text.count("train.log is incomplete") == 1
    assert "Traceback" not in capsys.readouterr().err


def test_a_full_disk_is_told_before_the_run(pictures: Path, tmp_path: Path, capsys) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        (disk / "filler").write_bytes(bytes(60 * 1024))
        assert train(pictures, disk / "run") == 2
        said = capsys.readouterr().err
    assert "cannot write" in said and "No space left on device" in said and "MiB are free" in said
    assert "Traceback" not in said


def test_a_read_only_disk_is_refused_before_any_work(pictures: Path, tmp_path: Path, capsys) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert train(pictures, disk / "run") == 2
        said = capsys.readouterr().err
    assert f"error: cannot write to the output folder {tmp_path / 'disk' / 'run'}: Read-only file system" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_folder_of_somebody_else_is_refused() -> None:
    """Also where the log in it may be written to."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders let nobody in
        run, said = Path(name), Path(name) / "said"
        run.chmod(0o755)
        for file in (run / "train.log", said):
            file.touch()
            file.chmod(0o666)

        def begin() -> None:
            os.setuid(NOBODY)
            try:
                with RunFolder.opened(RunConfig(output=name), writes=True):
                    pass
            except ConfigError as error:
                said.write_text(str(error))

        assert ended(forked(begin)) == 0
        assert f"cannot write to the output folder {run}: Permission denied; choose another folder" in said.read_text()


def test_sigterm_saves_and_ends_with_130(pictures: Path, tmp_path: Path, in_epoch_2, capsys) -> None:
    in_epoch_2(lambda: os.kill(os.getpid(), signal.SIGTERM))
    run = tmp_path / "run"
    assert train(pictures, run) == 130
    assert f"{run / 'last.ckpt'} is usable, and the same command with --resume goes on" in capsys.readouterr().err
    assert read_checkpoint(run / "state.ckpt").metadata["step"] == 5
    assert train(pictures, run, "--resume") == 0
    assert_whole(run)


def test_a_closed_terminal_saves(pictures: Path, tmp_path: Path) -> None:
    """Its progress bar can no longer be drawn either."""
    run = tmp_path / "run"
    command = [sys.executable, str(ROOT / "train.py"), *arguments(pictures, run, "--train.epochs=1000")]
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests were started with nohup
        os.execv(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    shown = b""
    while not (run / "metrics.csv").exists():
        shown += os.read(terminal, 4096)
    os.close(terminal)
    assert ended(child) == 130
    assert b"train:" in shown  # the bar
    last = (run / "train.log").read_text().splitlines()[-1]
    assert f"{run / 'last.ckpt'} is usable, and the same command with --resume goes on" in last
    assert f"interrupted after step {read_checkpoint(run / 'state.ckpt').metadata['step']} of 4000" in last


def test_a_killed_data_worker_ends_the_run_which_goes_on(pictures: Path, tmp_path: Path, in_epoch_2, capsys) -> None:
    others = active_children()  # of tests before

    def kill() -> None:
        (worker,) = (child for child in active_children() if child not in others)
        worker.kill()

    in_epoch_2(kill)
    run, keys = tmp_path / "run", ("--data.worker_type=process", "--train.batch_size=2")
    assert train(pictures, run, *keys) == 1
    said = capsys.readouterr().err
    assert "error: a worker process ended unexpectedly" in said and "--resume goes on" in said
    assert 8 <= read_checkpoint(run / "state.ckpt").metadata["step"] < 16
    assert train(pictures, run, *keys, "--resume") == 0
    assert steps_recorded(run) == ["8", "16", "24"]


@pytest.mark.skipif(FAKETIME is None, reason="faketime is not installed")
def test_a_clock_that_jumps_harms_nothing(pictures: Path, tmp_path: Path) -> None:
    """Back by a year within the run, which then is killed and goes on with the right time."""
    run, offset = tmp_path / "run", tmp_path / "offset"
    offset.write_text("+0\n")
    clock = {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1"}
    command = [sys.executable, str(ROOT / "train.py"), *arguments(pictures, run, "--train.epochs=40")]
    process = subprocess.Popen(
        command, env={**os.environ, **clock, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}, stderr=subprocess.PIPE, text=True
    )
    try:
        for rows in (2, 8):  # before the jump, and behind it
            end = time.monotonic() + 120
            while not (run / "metrics.csv").exists() or len(steps_recorded(run)) < rows:
                assert time.monotonic() < end and process.poll() is None, process.communicate()
                time.sleep(0.02)
            offset.write_text("-365d\n")
        process.kill()
    finally:
        process.kill()
        process.communicate()
    jumped = len(steps_recorded(run))
    years = {line[:4] for line in (run / "train.log").read_text().splitlines() if line[:2] == "20"}
    assert len(years) == 2
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    steps = [int(step) for step in steps_recorded(run)]
    assert steps == [4 * epoch for epoch in range(1, 41)] and jumped < 40
