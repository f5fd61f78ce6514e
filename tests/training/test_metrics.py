"""Run records: nothing twice after a resume, nothing lost when a run breaks, and what ran is on file."""

import csv
import json
import shutil
import struct
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from dvt.training.folder import git_state, write_environment
from dvt.training.metrics import RunRecords


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def events_of(folder: Path) -> list[Event]:
    """All events in the order in which TensorBoard reads them. A record is length, checksum, bytes, checksum."""
    events = []
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda path: int(path.suffix[1:])):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: a start at step n takes back what was recorded at n and later."""
    points: dict[str, list[tuple[int, float]]] = {}
    for event in events_of(folder):
        if event.session_log.status == SessionLog.START:
            points = {tag: [p for p in series if p[0] < event.step] for tag, series in points.items()}
        for value in event.summary.value:
            points.setdefault(value.tag, []).append((event.step, value.simple_value))
    return points


def train(records: RunRecords, steps: range, per_epoch: int = 4) -> None:
    for step in steps:
        records.step(step, np.array([1 / step, 2 / step], np.float32), 0.5**step)
        if step % per_epoch == 0:
            epoch = step // per_epoch
            records.epoch({"epoch": epoch, "step": step, "loss_exit_0": 1 / step, "loss_exit_1": 2 / step})


def test_rows_and_events(tmp_path: Path):
    with RunRecords(tmp_path) as records:
        train(records, range(1, 9))
        records.epoch({"epoch": 3, "step": 12, "loss_exit_0": 0.25, "val_accuracy_exit_0": np.float32(62.5)})
        assert [row["epoch"] for row in records.rows] == [1, 2, 3]
    first, _, last = rows_of(tmp_path)
    assert first == {
        "epoch": "1",
        "step": "4",
        "loss_exit_0": "0.25",
        "loss_exit_1": "0.5",
        "val_accuracy_exit_0": "",  # a column that came later
    }
    assert last["val_accuracy_exit_0"] == "62.5" and last["loss_exit_1"] == ""
    points = shown(tmp_path)
    assert points["step/loss_exit_1"] == [(n, np.float32(2 / n)) for n in range(1, 9)]
    assert points["step/learning_rate"][2] == (3, 0.125)
    assert points["epoch/val_accuracy_exit_0"] == [(12, 62.5)]
    assert not any(tag.endswith(("/epoch", "/step")) for tag in points)


@pytest.mark.parametrize(("stopped", "saved"), [(14, 10), (14, 8), (9, 9), (3, 0)])
def test_a_resumed_run_records_nothing_twice(tmp_path: Path, stopped: int, saved: int):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    with RunRecords(whole) as records:
        train(records, range(1, 17))
    with RunRecords(broken) as records:
        train(records, range(1, stopped + 1))
    with RunRecords(broken, resume_step=saved) as records:
        train(records, range(saved + 1, 17))
    assert (broken / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert shown(broken) == shown(whole)


def test_an_epoch_that_is_validated_again_has_one_row(tmp_path: Path):
    with RunRecords(tmp_path) as records:
        train(records, range(1, 9))
    with RunRecords(tmp_path, resume_step=8) as records:
        records.epoch({"epoch": 2, "step": 8, "loss_exit_0": 0.5})
    assert [(row["step"], row["loss_exit_0"]) for row in rows_of(tmp_path)] == [("4", "0.25"), ("8", "0.5")]


def test_rows_behind_the_resumed_step_go_at_once(tmp_path: Path):
    """A resumed run that is killed before its first epoch ends must not leave rows that it took back."""
    with RunRecords(tmp_path) as records:
        train(records, range(1, 13))
    RunRecords(tmp_path, resume_step=6).close()
    assert [row["step"] for row in rows_of(tmp_path)] == ["4"]


def test_damaged_lines_are_dropped_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "metrics.csv").write_text("epoch,step,loss_exit_0\n1,4,0.5\n2,x,0.4\n3,12\n")
    with RunRecords(tmp_path, resume_step=100) as records:
        assert records.rows == [{"epoch": 1, "step": 4, "loss_exit_0": 0.5}]
    assert "2 lines" in caplog.text


def test_a_new_run_and_a_resumed_one_without_metrics_start_empty(tmp_path: Path):
    (tmp_path / "metrics.csv").write_text("epoch,step\n1,4\n")
    with RunRecords(tmp_path) as records:
        assert records.rows == []
    (tmp_path / "metrics.csv").unlink()
    with RunRecords(tmp_path, resume_step=8) as records:
        train(records, range(9, 13))
    assert [row["step"] for row in rows_of(tmp_path)] == ["12"]


def test_a_run_that_breaks_leaves_complete_files(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), RunRecords(tmp_path) as records:
        train(records, range(1, 11))
        raise KeyboardInterrupt
    assert len(rows_of(tmp_path)) == 2
    assert shown(tmp_path)["step/loss_exit_0"][-1][0] == 10
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.csv", "tensorboard"}
    records.close()  # again: nothing happens


def test_closing_does_not_replace_the_error_of_the_run(tmp_path: Path):
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(ZeroDivisionError), RunRecords(folder) as records:
        train(records, range(1, 5))
        shutil.rmtree(folder)
        raise ZeroDivisionError


def test_importing_it_does_not_import_mindspore():
    code = "import sys, dvt.training.metrics, dvt.training.folder; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --------------------------------------------------------------------------------------------------------- environment


def test_environment_says_what_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--output", "two words"])
    write_environment(tmp_path, device="CPU, 2 cores")
    monkeypatch.setattr(sys, "argv", ["train.py", "--resume"])
    write_environment(tmp_path, device="Ascend 910B")
    first, second = json.loads((tmp_path / "environment.json").read_text())["starts"]
    assert (first["device"], second["device"]) == ("CPU, 2 cores", "Ascend 910B")
    assert (first["command"], second["command"]) == ("train.py --output 'two words'", "train.py --resume")
    assert first["packages"]["numpy"] == metadata.version("numpy")
    assert first["python"] == ".".join(map(str, sys.version_info[:3]))
    assert first["started"] <= second["started"]


def test_a_damaged_environment_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "environment.json").write_text("{")
    write_environment(tmp_path, device="CPU")
    assert len(json.loads((tmp_path / "environment.json").read_text())["starts"]) == 1
    assert "environment.json cannot be read" in caplog.text


@pytest.mark.skipif(shutil.which("git") is None, reason="git is optional")
def test_revision_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert git_state(tmp_path) is None
    git("init", "-q")
    assert git_state(tmp_path) is None  # no commit yet
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    (tmp_path / "untracked").touch()
    assert git_state(tmp_path) == {"revision": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "file").write_text("two")
    assert git_state(tmp_path) == {"revision": git("rev-parse", "HEAD"), "dirty": True}
    (tmp_path / "inside").mkdir()
    assert git_state(tmp_path / "inside") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None  # no git
