"""Devices: what is there is found, what is not is refused with names and needs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from dvt import device
from dvt.errors import DeviceError

SRC = Path(__file__).parents[1] / "src"


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A device is chosen once per process, so everything that chooses one runs in its own."""
    environment = {**os.environ, "PYTHONPATH": str(SRC), **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)


def test_the_cpu_is_always_there_and_comes_last():
    there = device.available()
    assert there["CPU"] == 1
    assert list(there) == [target for target in device.TARGETS if target in there]


def test_names_are_taken_in_any_case():
    assert device.resolve("cpu") == device.resolve("CPU") == device.resolve(" Cpu ") == "CPU"
    assert device.resolve("AUTO") == next(iter(device.available()))


@pytest.mark.parametrize("target", ["Ascend", "GPU"])
def test_a_device_that_is_not_there_names_those_that_are_and_its_needs(target: str):
    if target in device.available():
        pytest.skip(f"this machine has {target}")
    with pytest.raises(DeviceError) as refused:
        device.resolve(target.lower())
    message = str(refused.value)
    assert f"device {target} was asked for" in message
    assert f"finds only {', '.join(device.available())} here" in message
    assert device.NEEDS[target] in message
    assert "--device_target" in message


def test_an_unknown_device_names_the_choices():
    with pytest.raises(DeviceError, match="unknown device 'TPU'; choose one of Ascend, GPU, CPU or auto"):
        device.resolve("TPU")


def test_a_device_id_outside_the_machine_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DEVICE_ID", "3")
    with pytest.raises(DeviceError, match=r"DEVICE_ID is 3, but this machine has 1 Ascend device\(s\): 0"):
        device._device_id("Ascend", 1)
    assert (device._device_id("Ascend", 4), device._device_id("CPU", 1)) == (3, None)


def test_set_up_takes_the_cpu_and_is_quiet():
    code = (
        "import mindspore as ms\n"
        "from dvt import device\n"
        "chosen = device.set_up('cpu', graph_mode=False)\n"
        "assert ms.get_context('mode') == ms.PYNATIVE_MODE\n"
        "assert device.set_up('CPU').target == 'CPU'\n"
        "assert ms.get_context('device_target') == 'CPU' and ms.get_context('mode') == ms.GRAPH_MODE\n"
        "assert chosen.target == 'CPU' and chosen.description.startswith('CPU: ')"
    )
    done = run_python(code, DEVICE_ID="7")  # DEVICE_ID is for cards
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_a_failed_compile_leaves_nothing_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = (
        "import numpy as np, mindspore as ms\n"
        "from dvt import device\n"
        "device.set_up('CPU')\n"
        "@ms.jit\n"
        "def wrong(x):\n"
        "    return ms.ops.reshape(x, (7, 7))\n"
        "wrong(ms.Tensor(np.ones((2, 3), np.float32)))\n"
    )
    script = tmp_path / "work" / "wrong.py"  # MindSpore reads the source of what it compiles
    script.parent.mkdir()
    script.write_text(code)
    monkeypatch.chdir(script.parent)
    monkeypatch.delenv("MS_OM_PATH", raising=False)
    done = run_python("import runpy; runpy.run_path('wrong.py')", TMPDIR=str(tmp_path))
    assert "analyze_fail.ir" in done.stderr and done.returncode == 1
    assert {path.name for path in script.parent.iterdir()} == {"wrong.py"}
    assert list(tmp_path.glob("dvt-*/rank_0/om/analyze_fail.ir"))


def test_options_of_the_execution_mode_are_taken_quietly():
    code = (
        "from dvt import device\n"
        "from dvt.cluster.ranks import ALONE, Ranks\n"
        "device.set_up('CPU', deterministic=True, jit_level='O0')\n"
        "assert Ranks.join() == ALONE"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_the_machine_is_described_in_plain_values():
    machine = device.describe_machine()
    assert json.loads(json.dumps(machine)) == machine
    assert machine["cores"] >= 1
    assert machine["memory_gib"] > 0
    assert machine["processor"]
    assert set(machine) == {"processor", "cores", "memory_gib", "system", "python", "mindspore"}


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
def test_a_cell_compiled_ahead_of_time_answers_as_before(mode: int) -> None:
    before = ms.get_context("mode")
    ms.set_context(mode=mode)
    try:
        cell = nn.Dense(3, 2)
        run = device.ahead_of_time(cell)
        for value in (1.0, 2.0):
            x = Tensor(np.full((4, 3), value, np.float32))
            np.testing.assert_array_equal(run(x).asnumpy(), cell(x).asnumpy())
    finally:
        ms.set_context(mode=before)
