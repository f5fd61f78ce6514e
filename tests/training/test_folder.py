"""The run folder: two states of which one always loads, the best few epochs, refusals; small arrays for weights."""

import contextlib
import errno
import logging
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dvt.checkpoint import read_checkpoint
from dvt.config import RunConfig, TrainSection
from dvt.config.files import config_to_dict
from dvt.errors import CheckpointError, ConfigError
from dvt.models.variants import model_config
from dvt.safe_files import HELD
from dvt.training.folder import BEST_FILE, DAMAGED_STATE_FILE, PREVIOUS_STATE_FILE, STATE_FILE, RunFolder

MODEL = model_config("dvt_deit_small", num_classes=2)


def config_for(path: Path, **keys: object) -> RunConfig:
    return RunConfig(output=str(path), train=TrainSection(**keys))


def weights(value: float) -> dict[str, np.ndarray]:
    return {"w": np.full(200, value, np.float32)}


def metadata(config: RunConfig, step: int) -> dict:
    return {"model": MODEL, "config": config_to_dict(replace(config, resume=False)), "step": step}


def opened(config: RunConfig) -> contextlib.AbstractContextManager[RunFolder]:
    return RunFolder.opened(config, writes=True)


def saved(path: Path, steps: int, **keys: object) -> RunConfig:
    config = config_for(path, **keys)
    folder = RunFolder(config, writes=True)
    for step in range(1, steps + 1):
        folder.save_weights(weights(-step), metadata(config, step))
        folder.save_state(weights(step) | {"moment": np.full(3, step, np.float32)}, metadata(config, step))
    return config


def resumed(config: RunConfig) -> RunFolder:
    return RunFolder(replace(config, resume=True), writes=True)


def test_the_newest_state_is_read_and_the_averages_are_what_is_evaluated(tmp_path: Path) -> None:
    config = saved(tmp_path, 3)
    state = resumed(config).read_state()
    assert state.metadata["step"] == 3 and state.weights["w"][0] == 3 and state.weights["moment"][0] == 3
    assert read_checkpoint(tmp_path / PREVIOUS_STATE_FILE).metadata["step"] == 2
    assert read_checkpoint(tmp_path / "last.ckpt").weights["w"][0] == -3


@pytest.mark.parametrize("damage", ["torn", "flipped", "gone", "empty"])
def test_a_damaged_state_gives_way_to_the_one_before(damage: str, tmp_path: Path, caplog) -> None:
    config = saved(tmp_path, 2)
    newest = tmp_path / STATE_FILE
    content = bytearray(newest.read_bytes())
    newest.unlink()  # another name of it may exist
    if damage == "torn":
        newest.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
    elif damage == "empty":
        newest.write_bytes(b"")
    folder = resumed(config)
    assert folder.read_state().metadata["step"] == 1
    assert "the state before it" in caplog.text
    folder.save_state(weights(2), metadata(config, 2))
    assert [read_checkpoint(tmp_path / name).metadata["step"] for name in (STATE_FILE, PREVIOUS_STATE_FILE)] == [2, 1]
    assert (tmp_path / DAMAGED_STATE_FILE).exists() == (damage != "gone")


def test_a_run_begun_before_a_key_was_known_goes_on(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    known = metadata(config, 1)
    del known["config"]["train"]["clip_norm"], known["config"]["augment"]
    RunFolder(config, writes=True).save_state(weights(1), known)
    assert resumed(config).read_state().metadata["step"] == 1


def test_two_damaged_states_are_refused(tmp_path: Path) -> None:
    config = saved(tmp_path, 2)
    for name in (STATE_FILE, PREVIOUS_STATE_FILE):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:100])
    with pytest.raises(CheckpointError, match=PREVIOUS_STATE_FILE):
        resumed(config).read_state()


def test_a_run_is_neither_overwritten_nor_resumed_from_nothing_nor_mixed_up(tmp_path: Path) -> None:
    config = config_for(tmp_path / "run")
    with pytest.raises(CheckpointError, match="cannot resume"), opened(replace(config, resume=True)):
        pass
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    config = saved(tmp_path / "run", 1)
    with pytest.raises(ConfigError, match="already holds a run"), opened(config):
        pass
    with RunFolder.opened(config, writes=False):  # other ranks leave that to rank 0
        pass
    (tmp_path / "best" / BEST_FILE).parent.mkdir()
    (tmp_path / "best" / BEST_FILE).write_bytes(b"x")  # killed before its first state
    with pytest.raises(ConfigError, match="already holds a run"), opened(config_for(tmp_path / "best")):
        pass
    other = replace(config, train=replace(config.train, learning_rate=1.0))
    with pytest.raises(ConfigError, match=r"train\.learning_rate is 1\.0"):
        resumed(other).read_state()
    resumed(replace(config, train=replace(config.train, keep_best=1))).read_state()  # may change


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot write"), opened(config_for(tmp_path / "run")):
        pass


def test_a_run_is_written_to_by_one_process_at_a_time(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The second is refused, also with --resume, and where the first was killed there is no lock any more."""
    config = config_for(tmp_path / "run")
    with opened(config) as folder:
        folder.begin()
        folder.save_state(weights(1), metadata(config, 1))
        for resume in (False, True):
            message, second = f"is already under way in .*run .process {os.getpid()} on", replace(config, resume=resume)
            with pytest.raises(ConfigError, match=message), opened(second):
                pass
        with RunFolder.opened(replace(config, resume=True), writes=False):  # another rank of the same run
            pass
    child = os.fork()
    if child == 0:
        with opened(replace(config, resume=True)):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with opened(replace(config, resume=True)) as folder:
        assert folder.read_state().metadata["step"] == 1
    assert not (tmp_path / "run" / HELD).exists()


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    def flock(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    with opened(config_for(tmp_path / "run")):
        assert "the file system has no locks" in caplog.text


def test_a_start_that_is_refused_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was logged before the checks were passed is in the log of a run that begins."""
    monkeypatch.setattr(logging.getLogger("dvt"), "propagate", False)  # test processes send each other UTF-8 alone
    config = config_for(tmp_path / "new" / "run")
    with pytest.raises(ConfigError, match="faulty"), opened(config):
        logging.getLogger("dvt").info("early")
        raise ConfigError("faulty")
    assert not list(tmp_path.iterdir())
    with opened(config) as folder:
        logging.getLogger("dvt").info("early")
        folder.begin()
        logging.getLogger("dvt").info("late, with a file name that is not UTF-8: \udcff")
    lines = (tmp_path / "new" / "run" / "train.log").read_text(encoding="utf-8").splitlines()
    assert [line.rpartition("INFO ")[2][:4] for line in lines] == ["earl", "late"]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO ", line) for line in lines)


def test_the_best_few_epochs_are_kept(tmp_path: Path) -> None:
    config = config_for(tmp_path, keep_best=2)
    folder = RunFolder(config, writes=True)
    best: list = []

    def keep(epoch: int, accuracy: float) -> bool:
        """Whether the epoch is the best so far."""
        nonlocal best
        best = folder.keep_best(best, (accuracy, epoch), weights(epoch), metadata(config, epoch))
        return best[0] == (accuracy, epoch)

    is_best = [keep(epoch, accuracy) for epoch, accuracy in enumerate([50.0, 70.0, 70.0, 60.0, 80.0], start=1)]
    assert is_best == [True, True, False, False, True]
    assert sorted(path.name for path in tmp_path.glob("epoch_*.ckpt")) == ["epoch_002.ckpt", "epoch_005.ckpt"]
    newest = read_checkpoint(tmp_path / BEST_FILE)
    assert newest.weights["w"][0] == 5 and newest.metadata["val_accuracy"] == 80.0
    assert not keep(6, 65.0)
    assert keep(5, 80.0)  # validated again after a resume: not listed twice
    assert keep(7, 90.0)
    assert sorted(path.name for path in tmp_path.glob("epoch_*.ckpt")) == ["epoch_005.ckpt", "epoch_007.ckpt"]


def test_nothing_is_kept_where_nothing_is_to_be_chosen(tmp_path: Path) -> None:
    config = config_for(tmp_path, keep_best=0)
    assert RunFolder(config, writes=True).keep_best([], (99.0, 1), weights(1), metadata(config, 1)) == []
    assert not list(tmp_path.glob("*.ckpt"))


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    config = config_for(tmp_path / "run")
    with RunFolder.opened(config, writes=False) as folder:
        folder.begin()
        folder.save_weights(weights(1), metadata(config, 1))
        folder.save_state(weights(1), metadata(config, 1))
        assert folder.keep_best([], (10.0, 1), weights(1), metadata(config, 1)) == [(10.0, 1)]
    assert not (tmp_path / "run").exists()
