"""OpenVINO: decisions of the other backends in float32, thresholds of its own in bfloat16, and nothing that is sent."""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import bundles
import numpy as np
import onnx
import pytest

from dvt.deploy import Cascade, backends, export_bundle, remeasure
from dvt.deploy.manifest import read_manifest
from dvt.early_exit import ALWAYS, NEVER
from dvt.errors import BundleError, ConfigError, DeviceError

pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
SRC = Path(__file__).parents[2] / "src"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dvt"


@pytest.fixture
def measured(bundle: Path, photographs: np.ndarray, tmp_path: Path) -> Path:
    """A copy of the bundle with thresholds for bfloat16."""
    if not backends.has_bfloat16():
        pytest.skip("this processor does not compute in bfloat16")
    folder = shutil.copytree(bundle, tmp_path / "measured")
    remeasure(folder, "ONNX_BF16", photographs, Cascade(bundle).all_exits(photographs)[-1].argmax(axis=1))
    return folder


def test_it_decides_as_onnx_runtime(bundle: Path, photographs: np.ndarray, own_cache: Path):
    reference = Cascade(bundle)
    for cached in (False, True):  # compiled, and read from the cache
        assert bool(list(own_cache.glob("openvino-float32/*.blob"))) == cached
        cascade = Cascade(bundle, "openvino", threads=1)
        assert re.match(r"OpenVINO 20\S+, CPU, float32$", cascade.runs_on)
        for thresholds in [*reference.thresholds.values(), (ALWAYS,) * 3, (NEVER, NEVER, ALWAYS)]:
            expected, result = (each.predict(photographs, thresholds) for each in (reference, cascade))
            np.testing.assert_array_equal(result.exit_index, expected.exit_index)
            np.testing.assert_array_equal(result.labels, expected.labels)
            np.testing.assert_allclose(result.probabilities, expected.probabilities, atol=1e-4)
    assert {path.stat().st_mode & 0o077 for path in own_cache.iterdir()} == {0}


def test_several_threads_at_once(bundle: Path, photographs: np.ndarray):
    cascade = Cascade(bundle, "openvino")
    parts = [photographs[start : start + 7] for start in range(0, 140, 7)]
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(cascade.all_exits, parts))
    for part, result in zip(parts, results, strict=True):
        np.testing.assert_allclose(result, cascade.all_exits(part), atol=1e-5)


def test_bfloat16_has_thresholds_of_its_own(measured: Path, photographs: np.ndarray):
    exact, half = Cascade(measured), Cascade(measured, "openvino", precision="bfloat16")
    assert half.runs_on.endswith("CPU, bfloat16") and half.graph_format == "ONNX_BF16"
    assert list(half.thresholds) == list(exact.thresholds) and half.thresholds != exact.thresholds
    for name in exact.thresholds:
        before, after = (np.bincount(each.predict(photographs, name).exit_index) for each in (exact, half))
        assert np.abs(before - after).max() <= 4  # of 200; confidences differ by rounding with the batch
    deviation = np.abs(half.all_exits(photographs) - exact.all_exits(photographs))
    assert 1e-4 < deviation.max() < 0.1  # also where a file compiled for float32 lies in the cache
    graphs = read_manifest(measured).graphs
    assert graphs["ONNX_BF16"].precision == "bfloat16" and graphs["ONNX_BF16"].exits == graphs["ONNX"].exits
    found = graphs["ONNX_BF16"].details["measured"]
    assert min(found["same_class_per_exit"]) > 0.9 and len(found["accuracy_per_exit"]["this"]) == 3


def test_bfloat16_is_exported(tmp_path: Path, photographs: np.ndarray, graph_mode: None):
    if not backends.has_bfloat16():
        pytest.skip("this processor does not compute in bfloat16")
    options = {"thresholds": [0.5, 0.0], "calibration": (photographs[:20], None)}
    model = bundles.model(grid_sizes=(2, 4))
    export_bundle(model, tmp_path / "b", ["ONNX", "ONNX_BF16"], **options)
    thresholds = Cascade(tmp_path / "b", "openvino", precision="bfloat16").thresholds["default"]
    assert thresholds != Cascade(tmp_path / "b").thresholds["default"]
    export_bundle(model, tmp_path / "b", ["ONNX"], thresholds=[0.5, 0.0])  # the files that were measured are replaced
    with pytest.raises(BundleError, match=r"but not ONNX_BF16; make it with export.py --format ONNX,ONNX_BF16"):
        Cascade(tmp_path / "b", "openvino", precision="bfloat16")


def test_a_processor_without_bfloat16_runs_in_float32(
    measured: Path, photographs: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch
):
    (tmp_path / "cpuinfo").write_text("flags : avx2 fma")
    monkeypatch.setattr(backends, "PROCESSOR", tmp_path / "cpuinfo")
    for options in ({"precision": "bfloat16"}, {"graph_format": "ONNX_BF16"}):
        cascade = Cascade(measured, "openvino", **options)
        assert cascade.runs_on.endswith("CPU, float32") and cascade.thresholds == Cascade(measured).thresholds
        assert "this processor does not compute in bfloat16: running in float32" in caplog.text
    with pytest.raises(DeviceError, match="does not compute in bfloat16: measure"):
        remeasure(measured, "ONNX_BF16", photographs)
    with pytest.raises(DeviceError, match="does not compute in bfloat16: measure"):
        export_bundle(bundles.model(), tmp_path / "x", ["ONNX", "ONNX_BF16"], calibration=(photographs, None))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "onnxruntime", "precision": "bfloat16"}, "it must be float32, or bfloat16 with openvino"),
        ({"backend": "onnxruntime", "graph_format": "ONNX_BF16"}, "it must be float32, or bfloat16 with openvino"),
        ({"backend": "openvino", "precision": "int4"}, "precision is 'int4' for the openvino backend"),
        ({"backend": "openvino", "providers": ["CPU"]}, "the openvino backend has no execution providers"),
    ],
)
def test_options_that_do_not_fit(options: dict, message: str, bundle: Path):
    with pytest.raises(ConfigError, match=message):
        Cascade(bundle, **options)


def test_files_that_cannot_be_run(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = shutil.copytree(bundle, tmp_path / "copy")
    onnx.save(onnx.load(folder / "exit_0.onnx"), folder / "exit_0.onnx", save_as_external_data=True, location="w.bin")
    monkeypatch.chdir(folder)  # where OpenVINO would look for w.bin
    with pytest.raises(BundleError, match=r"cannot load .*exit_0.onnx: it names other files"):
        Cascade(folder, "openvino", verify=False)
    shutil.copy(folder / "exit_2.onnx", folder / "exit_0.onnx")
    with pytest.raises(BundleError, match=r"exit_0.onnx does not take and return what its manifest says"):
        Cascade(folder, "openvino", verify=False)
    (folder / "exit_0.onnx").write_bytes(b"\0" * 1000)
    with pytest.raises(BundleError, match=r"OpenVINO .* cannot load .*exit_0.onnx"):
        Cascade(folder, "openvino", verify=False)


def test_a_cache_that_others_could_change_is_not_used(bundle: Path, own_cache: Path, caplog: pytest.LogCaptureFixture):
    own_cache.parent.mkdir()
    own_cache.parent.chmod(0o777)
    Cascade(bundle, "openvino")
    assert "compiled models are not kept: other users could change" in caplog.text
    assert not list(own_cache.rglob("*.blob"))


def test_nothing_is_sent_and_no_consent_is_kept(bundle: Path, tmp_path: Path):
    """Importing OpenVINO reports that to its makers, unless a file in the home folder or CI says no."""
    code = (
        f"import sys; from dvt.deploy import Cascade; print(Cascade({str(bundle)!r}, 'openvino').runs_on)\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry') and sys.modules[name]]\n"
        "import openvino.tools.ovc.telemetry_utils as utils; assert 'stub' in utils.tm.__name__"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("CI", "TF_BUILD", "JENKINS_URL")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0 and done.stdout.startswith("OpenVINO"), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_an_interrupt_after_several_cascades_is_one(bundle: Path, photographs: np.ndarray, tmp_path: Path):
    """One core of OpenVINO serves all: else this is a segmentation fault on processors with AMX."""
    program = (
        "import signal, sys\nimport numpy as np\nfrom dvt.deploy import Cascade\n"
        "from dvt.signals import interrupt_on_signals\n"
        "first, second = (Cascade(sys.argv[1], 'openvino', threads=1) for _ in range(2))\n"
        "for cascade in (first, second):\n    cascade.predict(np.load(sys.argv[2]))\n"
        "del cascade, first, second\ninterrupt_on_signals()\nsignal.raise_signal(signal.SIGINT)"
    )
    np.save(tmp_path / "images.npy", photographs[:4])
    command = [sys.executable, "-c", program, str(bundle), str(tmp_path / "images.npy")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SRC)})
    assert "KeyboardInterrupt" in done.stderr and done.returncode == -2
