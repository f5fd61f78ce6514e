"""The whole chain of scripts/run_experiments.sh, trained and timed, in seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    places = ["--results", str(tmp_path / "results"), "--work", str(tmp_path / "work")]
    command = ["bash", str(ROOT / "scripts/run_experiments.sh"), *arguments, "--seeds", "0", *places]
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.slow
def test_an_interrupted_batch_goes_on_where_it_was(tmp_path: Path) -> None:
    """The second of two runs cannot write its results: what the first one left is not made again."""
    runs = tmp_path / "results" / "runs"
    (runs / "smoke_static-0.json").mkdir(parents=True)  # in the way
    done = run(tmp_path, "smoke")
    assert done.returncode == 2 and "smoke_static-0.json" in done.stderr
    first = (runs / "smoke-0.json").stat().st_mtime_ns
    (runs / "smoke_static-0.json").rmdir()

    done = run(tmp_path, "smoke")
    assert done.returncode == 0, done.stderr
    assert "smoke, seed 0: done before" in done.stderr
    assert (runs / "smoke-0.json").stat().st_mtime_ns == first
    record = json.loads((runs / "smoke_static-0.json").read_text())
    assert record["config"]["train"]["epochs"] == 1 and len(record["accuracy"]) == 1
    assert record["training_images"] == 320 and record["curve"][0]["loss_exit_0"] > 0
    claim = json.loads((tmp_path / "results" / "smoke.json").read_text())
    assert claim["seeds"] == [0] and (tmp_path / "results" / "smoke.png").stat().st_size > 5000
    assert (runs / "smoke-speed-0.json").is_file()
