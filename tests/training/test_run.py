"""Whole training runs on a small folder of images: files, refusals, Ctrl-C and resume."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dvt.checkpoint import load_model, read_checkpoint
from dvt.config import RunConfig
from dvt.config_io import config_from_dict, load_config
from dvt.errors import CheckpointError, ConfigError, DataError, DVTError
from dvt.training.run import train

ROOT = Path(__file__).parents[2]
MODEL = {
    "name": "dvt_deit_small",
    "image_size": 24,
    "grid_sizes": [2, 3],
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "mlp_hidden": 16,
    "drop_path_rate": 0.0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noisy pictures, red and blue: 16 to train on, 4 to validate, of each."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 4)):
        for channel, name in ((0, "red"), (2, "blue")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 90, (32, 32, 3), np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def config(folder: Path, output: Path, **changes: object) -> RunConfig:
    train_section = {"epochs": 3, "batch_size": 8, "warmup_epochs": 0, "learning_rate": 3e-3, "schedule_unit": "step"}
    values: dict = {
        "model": dict(MODEL),
        "data": {"path": str(folder), "calibration_images": 8, "workers": 1},
        "train": train_section | {"ema_decay": 0.5},
        "output": str(output),
        "device_target": "CPU",
    }
    for key, value in changes.items():
        section, _, leaf = key.partition("__")
        if leaf:
            values[section][leaf] = value
        else:
            values[section] = value
    return config_from_dict(values)


def test_a_run_leaves_a_usable_folder(folder: Path, tmp_path: Path) -> None:
    asked = config(folder, tmp_path / "run")
    weights = train(asked)
    assert weights == tmp_path / "run" / "last.ckpt"
    model, checkpoint = load_model(weights)
    assert model.config.num_classes == 2 and checkpoint.metadata["class_names"] == ["blue", "red"]
    assert checkpoint.metadata["step"] == 12 and checkpoint.metadata["epoch"] == 3
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["loss_exit_1"]) < float(rows[0]["loss_exit_1"])
    assert load_config(tmp_path / "run" / "config.yaml") == asked
    assert "epoch 3/3" in (tmp_path / "run" / "train.log").read_text()
    # The weights to evaluate are the averaged ones; the state holds the raw ones and the average.
    state = read_checkpoint(tmp_path / "run" / "state.ckpt").weights
    name = "exits.1.head.weight"
    np.testing.assert_array_equal(checkpoint.weights[name], state[f"ema.{name}"])
    assert (checkpoint.weights[name] != state[name]).any()

    with pytest.raises(ConfigError, match="already holds a run"):
        train(asked)


def test_refusals_come_before_any_work(folder: Path, tmp_path: Path) -> None:
    for changes, error, words in (
        ({"resume": True}, CheckpointError, "cannot resume"),
        ({"model__name": "dvt_deit_smal"}, ConfigError, "did you mean|Did you mean"),
        ({"model__image_size": 25}, ConfigError, "image_size"),
        ({"data__path": str(tmp_path / "nowhere")}, DataError, "nowhere"),
        ({"train__exit_weights": [1.0]}, ConfigError, "exit_weights"),
        ({"train__batch_size": 64}, ConfigError, "batch_size"),
        ({"model__num_classes": 3}, ConfigError, "num_classes"),
    ):
        with pytest.raises(error, match=words):
            train(config(folder, tmp_path / "run", **changes))
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_loss_that_is_not_finite_stops_the_run(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DVTError, match="no longer finite at step"):
        train(config(folder, tmp_path / "run", train__learning_rate=1e30))


def test_resume_refuses_another_recipe(folder: Path, tmp_path: Path) -> None:
    train(config(folder, tmp_path / "run", train__epochs=1))
    for key, value in (("train__batch_size", 4), ("train__epochs", 5), ("seed", 3), ("model__mlp_hidden", 24)):
        with pytest.raises(DVTError, match=key.replace("__", ".") + "|another model"):
            train(config(folder, tmp_path / "run", **{"train__epochs": 1, "resume": True, key: value}))
    (tmp_path / "run" / "state.ckpt").unlink()
    with pytest.raises(ConfigError, match="already holds a run"):  # its weights are still there
        train(config(folder, tmp_path / "run", train__epochs=1))


def test_a_broken_image_in_mid_run_loses_nothing(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "pictures"
    shutil.copytree(folder, broken)
    (broken / "train" / "red" / "5.png").write_bytes((folder / "train" / "red" / "5.png").read_bytes()[:200])
    asked = config(broken, tmp_path / "run", train__batch_size=2)
    with pytest.raises(DataError, match=r"5\.png"):
        train(asked)
    steps = read_checkpoint(tmp_path / "run" / "last.ckpt").metadata["step"]
    shutil.copy(folder / "train" / "red" / "5.png", broken / "train" / "red" / "5.png")
    train(config(broken, tmp_path / "run", train__batch_size=2, resume=True))
    assert steps < read_checkpoint(tmp_path / "run" / "last.ckpt").metadata["step"] == 48


@pytest.mark.slow
def test_interrupted_and_resumed_equals_unbroken(folder: Path, tmp_path: Path) -> None:
    def command(output: str, *more: str) -> list[str]:
        model = [f"--model.{key}={value}" for key, value in MODEL.items()]
        options = "--train.epochs=60 --train.batch_size=8 --train.warmup_epochs=0 --train.checkpoint_every_epochs=1000"
        data = f"--data_path {folder} --data.calibration_images=8 --device-target cpu"
        arguments = [*options.split(), *data.split(), "--output", str(tmp_path / output), *more]
        return [sys.executable, str(ROOT / "train.py"), *model, *arguments]

    whole = subprocess.run(command("whole"), capture_output=True, text=True, timeout=300)
    assert whole.returncode == 0, whole.stderr

    broken = subprocess.Popen(command("broken"), stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "broken" / "metrics.csv"
    deadline = time.monotonic() + 200
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.037)  # in the middle of a later step, where MindSpore takes the signal
    os.kill(broken.pid, signal.SIGINT)
    _, said = broken.communicate(timeout=60)
    assert broken.returncode == 130, said
    assert "--resume" in said and "Traceback" not in said
    stopped_at = read_checkpoint(tmp_path / "broken" / "last.ckpt").metadata["step"]
    assert 0 < stopped_at < 240

    resumed = subprocess.run(command("broken", "--resume"), capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming after step {stopped_at} of 240" in resumed.stderr
    expected = read_checkpoint(tmp_path / "whole" / "last.ckpt").weights
    for name, value in read_checkpoint(tmp_path / "broken" / "last.ckpt").weights.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6, err_msg=name)
