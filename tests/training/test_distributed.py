"""Data-parallel training for real: CPU ranks under msrun against one process on the joined batch.

Every rank sees its part of the same batches, cropped and flipped alike, since augmentation is a function of the image.
Stochastic depth is off: it is drawn per rank. The optimizer is SGD: some biases (of the keys, of the mixed relations)
cannot change a softmax, and AdamW turns the rounding errors that are their gradients into steps of full size.
"""

import contextlib
import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dvt.checkpoint import read_checkpoint

ROOT = Path(__file__).parents[2]
TOGETHER = 12  # images per step, over all ranks
EPOCHS = 5  # of one step each, so that metrics.csv has the losses of every step
RECIPE = f"""
model: {{name: dvt_deit_small, image_size: 24, grid_sizes: [2, 3], embed_dim: 16, depth: 1, num_heads: 2,
  mlp_hidden: 16, drop_path_rate: 0.0}}
data: {{calibration_images: 8, workers: 1}}
train: {{epochs: {EPOCHS}, optimizer: sgd, learning_rate: 0.1, warmup_epochs: 0, weight_decay: 0.001,
  base_batch_size: {TOGETHER}, ema_decay: 0.5, clip_norm: 1.0}}
eval: {{batch_size: 3}}
device_target: CPU
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes; 12 images to train on, and 11 to validate, which no number of ranks divides."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, counts in (("train", (6, 6)), ("val", (6, 5))):
        for name, count in zip(("dark", "light"), counts, strict=True):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (30, 36, 3), np.uint8) // 2 + (40 if name == "light" else 0)
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{i}.png")
    (root / "recipe.yaml").write_text(RECIPE)
    return root


def run(images: Path, output: Path, ranks: int, *more: str, returncode: int = 0) -> str:
    """Trains on `ranks` CPU ranks; what it said."""
    recipe = str(images / "recipe.yaml")
    arguments = ["--output", str(output), f"--train.batch_size={TOGETHER // ranks}", *more]
    if ranks == 1:
        command = [sys.executable, str(ROOT / "train.py"), "--config", recipe, "--data_path", str(images), *arguments]
    else:
        script = str(ROOT / "scripts" / "run_distribute_train.sh")
        command = ["bash", script, str(images), recipe, str(ranks), *arguments]
    environment = os.environ | {"DEVICE_TARGET": "CPU", "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == returncode, done.stdout + done.stderr
    return done.stdout + done.stderr


def rows_of(output: Path) -> list[dict[str, float]]:
    with (output / "metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def assert_same(output: Path, other: Path) -> None:
    """Losses of every step, accuracies, weights and averages of two runs agree."""
    rows, expected = rows_of(output), rows_of(other)
    assert len(rows) == len(expected) == EPOCHS
    for row, wanted in zip(rows, expected, strict=True):
        for key in wanted.keys() - {"images_per_second", "seconds"}:
            assert row[key] == pytest.approx(wanted[key], abs=1e-5), key
    for name in ("last.ckpt", "state.ckpt"):
        wanted = read_checkpoint(other / name).weights
        for key, value in read_checkpoint(output / name).weights.items():
            np.testing.assert_allclose(value, wanted[key], atol=1e-5, err_msg=f"{name}: {key}")


@pytest.fixture(scope="module")
def alone(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("alone") / "run"
    run(images, output, 1)
    return output


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_equal_one_process_on_the_joined_batch(ranks: int, images: Path, alone: Path, tmp_path: Path) -> None:
    """Also of the validation: 11 images over 2 and 3 ranks, each counted once."""
    said = run(images, tmp_path / "run", ranks)
    assert f"{ranks} ranks" in said and f"of {TOGETHER} images" in said
    assert_same(tmp_path / "run", alone)


@contextlib.contextmanager
def broken(image: Path) -> Iterator[None]:
    """Cut short in the meantime."""
    content = image.read_bytes()
    image.write_bytes(content[:60])
    try:
        yield
    finally:
        image.write_bytes(content)


def test_a_job_that_broken_images_stop_goes_on_as_if_unbroken(images: Path, alone: Path, tmp_path: Path) -> None:
    """Both times the message names the cause. In validation all ranks end together, and rank 0 saves what was learnt,
    though rank 1 reads the image and no checkpoint is due; in training the launcher ends the others."""
    output = tmp_path / "run"
    with broken(images / "val" / "light" / "4.png"):
        said = run(images, output, 2, "--train.checkpoint_every_epochs=3", returncode=1)
    assert "4.png cannot be read" in said and "--resume goes on" in said
    metadata = read_checkpoint(output / "state.ckpt").metadata
    assert metadata["step"] == 1 and metadata["unfinished_epoch"]
    with broken(images / "train" / "dark" / "0.png"):
        said = run(images, output, 2, "--resume", "--train.checkpoint_every_epochs=3", returncode=1)
    assert "0.png" in said and "Traceback" not in said.split("0.png")[0]
    said = run(images, output, 2, "--resume")
    assert f"resuming after step 1 of {EPOCHS}" in said
    assert_same(output, alone)
