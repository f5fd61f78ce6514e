"""What the tests of faults share: children that are killed, small file systems, a small training run."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dvt.checkpoint import read_checkpoint
from dvt.config.files import config_to_dict
from dvt.models.variants import model_config
from dvt.training.folder import RunFolder

MODEL = model_config("dvt_deit_small", num_classes=2)
NOBODY = 65534


def forked(work: Callable[[], None]) -> int:
    """Process id of a child that does `work`; it has imported all that this process has."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    """Exit code of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_after(work: Callable[[], None], seconds: float) -> int:
    """A child that does `work` gets SIGKILL after so long; its end."""
    pid = forked(work)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return ended(pid)


def save_step(folder: RunFolder, config: object, step: int, size: int = 50_000) -> None:
    """Saves weights and a state that hold nothing but `step`."""
    weights, state = (np.full(size, step, np.float32) for _ in range(2))
    metadata = {"model": MODEL, "config": config_to_dict(config), "step": step}
    folder.save_weights({"w": weights}, metadata)
    folder.save_state({"w": weights, "moment": state}, metadata)


def assert_step(path: Path, step: int) -> None:
    """The checkpoint `path` is the whole one of `step`."""
    checkpoint = read_checkpoint(path)
    assert checkpoint.metadata["step"] == step
    assert all((value == step).all() for value in checkpoint.weights.values())


def moments(count: int, longest: float) -> list[float]:
    """Random times up to `longest` seconds, the same in every run."""
    draw = random.Random(0)
    return [draw.uniform(0, longest) for _ in range(count)]


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own at `folder`, of `size` as mount's option; skips the test where none can be made."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("this process may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def make_pictures(root: Path) -> Path:
    """Two classes: 8 pictures to train on and 4 to validate, of each."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for brightness, name in enumerate(("dark", "light")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 128, (32, 32, 3)) + 127 * brightness
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.png")
    return root


def arguments(pictures: Path, output: Path, *more: str) -> list[str]:
    """Of `dvt train`: 3 epochs of 4 steps."""
    model = "name=dvt_deit_small image_size=24 grid_sizes=[2,3] embed_dim=16 depth=1 num_heads=2 mlp_hidden=16"
    train = "epochs=3 batch_size=4 warmup_epochs=0"
    return [
        *(f"--model.{each}" for each in model.split()),
        *(f"--train.{each}" for each in train.split()),
        "--data.workers=1",
        "--data.calibration_images=8",
        "--device_target=CPU",
        f"--data.path={pictures}",
        f"--output={output}",
        *more,
    ]
