"""Commands of the documentation run as they stand there.

A block of a page runs if the line before its fence is `<!-- run -->`. Blocks of one page run in one shell, in a folder
of their own that looks like the checkout and holds what the commands take as given: pictures and checkpoints.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^<!-- run -->\n```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CHECKOUT = ("benchmarks", "config", "docs", "eval.py", "examples", "export.py", "scripts", "src", "train.py")
CLASSES = ("cat", "dog", "owl")

# What pages name that is neither in the checkout nor made by their commands.
CHECKPOINTS = ("checkpoints/quickstart.ckpt", "runs/mine/last.ckpt", "last.ckpt", "CHECKPOINT")
PICTURES = ("photo.jpg", "FILE_OR_FOLDER/a.jpg", "DATA_PATH/a.jpg")
ELSEWHERE = {"/data/imagenet_records": "records", "/data/imagenet": "FOLDER"}
BEFORE_PYTHON = {
    "certified.md": """
import numpy as np
confidence, cost, labels = np.random.default_rng(0).random((2, 1000)), np.array([1.0, 2.0]), np.arange(1000) % 2
predicted = np.stack([labels, labels])
""",
    "deployment.md": """
import types, dvt
model, loaded = dvt.from_pretrained("CHECKPOINT")
splits = types.SimpleNamespace(**loaded.metadata)
files = ["photo.jpg"]
""",
    "files.md": "import dvt",
    "README.md": "import numpy as np\nimages = np.zeros((2, 1, 54, 54), np.float32)",
}


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, commands) of what a page marks."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def shell(page: Path) -> str:
    """The marked blocks of a page as one script of the shell."""
    script, before = "", BEFORE_PYTHON.get(page.name, "")
    for language, body in blocks(page):
        script += f"python - <<'END_OF_BLOCK'\n{before}\n{body}END_OF_BLOCK\n" if language == "python" else body
    for name, stand_in in ELSEWHERE.items():
        script = script.replace(name, stand_in)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = script.replace("serve.py bundle", f"serve.py bundle --port {port}")
    return script.replace("127.0.0.1:8000", f"127.0.0.1:{port}")


@pytest.fixture(scope="module")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped one, evaluated on few images."""
    from dvt.checkpoint.native import read_checkpoint, save_checkpoint

    shipped = read_checkpoint(ROOT / "checkpoints" / "quickstart.ckpt")
    shipped.metadata["config"]["data"] |= {"val_images": 300, "calibration_images": 1000}
    file = tmp_path_factory.mktemp("checkpoint") / "small.ckpt"
    save_checkpoint(file, shipped.weights, shipped.metadata)
    return file


@pytest.fixture
def scratch(tmp_path: Path, small_checkpoint: Path) -> Path:
    """A folder that looks like the checkout, with what commands take as given."""
    for name in CHECKOUT:
        (tmp_path / name).symlink_to(ROOT / name)
    for name in CHECKPOINTS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(small_checkpoint, tmp_path / name)
    photographs = [f"FOLDER/{part}/{name}/{i}.jpg" for part in ("train", "val") for name in CLASSES for i in range(20)]
    rng = np.random.default_rng(0)
    for name in (*PICTURES, *photographs):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


@pytest.fixture
def environment(tmp_path_factory: pytest.TempPathFactory, scratch: Path) -> dict[str, str]:
    """`python` and `dvt` are those that run this test; `pip` has nothing to do."""
    programs = tmp_path_factory.mktemp("bin")
    lines = {"python": sys.executable, "dvt": f"{sys.executable} -m dvt.cli.start", "pip": "true"}
    lines["curl"] = f"{shutil.which('curl')} --fail-with-body"
    for name, line in lines.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {line} "$@"\n')
        (programs / name).chmod(0o755)
    paths = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHON": sys.executable, "PYTHONPATH": f"{scratch / 'src'}"}
    return os.environ | paths


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_marked_commands_run(page: Path, scratch: Path, environment: dict[str, str]):
    script = shell(page)
    if "curl" in script and not shutil.which("curl"):
        pytest.skip("curl is not installed")
    # `timeout` ends all that was started; a service in the background ends with the shell.
    command = ["timeout", "1200", "bash", "-euxo", "pipefail", "-c", f"trap 'kill $(jobs -p) || true' EXIT\n{script}"]
    done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"


def test_every_marker_is_in_front_of_a_block():
    assert [page.name for page in PAGES if page.read_text("utf-8").count("<!-- run") != len(blocks(page))] == []
    assert sum(len(blocks(page)) for page in PAGES) >= 10
