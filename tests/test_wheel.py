"""scripts/smoke_wheel.sh: the wheel holds what the package needs, and works outside the checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dvt

ROOT = Path(__file__).parents[1]


def smoke(root: Path, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs the script of `root` from `folder`, without the paths that pytest sets."""
    command = ["bash", str(root / "scripts" / "smoke_wheel.sh"), *map(str, arguments)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, env=environment)


def test_help(tmp_path: Path):
    done = smoke(ROOT, tmp_path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: bash scripts/smoke_wheel.sh [--extra NAME | --reuse PYTHON] ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--extra"], "--extra needs a value"),
        (["--extra", "serve"], "--extra is 'serve'; it must be train or none"),
        (["--wheels", "x"], "unknown argument: --wheels"),
        (["--reuse", "/no/python"], "/no/python cannot be run"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: list[str], message: str):
    done = smoke(ROOT, tmp_path, *arguments)
    assert done.returncode == 2 and f"error: {message}" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(tmp_path: Path):
    before = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout
    done = smoke(ROOT, tmp_path, "--reuse", sys.executable, "--wheel-dir", "wheels")
    assert done.returncode == 0, done.stdout + done.stderr
    wheel = f"dvt_mindspore-{dvt.__version__}-py3-none-any.whl"
    assert done.stdout.endswith(f"{wheel} works.\n")
    assert "dvt train " in done.stdout and "dvt predict " in done.stdout
    assert [path.name for path in tmp_path.rglob("*")] == ["wheels", wheel]
    after = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout
    assert after == before


@pytest.mark.slow
def test_a_wheel_that_lacks_a_file_is_found_out(tmp_path: Path):
    copy, elsewhere = tmp_path / "copy", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("src", "scripts"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    line = '"dvt.report" = ["template.html"]\n'
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert line in settings
    (copy / "pyproject.toml").write_text(settings.replace(line, ""), encoding="utf-8")
    done = smoke(copy, elsewhere, "--reuse", sys.executable)
    assert done.returncode == 1
    assert "not in the wheel: ['report/template.html']" in done.stderr
