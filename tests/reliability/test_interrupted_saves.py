"""Processes killed while they save, damaged files: the old or the new checkpoint loads, and nothing piles up."""

import fcntl
import functools
import os
import random
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from faults import assert_step, ended, forked, killed_after, moments, save_step

from dvt.checkpoint import read_checkpoint, save_checkpoint
from dvt.config import RunConfig
from dvt.errors import CheckpointError
from dvt.training.folder import PREVIOUS_STATE_FILE, STATE_FILE, WEIGHTS_FILE, RunFolder

# Audited by Python before they happen; what lies between two of them is one write, or none.
FILE_OPERATIONS = ("open", "os.", "shutil.", "tempfile.", "fcntl.")
RUN_FILES = {WEIGHTS_FILE, STATE_FILE, PREVIOUS_STATE_FILE}


@pytest.fixture
def begun(tmp_path: Path) -> RunConfig:
    """A run with two saved steps."""
    config = RunConfig(output=str(tmp_path))
    folder = RunFolder(config, writes=True)
    for step in (1, 2):
        save_step(folder, config, step)
    return config


def resumed_step(config: RunConfig) -> int:
    """The step at which a resumed run goes on; all checkpoints of the run are whole."""
    state = RunFolder(replace(config, resume=True), writes=True).read_state()
    step = state.metadata["step"]
    assert all((value == step).all() for value in state.weights.values())
    for name in (WEIGHTS_FILE, PREVIOUS_STATE_FILE):
        path = Path(config.output) / name
        assert_step(path, read_checkpoint(path).metadata["step"])
    return step


@pytest.mark.slow
def test_a_save_killed_at_any_of_its_file_operations_loses_nothing(begun: RunConfig) -> None:
    folder = RunFolder(replace(begun, resume=True), writes=True)

    def save_until(operation: int) -> None:
        seen = 0

        def count(event: str, _: tuple) -> None:
            nonlocal seen
            if event.startswith(FILE_OPERATIONS):
                seen += 1
                if seen == operation:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        save_step(folder, begun, 3, size=1000)

    operation, ends = 0, []
    while 0 not in ends:
        operation += 1
        ends.append(ended(forked(functools.partial(save_until, operation))))
        assert ends[-1] in (0, -signal.SIGKILL)
        assert resumed_step(begun) in (2, 3)
        save_step(folder, begun, 2)  # also clears away what the killed one left
        assert set(os.listdir(begun.output)) == RUN_FILES
    assert operation > 30


@pytest.mark.slow
def test_a_save_killed_at_random_moments_loses_nothing(begun: RunConfig) -> None:
    folder = RunFolder(replace(begun, resume=True), writes=True)
    left_behind = 0
    for seconds in moments(50, 0.06):
        before = resumed_step(begun)
        reader, writer = os.pipe()

        def save_on(before: int = before, writer: int = writer) -> None:
            for step in range(before + 1, before + 1000):
                save_step(folder, begun, step)
                os.write(writer, b".")

        assert killed_after(save_on, seconds) == -signal.SIGKILL
        os.close(writer)
        with open(reader, "rb") as pipe:
            completed = before + len(pipe.read())
        assert resumed_step(begun) in (completed, completed + 1)
        left_behind += len(set(os.listdir(begun.output)) - RUN_FILES)
    assert left_behind
    save_step(folder, begun, 0)
    assert set(os.listdir(begun.output)) == RUN_FILES


def test_a_save_under_way_is_not_cleared_away_by_another(begun: RunConfig) -> None:
    """Two processes save into one folder, again and again."""
    config = replace(begun, resume=True)

    def save_on() -> None:
        for step in range(40):
            save_step(RunFolder(config, writes=True), begun, step, size=1000)

    children = [forked(save_on) for _ in range(2)]
    assert [ended(child) for child in children] == [0, 0]
    assert set(os.listdir(begun.output)) == RUN_FILES


def test_folders_of_others_are_left_alone_and_one_that_was_taken_is_made_again(tmp_path: Path) -> None:
    """Another process has a folder locked; and it removes this one's, new and not locked yet, as an abandoned one."""
    other, taken = tmp_path / ".last.saving-other", []
    other.mkdir()
    lock = os.open(other, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)

    def take(event: str, arguments: tuple) -> None:
        if event == "fcntl.flock" and not taken:
            taken.extend(each for each in tmp_path.glob(".last.saving-*") if each != other)
            for each in taken:
                each.rmdir()

    sys.addaudithook(take)
    save_checkpoint(tmp_path / "last.ckpt", {"weight": np.ones(3, np.float32)}, {"model": {}})
    assert taken and sorted(os.listdir(tmp_path)) == [other.name, "last.ckpt"]
    os.close(lock)  # that process was killed
    save_checkpoint(tmp_path / "last.ckpt", {"weight": np.ones(3, np.float32)}, {"model": {}})
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_a_truncated_state_gives_way_to_the_one_before(begun: RunConfig) -> None:
    path, draw = Path(begun.output) / STATE_FILE, random.Random(0)
    content = path.read_bytes()
    for length in [draw.randrange(len(content)) for _ in range(20)]:
        path.unlink(missing_ok=True)  # it has another name
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"only the start|cut short|incomplete|empty"):
            read_checkpoint(path)
        assert resumed_step(begun) == 1


def test_flipped_bytes_are_detected(begun: RunConfig) -> None:
    path, rng = Path(begun.output) / STATE_FILE, np.random.default_rng(0)
    content = np.frombuffer(path.read_bytes(), np.uint8)
    for place in rng.integers(0, len(content), 50):
        damaged = content.copy()
        damaged[place] ^= rng.integers(1, 256, dtype=np.uint8)
        path.unlink(missing_ok=True)
        path.write_bytes(damaged.tobytes())
        with pytest.raises(CheckpointError, match="damaged|incomplete|not a MindSpore checkpoint"):
            read_checkpoint(path)
        assert resumed_step(begun) == 1
