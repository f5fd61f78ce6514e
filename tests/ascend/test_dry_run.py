"""The dry run as users call it: the script, its report, what it refuses, and what it leaves behind."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ascend.simulated import Ascend
from dvt.cli.train import Compiled, _largest
from dvt.training.dry_run import first_error

ROOT = Path(__file__).parents[2]
RECIPE = """
model: {name: dvt_deit_small, image_size: 24, grid_sizes: [2], embed_dim: 16, depth: 1, num_heads: 2, mlp_hidden: 16}
data: {calibration_images: 2, workers: 1}
train: {epochs: 1, warmup_epochs: 0, cooldown_epochs: 0, batch_size: 2}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in ("train", "val"):
        for name in ("dark", "light"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for i in range(8 if part == "train" else 4):
                Image.new("RGB", (30, 30)).save(tmp_path / "images" / part / name / f"{i}.png")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def dry_run(
    folder: Path, cards: str, *options: str, images: str = "images", **variables: str
) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "scripts" / "run_distribute_train.sh")
    variables = {**os.environ, "DRY_RUN": "1", "PYTHON": sys.executable, "TMPDIR": str(folder), **variables}
    command = ["bash", script, images, "recipe.yaml", cards, "--output", "run", *options]  # relative, as users do
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_the_script_reports_and_leaves_nothing_behind(ascend: Ascend, folder: Path) -> None:
    done = dry_run(folder, "8", RANK_ID="3", DRY_RUN="largest")
    assert done.returncode == 0, done.stderr
    assert "rank 3 of 8 simulated Ascend card(s)" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("dvt_deit_small, amp_level O0, jit_level O0: compiled in ")
    assert any(line.split()[0] == "HCCL" and "AllReduce" in line for line in lines[2:])
    assert any(line.split()[0] == "aclnn" and "MatMul" in line for line in lines[2:])
    assert any(line.startswith("peak memory of a card at 2 images: 0.") and "of 60.0 GiB" in line for line in lines)
    assert re.match(r"largest batch that fits: \d{3,} images, \d+\.\d\d of 60\.0 GiB", lines[-5])
    assert lines[-4] == "Not checked, since nothing was computed:"
    assert {path.name for path in folder.iterdir()} == {"images", "recipe.yaml"}


@pytest.mark.slow
def test_blank_images_take_the_place_of_a_data_set(ascend: Ascend, folder: Path) -> None:
    shutil.rmtree(folder / "images")
    done = dry_run(folder, "64", "--jit_level", "O1", "--data.hold_out_calibration", "true", images="-")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "jit_level O1: compiled in " in lines[0]
    assert any(line.split()[0] == "fused" and "GraphKernel_" in line for line in lines[2:])
    assert "assumed without data.path: blank images of 1,000 classes, one step an epoch" in lines
    assert {path.name for path in folder.iterdir()} == {"recipe.yaml"}
    assert dry_run(folder, "64", images="-", DRY_RUN="0").returncode == 2


@pytest.mark.parametrize(
    ("start", "per_image", "fixed", "largest"),
    [(2, 100, 1000, 84), (128, 100, 1000, 84), (8, 0, 500, 2**14), (1, 6000, 3000, 1), (1, 6000, 5000, 0)],
    ids=["fits", "too large", "a tiny model", "one image", "none"],
)
def test_the_largest_batch_is_found_in_a_few_compiles(start: int, per_image: int, fixed: int, largest: int) -> None:
    asked = []

    def compiled(images: int) -> Compiled:
        asked.append(images)
        return Compiled(peak_bytes=fixed + per_image * images + images % 3, usable_bytes=9600)

    said = _largest(start, compiled(start), compiled)
    found = int(said.split()[4]) if largest else 0
    assert said.startswith("largest batch that fits: " if largest else "no batch fits, not even one of 1 images")
    assert max(1, largest - 8) <= max(1, found) <= max(1, largest) and len(asked) <= 5


def test_a_rank_outside_the_job_is_refused(folder: Path) -> None:
    done = dry_run(folder, "8", RANK_ID="8")
    assert done.returncode == 2
    assert "RANK_ID is 8; of 8 card(s) it must be 0 to 7" in done.stderr


def test_what_cannot_be_simulated_is_refused_at_once(folder: Path) -> None:
    done = dry_run(folder, "8", DEVICE_TARGET="CPU")
    assert done.returncode == 2
    assert "a dry run simulates Ascend cards, and --device_target is CPU" in done.stderr
    shutil.rmtree(folder / "images" / "train")
    done = dry_run(folder, "8")
    assert done.returncode == 2
    assert "images has no folder train/" in done.stderr and "dry run: rank" not in done.stderr


def test_the_first_error_has_its_place() -> None:
    own = ROOT / "src" / "dvt" / "training" / "loss.py"
    text = (
        "For OneHot on Ascend, if on_value is Int64 dtype, indices must be Int64\n\n----------\n- C++ Call Stack\n"
        f"# 0 In file {own}:45, 20~60\n  ops.one_hot(\n# 1 In file /site-packages/mindspore/ops/auto.py:10, 1~2\n"
    )
    said = first_error(ValueError(text))
    assert said == (
        "ValueError: For OneHot on Ascend, if on_value is Int64 dtype, indices must be Int64\n"
        "at dvt/training/loss.py, line 45"
    )
