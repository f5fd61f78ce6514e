"""A bundle where it is deployed: in an environment without MindSpore, and a full-size cascade on every backend."""

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import bundles
import numpy as np
import pytest
import recipe

from dvt.convert import load_reference_state_dict, reference_shapes
from dvt.deploy import Cascade, export_bundle
from dvt.models.cascade import build_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

RUN = """
import importlib.util, json, sys
import numpy as np
assert importlib.util.find_spec("mindspore") is None
from dvt.deploy import Cascade
images = np.load(sys.argv[2])
result = Cascade(sys.argv[1]).predict(images)
print(json.dumps({"exit_index": result.exit_index.tolist(), "probabilities": result.probabilities.tolist()}))
"""

MEASURE = r"""
import re, sys
from pathlib import Path
import numpy as np
from dvt.deploy import Cascade
cascade = Cascade(sys.argv[1])
images = np.random.default_rng(0).standard_normal((8, 3, 224, 224), dtype=np.float32)
for _ in range(3):
    cascade.predict(images, (1e8, 1e8, 0))
# Not getrusage: a child starts with the peak of its parent there.
print(int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1)) * 1024)
"""


def test_an_environment_without_mindspore(bundle: Path, photographs: np.ndarray, tmp_path: Path):
    source = tmp_path / "source"  # pip leaves what it builds beside the sources
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    command = [python, "-m", "pip", "install", "-q", f"{source}[deploy]"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    np.save(tmp_path / "images.npy", photographs)
    command = [python, "-c", RUN, str(bundle), str(tmp_path / "images.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    result, expected = json.loads(done.stdout), Cascade(bundle).predict(photographs)
    assert result["exit_index"] == expected.exit_index.tolist()
    np.testing.assert_allclose(result["probabilities"], expected.probabilities, atol=1e-5)


def export_full_size(name: str, folder: Path, formats: list[str]) -> Path:
    """A model of full size with the weights of the recipe, the head enlarged so that confidences spread."""
    model = build_model(name)
    tensors = recipe.weights(reference_shapes(model.config), model.config.tokenizer)
    load_reference_state_dict(model, {key: 6 * value if "head" in key else value for key, value in tensors.items()})
    export_bundle(model, folder, formats)
    return folder


def test_a_full_size_cascade_on_200_photographs(tmp_path: Path, graph_mode: None):
    folder = export_full_size("dvt_t2t_vit_12", tmp_path, ["MINDIR", "ONNX"])
    images = bundles.photographs(200, 224)
    onnx, mindir = Cascade(folder), Cascade(folder, "mindspore")
    parts = [images[start : start + 8] for start in range(0, 200, 8)]  # MindSpore needs 0.5 GB per image
    probabilities = np.concatenate([onnx.all_exits(part) for part in parts], axis=1)
    assert np.ptp(probabilities.max(axis=2)) > 0.3
    for share in (0.2, 0.5):
        thresholds = bundles.thresholds(probabilities, share)
        left = np.zeros(3, int)
        for part in parts:
            result, expected = onnx.predict(part, thresholds), mindir.predict(part, thresholds)
            np.testing.assert_array_equal(result.exit_index, expected.exit_index)
            np.testing.assert_array_equal(result.labels, expected.labels)
            np.testing.assert_allclose(result.probabilities, expected.probabilities, atol=1e-4)
            left += np.bincount(result.exit_index, minlength=3)
        assert (left > 10).all()


def test_the_largest_cascade_needs_less_than_1_5_gigabytes(tmp_path: Path, graph_mode: None):
    folder = export_full_size("dvt_deit_small", tmp_path, ["ONNX"])
    command = [sys.executable, "-c", MEASURE, str(folder)]
    environment = {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1.5e9
