"""What a simulated card needs, and what MindSpore's log says about it; compiling for one is tests/ascend."""

import platform
from pathlib import Path

import pytest

from dvt.cluster import simulation
from dvt.cluster.simulation import has_cann, kernels_in, usable_memory, without_chatter
from dvt.errors import DeviceError

CHOSEN = "[INFO] DEVICE(1,7f,python):2026-11-30-17:12:16.046.683 [ascend_kernel_executor.cc:175] GenerateKernelMod] "
LOG = f"""\
[CRITICAL] ME(1:2,MainProcess):2026-11-30-17:01:36.540.000 [_check_version.py:351] MindSpore relies on whl package "te"
{CHOSEN}kernel opname:RightShift, kernel type:acl_kernel
{CHOSEN}kernel opname:AddN, kernel type:acl_kernel
{CHOSEN}kernel opname:MatMul, kernel type:opapi_kernel
{CHOSEN}kernel opname:MatMul, kernel type:opapi_kernel
{CHOSEN}kernel opname:AllReduce, kernel type:hccl_kernel
Traceback (most recent call last):
MindSpore Used memory size: 61430M
"""


def test_kernels_by_kind():
    assert kernels_in(LOG) == {
        (
            "RightShift",
            "AICPU",
        ): 1,  # in MindSpore's table of the AICPU, and in no list of the cores
        ("AddN", "aclop"): 1,
        ("MatMul", "aclnn"): 2,
        ("AllReduce", "HCCL"): 1,
    }


def test_memory_and_what_a_person_reads():
    assert usable_memory(LOG) == 61430 * 2**20 and usable_memory("") == 0
    assert without_chatter(LOG) == "Traceback (most recent call last):\nMindSpore Used memory size: 61430M"


@pytest.mark.parametrize(
    ("machine", "version", "path", "said"),
    [
        ("aarch64", "2.10.0", None, "this is MindSpore 2.10.0 on aarch64: use a machine with CANN"),
        ("x86_64", "2.11.0", None, "tried with MindSpore 2.10.0 on x86_64, and this is MindSpore 2.11.0"),
        ("x86_64", "2.10.0", "/none", "ldd is missing"),
    ],
)
def test_where_there_are_no_stand_ins(
    machine: str, version: str, path: str | None, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(simulation, "version", lambda name: version)
    if path:
        monkeypatch.setenv("PATH", path)
    with pytest.raises(DeviceError) as refused:
        simulation.make_stand_ins(tmp_path)
    assert said in str(refused.value) and not list(tmp_path.iterdir())


def test_cann_of_the_shell_is_taken(tmp_path: Path):
    assert has_cann({"ASCEND_HOME_PATH": str(tmp_path)})
