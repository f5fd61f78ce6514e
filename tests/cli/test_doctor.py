"""`dvt doctor` looks at this machine, and a broken or missing MindSpore is a line of its answer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dvt.cli import doctor

SOURCES = Path(doctor.__file__).parents[2]
COMMAND = [sys.executable, "-c", "import sys; from dvt.cli.start import dvt; sys.exit(dvt(['doctor']))"]


def doctor_says(path: list[Path], **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*path, SOURCES])), **variables}
    return subprocess.run(COMMAND, capture_output=True, text=True, env=environment, check=False)


def test_this_machine(tmp_path: Path):
    """Tests run here, so all that they need is fine."""
    (tmp_path / "dvt" / "kernels").mkdir(parents=True)
    (tmp_path / "dvt" / "kernels").chmod(0o777)
    done = doctor_says([], XDG_CACHE_HOME=str(tmp_path), DVT_KERNELS="0")
    lines = done.stdout.splitlines()
    assert any(line.startswith("ok    MindSpore: 2.") and "CPU" in line for line in lines), done
    assert any(line.startswith("ok    Python 3.") for line in lines)
    assert "-     CPU kernels: none with DVT_KERNELS=0; models run without them, slower" in lines
    assert f"TO DO cache {tmp_path}/dvt/kernels, mode 777" in lines and done.returncode == 1 and not done.stderr


@pytest.mark.parametrize("content", ["raise ImportError('libmindspore.so: cannot open')", "import os; os.abort()"])
def test_a_broken_mindspore_is_said(tmp_path: Path, content: str):
    for package in ("mindspore", "torch", "onnxruntime", "openvino"):  # the last three for speed
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(content if package == "mindspore" else "raise ImportError('x')")
    done = doctor_says([tmp_path], DVT_KERNELS="0")
    assert done.returncode == 1 and not done.stderr
    said = done.stdout.splitlines()
    line = next(line for line in said if "MindSpore:" in line)
    assert line.startswith("TO DO MindSpore: 2.") and "cannot be used" in line
    assert "pip install 'dvt-mindspore[train]'" in said[said.index(line) + 1]
    assert any("shared memory" in each for each in said)


def test_runtimes_report_nothing_to_their_makers(tmp_path: Path):
    """What `dvt.deploy` switches off is off where they are tried, too."""
    switches = {
        "onnxruntime": "import os\n__version__ = os.environ['ORT_DISABLE_TELEMETRY']\nget_available_providers = list",
        "openvino": "import sys, types\n__version__ = sys.modules['openvino_telemetry']\n"
        "Core = lambda: types.SimpleNamespace(available_devices=[])",
    }
    for package in ("mindspore", "torch", *switches):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(switches.get(package, "raise ImportError('x')"))
    said = doctor_says([tmp_path], DVT_KERNELS="0").stdout
    assert "ok    ONNX Runtime: 1 []\n" in said and "ok    OpenVINO: None []\n" in said


def test_what_is_missing_is_needed_or_optional(monkeypatch: pytest.MonkeyPatch):
    def missing(package: str) -> str:
        raise doctor.PackageNotFoundError

    monkeypatch.setattr(doctor, "version", missing)
    monkeypatch.setattr(doctor, "_tried", lambda code: ("", "ModuleNotFoundError"))
    states = {what.partition(":")[0]: state for state, what, _ in doctor._findings()}
    assert states["NumPy"] == states["MindSpore"] == doctor.TO_DO
    assert states["PyTorch"] == states["OpenVINO"] == doctor.NOT_HERE
