"""scripts/test_matrix.sh, as far as it goes without making an environment."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "test_matrix.sh"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """One that holds nothing but the script, which works in the checkout that it lies in."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    return tmp_path


def run(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(checkout / "scripts" / SCRIPT.name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_help_makes_nothing(checkout: Path):
    done = run(checkout, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: bash scripts/test_matrix.sh [--mindspore VERSIONS] [--python VERSIONS] ")
    assert [path.name for path in checkout.iterdir()] == ["scripts"]


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (["--python", "three"], "--python is 'three'"),
        (["--python=3.11,"], "--python is '3.11,'"),
        (["--python", "3.11", "--mindspore", "latest"], "--mindspore is 'latest'"),
        (["--mindspore"], "--mindspore is ''"),
    ],
)
def test_wrong_versions_are_refused(arguments: list[str], given: str, checkout: Path):
    done = run(checkout, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {given}; it must be versions such as 3.10,3.11\n"
    assert [path.name for path in checkout.iterdir()] == ["scripts"]


def test_a_python_that_is_not_there_is_skipped_with_the_reason(checkout: Path):
    """No pair could run, which must not look like success."""
    done = run(checkout, "--mindspore=2.7.2,2.10.0", "--python", "9.9", "tests/config/test_config.py")
    assert done.returncode == 2
    rows = [line.split(maxsplit=2) for line in done.stdout.splitlines() if "skipped" in line]
    reason = "skipped: no Python 9.9 on the PATH or in pyenv"
    assert rows == [["2.7.2", "9.9", reason], ["2.10.0", "9.9", reason]]
    assert [path.name for path in (checkout / ".venvs").rglob("*")] == ["logs"]
