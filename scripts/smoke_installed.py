"""Tries an installed package from outside the checkout; scripts/smoke_wheel.sh runs it in a new environment.

Works in the current folder. ROOT is the checkout that the wheel was built from, of which the small checkpoint and the
list of files are used; WITH_MINDSPORE is empty where MindSpore is not to be used.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

import dvt

ROOT = Path(os.environ["ROOT"])
COMMANDS = ("train", "eval", "report", "thresholds", "predict", "export", "infer", "convert", "info")
MODEL = "name=dvt_deit_tiny image_size=32 grid_sizes=[2,4] embed_dim=16 depth=1 num_heads=2 mlp_hidden=32"


def run(*arguments: object, expected: int = 0) -> str:
    """Output of `dvt ARGUMENTS`; ends everything unless its exit code is `expected`."""
    command = ["dvt", *map(str, arguments)]
    print(f"  {' '.join(command)[:110]}", flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != expected:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def check_installation() -> None:
    installed, source = Path(dvt.__file__).parent, ROOT / "src" / "dvt"
    assert installed.is_relative_to(sys.prefix), f"{installed} is not in {sys.prefix}"
    assert version("dvt-mindspore") == dvt.__version__
    files = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    missing = [str(path) for path in files if "__pycache__" not in path.parts and not (installed / path).is_file()]
    assert not missing, f"not in the wheel: {sorted(missing)}"


def check_commands() -> None:
    assert run("--version") == f"dvt-mindspore {dvt.__version__}\n"
    described, listed = run("--help"), run("info")
    assert all(f"\n  {command} " in described for command in COMMANDS)
    assert all(name in listed for name in dvt.list_models())
    assert "5,717,416 parameters" in run("info", "dvt_deit_tiny", "--model.grid_sizes", "[14]")
    assert "--checkpoint is required" in run("predict", "image.png", expected=2)
    assert "mindspore" not in sys.modules


def check_models() -> None:
    for number, (split, label) in enumerate((s, c) for s in ("train", "val") for c in ("dark", "light")):
        folder = Path("images", split, label)
        folder.mkdir(parents=True)
        noise = np.random.default_rng(number).integers(0, 100, (8, 40, 40, 3), dtype=np.uint8)
        for index, pixels in enumerate(noise + np.uint8(150 * (label == "light"))):
            Image.fromarray(pixels).save(folder / f"{index}.png")
    model = [part for pair in MODEL.split() for part in (f"--model.{pair.split('=')[0]}", pair.split("=")[1])]
    data = ["--data_path", "images", "--data.calibration_images", 8, "--data.hold_out_calibration", "false"]
    train = ["--train.epochs", 2, "--train.warmup_epochs", 0, "--train.batch_size", 8, "--device_target", "CPU"]
    run("train", *model, *data, *train, "--output", "trained")
    store = ["--mode", 2, "--eval.store", "--output", "report"]
    evaluated = run("eval", "--checkpoint", "trained/last.ckpt", "--data_path", "images", *store)
    assert "recommended thresholds" in evaluated and Path("report/report.html").is_file()
    run("export", "--checkpoint", "trained/last.ckpt", "--format", "MINDIR", "--output", "bundle")
    assert "light/0.png" in run("infer", "bundle", "images/val", "--backend", "mindspore")
    checkpoint = ROOT / "checkpoints" / "quickstart.ckpt"
    said = run("predict", "images/val/dark/0.png", "--checkpoint", checkpoint, "--json").splitlines()
    answer = json.loads(next(line for line in said if line.startswith("{")))
    assert answer["exit"] in (1, 2, 3) and len(answer["classes"]) == 5, answer


if __name__ == "__main__":
    check_installation()
    check_commands()
    if os.environ["WITH_MINDSPORE"]:
        check_models()
