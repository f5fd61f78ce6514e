"""Runners: every backend decides as the model does, on real images, and refuses what it cannot run."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import bundles
import numpy as np
import onnx
import onnxruntime
import pytest

from dvt import AdaptiveClassifier
from dvt.deploy import Cascade
from dvt.deploy.manifest import read_manifest
from dvt.early_exit import ALWAYS, NEVER
from dvt.errors import BundleError, ConfigError, DataError, DeviceError

SRC = Path(__file__).parents[2] / "src"


@pytest.fixture(scope="module")
def onnx_cascade(bundle: Path) -> Cascade:
    return Cascade(bundle)


def test_the_backends_agree_with_the_model(
    bundle: Path, onnx_cascade: Cascade, photographs: np.ndarray, graph_mode: None
):
    classifier = AdaptiveClassifier(bundles.model(), batch_sizes=[16])
    mindir = Cascade(bundle, "mindspore")
    taken = set()
    settings = [*onnx_cascade.thresholds.values(), (ALWAYS,) * 3, (NEVER, NEVER, ALWAYS)]
    for thresholds in settings:
        expected = classifier.predict(photographs, thresholds)
        for cascade in (onnx_cascade, mindir):
            result = cascade.predict(photographs, thresholds)
            np.testing.assert_array_equal(result.exit_index, expected.exit_index)
            np.testing.assert_array_equal(result.labels, expected.labels)
            np.testing.assert_allclose(result.probabilities, expected.probabilities, atol=1e-4)
        taken.add(tuple(np.bincount(expected.exit_index, minlength=3) > 5))
    assert (True, True, True) in taken


def test_settings_by_name(onnx_cascade: Cascade, photographs: np.ndarray):
    assert list(onnx_cascade.thresholds) == ["0.4", "0.1", "0.8"]
    default = onnx_cascade.predict(photographs)
    for name, thresholds in onnx_cascade.thresholds.items():
        named, given = onnx_cascade.predict(photographs, name), onnx_cascade.predict(photographs, thresholds)
        np.testing.assert_array_equal(named.exit_index, given.exit_index)
        if name == "0.4":
            np.testing.assert_array_equal(named.exit_index, default.exit_index)
        assert np.mean(named.exit_index == 0) == pytest.approx(float(name), abs=0.05)
    with pytest.raises(ConfigError, match=r"no thresholds '0.5'; it has: 0.4, 0.1, 0.8"):
        onnx_cascade.predict(photographs, "0.5")
    with pytest.raises(ConfigError, match="3 exits need shape"):
        onnx_cascade.predict(photographs, [0.5])


def test_all_exits_and_batches_of_any_size(onnx_cascade: Cascade, photographs: np.ndarray):
    expected = onnx_cascade.all_exits(photographs)
    assert expected.shape == (3, 200, 5)
    for count in (0, 1, 5, 17):
        result = onnx_cascade.predict(photographs[:count], (NEVER, ALWAYS, ALWAYS))
        assert result.probabilities.shape == (count, 5)
        np.testing.assert_allclose(result.probabilities, expected[1, :count], atol=1e-5)


def test_int8_uses_its_own_thresholds(bundle: Path, onnx_cascade: Cascade, photographs: np.ndarray):
    quantised = Cascade(bundle, graph_format="ONNX_INT8")
    assert list(quantised.thresholds) == list(onnx_cascade.thresholds)
    assert quantised.thresholds != onnx_cascade.thresholds
    for name in onnx_cascade.thresholds:
        before = np.bincount(onnx_cascade.predict(photographs, name).exit_index, minlength=3)
        after = np.bincount(quantised.predict(photographs, name).exit_index, minlength=3)
        assert np.abs(before - after).max() <= 4  # of 200; confidences differ by rounding with the batch
    graphs = read_manifest(bundle).graphs["ONNX_INT8"]
    assert graphs.precision == "int8"
    assert all(b"MatMulInteger" in (bundle / entry.file).read_bytes() for entry in graphs.exits)


def test_neither_mindspore_nor_training_is_imported(bundle: Path, photographs: np.ndarray, tmp_path: Path):
    np.save(tmp_path / "images.npy", photographs[:20])
    code = (
        "import sys, json\nsys.modules['mindspore'] = None\nimport numpy as np\nfrom dvt.deploy import Cascade\n"
        f"result = Cascade({str(bundle)!r}).predict(np.load({str(tmp_path / 'images.npy')!r}))\n"
        "bad = [m for m in sys.modules if m.startswith(('dvt.training', 'dvt.models.ca', 'dvt.early_exit.cl'))]\n"
        "assert not bad, bad\nprint(json.dumps(result.exit_index.tolist()))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == Cascade(bundle).predict(photographs[:20]).exit_index.tolist()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "mindspore"])
def test_a_missing_runtime_is_named(backend: str, bundle: Path):
    code = (
        f"import sys\nsys.modules[{backend!r}] = None\nfrom dvt.deploy import Cascade\nfrom dvt.errors import *\n"
        f"try:\n    Cascade({str(bundle)!r}, {backend!r})\nexcept DeviceError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert f"the {backend} backend needs" in done.stdout and "pip install" in done.stdout, done.stderr


def test_lite_without_lite(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(BundleError, match=r"but not LITE; make it with scripts/run_lite_convert.sh"):
        Cascade(bundle, "lite")
    from dvt.deploy.lite import register

    folder = shutil.copytree(bundle, tmp_path / "copy")
    for index in range(3):
        (folder / f"exit_{index}.ms").write_bytes(b"not of Lite")
    register(folder, "cpu")
    assert [entry.file for entry in read_manifest(folder).graphs["LITE"].exits] == [
        "exit_0.ms",
        "exit_1.ms",
        "exit_2.ms",
    ]
    monkeypatch.delenv("DVT_LITE_PYTHON", raising=False)
    with pytest.raises(DeviceError, match="or name a Python that has it with DVT_LITE_PYTHON"):
        Cascade(folder, "lite")
    monkeypatch.setenv("DVT_LITE_PYTHON", "/no/such/python")
    with pytest.raises(DeviceError, match="DVT_LITE_PYTHON=/no/such/python cannot be run"):
        Cascade(folder, "lite")
    monkeypatch.setenv("DVT_LITE_PYTHON", sys.executable)  # has no mindspore_lite either
    with pytest.raises(BundleError, match="No module named 'mindspore_lite'"):
        Cascade(folder, "lite")


def test_bundles_that_cannot_be_run(bundle: Path, tmp_path: Path, photographs: np.ndarray):
    with pytest.raises(
        ConfigError, match="unknown backend 'tensorrt'; choose from onnxruntime, openvino, mindspore, lite"
    ):
        Cascade(bundle, "tensorrt")
    with pytest.raises(
        BundleError, match="holds MINDIR, ONNX, ONNX_INT8, but not ONNX_FP8; make it with export.py --format"
    ):
        Cascade(bundle, graph_format="ONNX_FP8")
    folder = shutil.copytree(bundle, tmp_path / "copy")
    path = folder / "exit_1.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(BundleError, match=r"exit_1.onnx was altered"):
        Cascade(folder)
    Cascade(folder, "mindspore")  # its files are whole
    path.write_bytes(b"\0" * len(content))
    with pytest.raises(BundleError, match=r"ONNX Runtime .* cannot load .*exit_1.onnx"):
        Cascade(folder, verify=False)
    shutil.copy(folder / "exit_1.mindir", folder / "exit_2.mindir")
    with pytest.raises(BundleError, match=r"exit_2.mindir does not take and return what its manifest says"):
        Cascade(folder, "mindspore", verify=False)


def test_execution_providers(bundle: Path, photographs: np.ndarray):
    cascade = Cascade(bundle, providers=["CPU"])
    assert cascade.runs_on == f"ONNX Runtime {onnxruntime.__version__}, CPUExecutionProvider" == Cascade(bundle).runs_on
    assert len(cascade.predict(photographs[:2]).labels) == 2
    there = ", ".join(onnxruntime.get_available_providers())
    for name, full, remedy in (
        ("cann", "CANNExecutionProvider", "the package onnxruntime-cann brings it"),
        ("CUDAExecutionProvider", "CUDAExecutionProvider", "the package onnxruntime-gpu brings it"),
        ("Abacus", "AbacusExecutionProvider", "choose one of these"),
    ):
        if full in there:
            continue
        with pytest.raises(DeviceError, match=f"this ONNX Runtime has no {full}; it has {there}; {remedy}"):
            Cascade(bundle, providers=f"CPU, {name}")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            np.zeros((2, 3, 25, 24), np.float32),
            r"images have shape \(2, 3, 25, 24\); this model needs \(B, 3, 24, 24\)",
        ),
        (np.zeros((2, 3, 24, 24), np.uint8), "images are uint8; this model needs normalised floats"),
        (np.full((2, 3, 24, 24), np.nan, np.float32), "has NaN or infinite pixels"),
    ],
)
def test_images_that_do_not_fit(images: np.ndarray, message: str, onnx_cascade: Cascade):
    with pytest.raises(DataError, match=message):
        onnx_cascade.predict(images)


def test_a_bundle_without_thresholds(bundle: Path, tmp_path: Path, photographs: np.ndarray):
    folder = shutil.copytree(bundle, tmp_path / "copy")
    content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps({**content, "thresholds": {}}), encoding="utf-8")
    with pytest.raises(ConfigError, match="the bundle has no thresholds: give 3 numbers"):
        Cascade(folder).predict(photographs[:1])


def test_weights_outside_of_the_hashed_file_are_not_read(bundle: Path, tmp_path: Path):
    folder = shutil.copytree(bundle, tmp_path / "copy")
    onnx.save(onnx.load(folder / "exit_0.onnx"), folder / "exit_0.onnx", save_as_external_data=True, location="w.bin")
    assert (folder / "w.bin").exists()
    with pytest.raises(BundleError, match=r"cannot load .*exit_0.onnx"):
        Cascade(folder, verify=False)


def test_a_file_with_other_inputs_than_the_manifest_says(bundle: Path, tmp_path: Path):
    folder = shutil.copytree(bundle, tmp_path / "copy")
    shutil.copy(folder / "exit_2.onnx", folder / "exit_1.onnx")
    with pytest.raises(BundleError, match=r"exit_1.onnx does not take and return what its manifest says"):
        Cascade(folder, verify=False)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "writes"), [("onnxruntime", ["trace"]), ("openvino", ["cache", "trace"])])
def test_runtimes_look_up_no_host_and_write_no_identity(backend: str, writes: list[str], bundle: Path, tmp_path: Path):
    """As ONNX Runtime's official builds do from version 1.29 on, and OpenVINO does, but where CI is set."""
    if (strace := shutil.which("strace")) is None or find_spec(backend) is None:
        pytest.skip(f"strace or {backend} is not installed")
    environment = {key: value for key, value in os.environ.items() if key not in ("CI", "ORT_DISABLE_TELEMETRY")}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(SRC)}
    code = f"import time; from dvt.deploy import Cascade; Cascade({str(bundle)!r}, {backend!r}); time.sleep(1)"
    traced = [strace, "-f", "-qq", "-e", "trace=socket,connect", "-o", tmp_path / "trace", sys.executable, "-c", code]
    done = subprocess.run(traced, capture_output=True, text=True, timeout=300, env=environment, check=False)
    if "ptrace" in done.stderr and done.returncode:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()[-100:]}")
    assert done.returncode == 0, done.stderr
    assert "AF_INET" not in (tmp_path / "trace").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == writes
