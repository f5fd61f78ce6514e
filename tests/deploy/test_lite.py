"""MindSpore Lite for real: the wheel of the registry (2.0.0, Python 3.7) converts a bundle and runs it.

The wheel is installed once, into the user's cache. Where there is no Python 3.7, or no wheel to be had, these tests are
skipped.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import bundles
import numpy as np
import pytest

from dvt.deploy import Cascade, remeasure
from dvt.deploy.lite import PYTHON_VARIABLE
from dvt.deploy.manifest import read_manifest
from dvt.early_exit import ALWAYS, NEVER
from dvt.errors import BundleError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LITE = "mindspore-lite==2.0.0"


def find_python() -> str | None:
    """A Python 3.7 that runs: on the PATH, or one of pyenv's that is not selected."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for candidate in ["python3.7", *sorted(str(path) for path in pyenv.glob("3.7*/bin/python"))]:
        try:
            done = subprocess.run([candidate, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True)
        except OSError:
            continue
        if done.returncode == 0 and done.stdout.strip() == b"(3, 7)":
            return candidate
    return None


@pytest.fixture(scope="module")
def lite_python() -> str:
    """The interpreter of an environment that has mindspore_lite."""
    given = os.environ.get(PYTHON_VARIABLE)
    if given:
        return given
    python = find_python()
    if python is None:
        pytest.skip(f"Python 3.7, which {LITE} is for, is not installed (pyenv install 3.7)")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dvt" / "tests"
    environment = cache / LITE
    if not (environment / "complete").exists():
        shutil.rmtree(environment, ignore_errors=True)
        subprocess.run([python, "-m", "venv", environment], check=True)
        command = [environment / "bin" / "python", "-m", "pip", "install", "-q", LITE]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            pytest.skip(f"{LITE} cannot be installed: {done.stderr.strip()[-200:]}")
        (environment / "complete").touch()
    return str(environment / "bin" / "python")


@pytest.fixture(scope="module")
def converted(bundle: Path, lite_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundle, converted by the script for MindSpore Lite on the CPU."""
    folder = shutil.copytree(bundle, tmp_path_factory.mktemp("lite") / "bundle")
    command = ["bash", ROOT / "scripts" / "run_lite_convert.sh", folder, "cpu"]
    environment = {**os.environ, PYTHON_VARIABLE: lite_python, "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def lite(converted: Path, lite_python: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(PYTHON_VARIABLE, lite_python)
    with Cascade(converted, "lite") as cascade:
        yield cascade


def test_lite_decides_as_onnx_runtime(lite: Cascade, bundle: Path, photographs: np.ndarray):
    reference = Cascade(bundle)
    for thresholds in [*reference.thresholds.values(), (ALWAYS,) * 3, (NEVER, NEVER, ALWAYS)]:
        expected = reference.predict(photographs, thresholds)
        result = lite.predict(photographs, thresholds)
        np.testing.assert_array_equal(result.exit_index, expected.exit_index)
        np.testing.assert_array_equal(result.labels, expected.labels)
        np.testing.assert_allclose(result.probabilities, expected.probabilities, atol=1e-4)


def test_only_listed_batch_sizes_are_run(lite: Cascade, photographs: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    sizes = set()
    plain = lite._backend.run

    def noted(index: int, inputs: list[np.ndarray]) -> list[np.ndarray]:
        sizes.add(len(inputs[0]))
        return plain(index, inputs)

    monkeypatch.setattr(lite._backend, "run", noted)
    for count in (1, 3, 7, 18):
        lite.predict(photographs[:count])
    assert sizes == set(bundles.BATCH_SIZES)


def test_converted_files_are_in_the_manifest(converted: Path):
    graphs = read_manifest(converted).graphs["LITE"]
    assert [entry.file for entry in graphs.exits] == ["exit_0.ms", "exit_1.ms", "exit_2.ms"]
    assert graphs.details == {"target": "cpu", "converted_from": "ONNX"}


def test_thresholds_measured_with_lite_are_those_of_the_bundle(
    converted: Path, lite_python: str, photographs: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its numbers are those of float32, so as many images leave at each exit."""
    monkeypatch.setenv(PYTHON_VARIABLE, lite_python)
    folder = shutil.copytree(converted, tmp_path / "copy")
    settings = remeasure(folder, "LITE", photographs)
    assert list(settings) == list(read_manifest(folder).thresholds)
    before = Cascade(folder).predict(photographs)
    with Cascade(folder, "lite") as cascade:
        assert cascade.thresholds == {name: setting.values for name, setting in settings.items()}
        after = cascade.predict(photographs)
    assert np.mean(before.exit_index != after.exit_index) <= 0.01  # thresholds now lie on confidences of images


def test_more_threads_than_this_release_can(converted: Path, lite_python: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(PYTHON_VARIABLE, lite_python)
    with pytest.raises(
        BundleError, match=r"MindSpore Lite 2.0 computes small matrix products wrongly on more than one"
    ):
        Cascade(converted, "lite", threads=2)


def test_the_inference_script(converted: Path, lite_python: str, tmp_path: Path):
    from PIL import Image
    from sklearn.datasets import load_sample_images

    for index, picture in enumerate(load_sample_images().images):
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    rows = []
    for script, extra in (("run_infer_onnx.sh", []), ("run_infer_lite.sh", ["0"])):
        command = ["bash", ROOT / "scripts" / script, converted, tmp_path, *extra]
        environment = {**os.environ, PYTHON_VARIABLE: lite_python, "PYTHON": sys.executable}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        rows.append([line.split(",")[:3] + line.split(",")[4:] for line in done.stdout.splitlines()])
    assert rows[0] == rows[1] and len(rows[0]) == 3
