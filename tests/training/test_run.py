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
from mindspore import Tensor
from PIL import Image

from dvt.checkpoint import load_model, read_checkpoint, save_checkpoint
from dvt.config import RunConfig
from dvt.config.files import config_from_dict, load_config
from dvt.data import load_splits
from dvt.errors import CheckpointError, ConfigError, DataError, DVTError
from dvt.models.names import parameter_shapes
from dvt.models.variants import model_config
from dvt.training.monitor import Monitor
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


ONE_EPOCH = {"train__epochs": 1, "train__batch_size": 5, "train__learning_rate": 1e-2, "eval": {"batch_size": 3}}


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch, with a profile."""
    run = tmp_path_factory.mktemp("finished") / "run"
    train(config(folder, run, profile=True, **ONE_EPOCH))
    return run


@pytest.fixture
def done(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return shutil.copytree(finished, tmp_path / "run")


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
        ({"model__name": "dvt_deit_smal"}, ConfigError, "did you mean"),
        ({"model__image_size": 25}, ConfigError, "image_size"),
        ({"data__path": str(tmp_path / "nowhere")}, DataError, "nowhere"),
        ({"train__exit_weights": [1.0]}, ConfigError, "exit_weights"),
        ({"train__batch_size": 64}, ConfigError, "batch_size"),
        ({"model__num_classes": 3}, ConfigError, "num_classes is 3, but that of the data set is 2"),
        ({"model__in_channels": 1}, ConfigError, "in_channels is 1, but that of the data set is 3"),
        ({"data__mean": [0.5]}, ConfigError, "mean has 1 entries"),
        ({"data__resize_size": 8}, ConfigError, "resize_size is 8, smaller than"),
    ):
        with pytest.raises(error, match=words):
            train(config(folder, tmp_path / "run", **changes))
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_stops_the_run(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DVTError, match="no longer finite at step 8"):
        train(config(folder, tmp_path / "run", train__learning_rate=1e30))


def test_resume_refuses_another_recipe(folder: Path, done: Path) -> None:
    for key, value in (("train__batch_size", 4), ("train__epochs", 5), ("seed", 3), ("model__mlp_hidden", 24)):
        with pytest.raises(DVTError, match=key.replace("__", ".") + "|another model"):
            train(config(folder, done, **{**ONE_EPOCH, "resume": True, key: value}))
    (done / "state.ckpt").unlink()
    with pytest.raises(ConfigError, match="already holds a run"):  # its weights are still there
        train(config(folder, done, **ONE_EPOCH))


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_broken_image_in_mid_run_loses_nothing(accumulation: int, folder: Path, tmp_path: Path) -> None:
    """Also where it is found within an accumulated batch, which is begun again."""
    keys = {"train__batch_size": 2, "train__accumulation_steps": accumulation}
    broken = tmp_path / "pictures"
    shutil.copytree(folder, broken)
    (broken / "train" / "red" / "5.png").write_bytes((folder / "train" / "red" / "5.png").read_bytes()[:200])
    asked = config(broken, tmp_path / "run", **keys)
    with pytest.raises(DataError, match=r"5\.png"):
        train(asked)
    steps = read_checkpoint(tmp_path / "run" / "last.ckpt").metadata["step"]
    shutil.copy(folder / "train" / "red" / "5.png", broken / "train" / "red" / "5.png")
    train(config(broken, tmp_path / "run", resume=True, **keys))
    assert 0 < steps < read_checkpoint(tmp_path / "run" / "last.ckpt").metadata["step"] == 48 // accumulation
    assert read_checkpoint(tmp_path / "run" / "state.ckpt").weights["batches"] == 48


def test_an_interrupt_at_the_end_of_an_epoch_lets_it_end(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step per epoch; the signal comes while the second one begins. The resumed run still knows which layers began
    fresh: they alone learn, since the rate of the others is 0."""
    begin_epoch = Monitor.begin_epoch

    def interrupted(self: Monitor, epoch: int, done: int) -> None:
        begin_epoch(self, epoch, done)
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Monitor, "begin_epoch", interrupted)
    start = model_config(**MODEL, num_classes=2, feature_reuse=False, relation_reuse=False)
    weights = {name: np.full(shape, 0.1, np.float32) for name, shape in parameter_shapes(start).items()}
    save_checkpoint(tmp_path / "start.ckpt", weights, {"model": start})
    keys = {"train__init_checkpoint": str(tmp_path / "start.ckpt"), "train__backbone_lr_scale": 0.0}
    keys |= {"train__batch_size": 32, "train__checkpoint_every_epochs": 100, "train__ema_decay": 0.0}
    with pytest.raises(KeyboardInterrupt):
        train(config(folder, tmp_path / "run", **keys))
    before = read_checkpoint(tmp_path / "run" / "last.ckpt").weights
    assert [row["epoch"] for row in rows_of(tmp_path / "run")] == ["1", "2"]
    assert (tmp_path / "run" / "epoch_002.ckpt").exists()
    monkeypatch.undo()
    train(config(folder, tmp_path / "run", resume=True, **keys))
    assert [row["epoch"] for row in rows_of(tmp_path / "run")] == ["1", "2", "3"]
    after = read_checkpoint(tmp_path / "run" / "last.ckpt").weights
    for name, learns in (
        ("relation_reuse.fc1.weight", True),
        ("head.weight", True),
        ("blocks.0.attn.qkv.weight", False),
    ):
        assert (after[f"exits.1.{name}"] != before[f"exits.1.{name}"]).any() == learns, name


def added(root: Path) -> None:
    """As many steps per epoch as before."""
    shutil.copy(root / "train" / "red" / "3.png", root / "train" / "red" / "more.png")


def doubled(root: Path) -> None:
    for i in range(16):
        shutil.copy(root / "train" / "red" / f"{i}.png", root / "train" / "red" / f"more_{i}.png")


def added_to_validate(root: Path) -> None:
    shutil.copy(root / "val" / "red" / "3.png", root / "val" / "red" / "more.png")


def another_in_its_place(root: Path) -> None:
    (root / "train" / "red" / "3.png").rename(root / "train" / "red" / "30.png")


def moved_to_another_class(root: Path) -> None:
    for here, there in (("red", "blue"), ("blue", "red")):
        (root / "train" / here / "3.png").rename(root / "train" / there / f"from_{here}.png")


def renamed_class(root: Path) -> None:
    for part in ("train", "val"):
        (root / part / "red").rename(root / part / "rouge")


def test_a_run_is_not_resumed_on_other_images(folder: Path, done: Path, tmp_path: Path) -> None:
    state = (done / "state.ckpt").read_bytes()
    before = load_splits(config(folder, tmp_path).data, 24, 0).identity()
    assert read_checkpoint(done / "last.ckpt").metadata["images"] == before
    for change, message in (
        (added, "train had 32 images and has 33; resume with those"),
        (doubled, "other data: data.path now holds other classes or another number of images"),
        (added_to_validate, "val had 8 images and has 9"),
        (another_in_its_place, "the 32 images of train are not the same ones"),
        (moved_to_another_class, "the 32 images of train are not the same ones, or not of the same classes"),
        (renamed_class, "other data: data.path now holds other classes"),
    ):
        other = shutil.copytree(folder, tmp_path / change.__name__)
        assert not load_splits(config(other, tmp_path).data, 24, 0).difference(before)  # elsewhere, but the same
        change(other)
        with pytest.raises(ConfigError, match=message):
            train(config(other, done, resume=True, **ONE_EPOCH))
    assert (done / "state.ckpt").read_bytes() == state


def test_a_run_is_not_resumed_on_another_number_of_devices(folder: Path, done: Path) -> None:
    state = read_checkpoint(done / "state.ckpt")
    save_checkpoint(done / "state.ckpt", state.weights, state.metadata | {"world_size": 2})
    with pytest.raises(ConfigError, match="begun on 2 devices and cannot be resumed on 1"):
        train(config(folder, done, resume=True, **ONE_EPOCH))


def test_a_run_starts_from_other_weights_and_keeps_its_best_epochs(
    folder: Path, finished: Path, tmp_path: Path
) -> None:
    first = finished / "last.ckpt"
    keys = {"train__learning_rate": 0.0, "train__min_learning_rate": 0.0, "train__ema_decay": 0.0}
    keys |= {"train__init_checkpoint": str(first), "seed": 7, "train__keep_best": 2}
    train(config(folder, tmp_path / "second", **keys))
    start, end = (read_checkpoint(path).weights for path in (first, tmp_path / "second" / "last.ckpt"))
    for name, value in start.items():
        np.testing.assert_array_equal(end[name], value)
    assert "taken" in (tmp_path / "second" / "train.log").read_text()
    with (tmp_path / "second" / "metrics.csv").open() as file:
        accuracies = [float(row["val_accuracy_exit_1"]) for row in csv.DictReader(file)]
    best = read_checkpoint(tmp_path / "second" / "best.ckpt")
    assert best.metadata["val_accuracy"] == max(accuracies) and best.metadata["epoch"] == 1  # all are equal
    assert len(list((tmp_path / "second").glob("epoch_*.ckpt"))) == 2
    for name in ("environment.json", "tensorboard"):
        assert (tmp_path / "second" / name).exists()


def test_validation_equals_evaluating_the_saved_weights(folder: Path, finished: Path) -> None:
    (row,) = rows_of(finished)
    model, _ = load_model(finished / "last.ckpt")
    model.set_train(False)
    images, labels = load_splits(config(folder, finished).data, 24, 0).batch("val", np.arange(8))
    answers = [logits.asnumpy().argmax(axis=1) for logits in model(Tensor(images))]
    expected = [100 * (each == labels).mean() for each in answers]
    assert [float(row[f"val_accuracy_exit_{k}"]) for k in range(2)] == pytest.approx(expected)


def test_a_profile_is_written(finished: Path) -> None:
    assert list((finished / "profile").rglob("*.json"))


# A T2T model with everything that is random switched on; a single exit, since none of it depends on the others.
NOISY = {
    "name": "dvt_t2t_vit_12",
    "image_size": 32,
    "grid_sizes": [2],
    "soft_splits": [[6, 4, 1]],
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_hidden": 16,
    "drop_path_rate": 0.3,
    "dropout_rate": 0.1,
}
NOISY_RUN = (
    "--train.epochs=40 --train.batch_size=4 --train.accumulation_steps=2 --train.warmup_epochs=2 --train.ema_decay=0.9 "
    "--train.clip_norm=1 --augment.policy=rand-m9-mstd0.5-inc1 --augment.interpolation=random --augment.erasing=0.25 "
    "--augment.mixup=0.8 --augment.cutmix=1 --data.calibration_images=8 --data.workers=1 --device-target=cpu"
)


def command(folder: Path, output: Path, *more: str) -> list[str]:
    model = [f"--model.{key}={value}" for key, value in NOISY.items()]
    arguments = ["--data_path", str(folder), "--output", str(output), *NOISY_RUN.split(), *more]
    return [sys.executable, str(ROOT / "train.py"), *model, *arguments]


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def unbroken(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("unbroken") / "run"
    done = subprocess.run(command(folder, run), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return run


def assert_equal_runs(run: Path, unbroken: Path) -> None:
    """Losses, accuracies, learning rates and weights of two runs are the same."""
    rows, expected = rows_of(run), rows_of(unbroken)
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        for key in row.keys() - {"images_per_second", "seconds"}:
            # A row of an epoch that was interrupted averages what was left of it.
            assert key.startswith("loss") or float(row[key]) == pytest.approx(float(other[key]), abs=1e-6), key
    for key in (key for key in rows[-1] if key.startswith("loss")):
        assert float(rows[-1][key]) == pytest.approx(float(expected[-1][key]), abs=1e-6)
    for name in ("last.ckpt", "state.ckpt", "best.ckpt"):
        wanted = read_checkpoint(unbroken / name).weights
        for key, value in read_checkpoint(run / name).weights.items():
            np.testing.assert_allclose(value, wanted[key], atol=1e-6, err_msg=f"{name}: {key}")


def started(arguments: list[str], run: Path, rows: int) -> subprocess.Popen:
    """A run that has at least `rows` epochs behind it."""
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "metrics.csv").exists() and len(rows_of(run)) >= rows:
            return process
        time.sleep(0.02)
    process.kill()
    raise AssertionError(process.communicate()[1])


@pytest.mark.slow
def test_killed_interrupted_and_resumed_equals_unbroken(folder: Path, tmp_path: Path, unbroken: Path) -> None:
    run = tmp_path / "run"
    process = started(command(folder, run), run, rows=2)
    time.sleep(np.random.default_rng(0).uniform(0, 0.5))
    process.kill()
    process.communicate()

    # Epochs are no longer saved: what is saved is saved at the interrupt, within an epoch.
    unsaved = ("--train.checkpoint_every_epochs=1000", "--resume")
    process = started(command(folder, run, *unsaved), run, rows=14)
    time.sleep(0.037)  # in the middle of a later step, where MindSpore takes the signal
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "resuming after step" in said and "--resume" in said and "Traceback" not in said
    stopped_at = read_checkpoint(run / "last.ckpt").metadata["step"]
    assert 14 * 4 <= stopped_at < 160

    resumed = subprocess.run(command(folder, run, *unsaved), capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming after step {stopped_at} of 160" in resumed.stderr
    assert_equal_runs(run, unbroken)
