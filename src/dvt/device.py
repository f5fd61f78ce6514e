"""The device of this process, and what the machine is.

`set_up` is called once per process, before the first tensor is made: MindSpore cannot change its device afterwards.
`dvt.cluster.ranks.Ranks.join` then joins the other ranks of a job.
"""

import contextlib
import ctypes
import logging
import os
import platform
import re
import tempfile
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import Tensor, _c_expression, nn

from dvt.errors import DeviceError, reason_of

# Best first; `auto` takes the first that is there.
TARGETS = ("Ascend", "GPU", "CPU")

# What a backend needs before MindSpore can see its devices.
NEEDS = {
    "Ascend": "the Ascend driver and firmware and the CANN version that fits this MindSpore; `npu-smi info` must list "
    "the cards, and CANN's set_env.sh must have been sourced in this shell",
    "GPU": "Linux with an NVIDIA driver, CUDA 11.6 (or 11.1) and cuDNN 8, CUDA_HOME set so that $CUDA_HOME/bin/nvcc "
    "exists, and CUDA's lib64 in LD_LIBRARY_PATH",
    "CPU": "nothing beyond MindSpore itself",
}

SIMULATED_CHIP = "ascend910b"  # of the Atlas 800T A2, in MindSpore's words

log = logging.getLogger(__name__)

GRAPH_LOCK = threading.Lock()
"""Held while a thread compiles or runs a MindSpore graph: two at a time crash the process (MindSpore 2.10, CPU)."""


@dataclass(frozen=True)
class Device:
    """The device of this process."""

    target: str  # "Ascend", "GPU" or "CPU"
    description: str  # one line for logs and reports


def available() -> dict[str, int]:
    """How many devices of each kind MindSpore can use here, best kind first; kinds without any are left out."""
    return {target: count for target in TARGETS if (count := _count(target))}


def resolve(device_target: str) -> str:
    """The target that `device_target` means on this machine, in any case; `auto` is the best one there is.

    Raises DeviceError for an unknown name or a device that is not there.
    """
    there = available()
    if not there:
        raise DeviceError(f"this MindSpore {ms.__version__} offers no device at all; reinstall it")
    known = {target.lower(): target for target in TARGETS} | {"auto": next(iter(there))}
    target = known.get(str(device_target).strip().lower())
    if target is None:
        raise DeviceError(f"unknown device {device_target!r}; choose one of {', '.join(TARGETS)} or auto")
    if target not in there:
        raise DeviceError(
            f"device {target} was asked for, but MindSpore {ms.__version__} finds only {', '.join(there)} here. "
            f"{target} needs {NEEDS[target]}. To go on with what is there, use --device_target {next(iter(there))}"
        )
    return target


def set_up(
    device_target: str = "auto",
    graph_mode: bool = True,
    deterministic: bool = False,
    jit_level: str = "auto",
) -> Device:
    """Choose the device (the card by DEVICE_ID) and the execution mode of this process.

    Args:
        device_target: Ascend, GPU, CPU or auto, in any case.
        graph_mode: Compile cells (fast), or run them op by op (PyNative, for debugging).
        deterministic: Take only operators whose results do not vary from run to run.
        jit_level: How far graphs are compiled, O0 or O1; auto leaves it to MindSpore.

    Raises DeviceError if the device is unknown, not there, or another one is already in use in this process.
    """
    target = resolve(device_target)
    # A compile that fails leaves its files there, else in the working directory.
    os.environ.setdefault("MS_OM_PATH", os.path.join(tempfile.gettempdir(), f"dvt-{uuid.uuid4().hex[:12]}"))
    if is_simulated() and target == "Ascend":
        log.warning("MS_SIMULATION_LEVEL is set: nothing is computed, and all results are zeros")
        _name_chip(SIMULATED_CHIP)
        jit_level = "O0" if jit_level == "auto" else jit_level  # MindSpore's own choice might need a card
    count = _count(target)
    chosen = _device_id(target, count)
    place = [target] if chosen is None else [target, chosen]
    try:
        ms.set_device(*place)
    except RuntimeError as error:
        # A process keeps its first device, also one that MindSpore chose; that may be the one asked for.
        if chosen is not None or current_target() != target:
            raise DeviceError(
                f"MindSpore cannot use {' '.join(map(str, place))} in this process: {reason_of(error)} A process keeps "
                f"its first device; {target} needs {NEEDS[target]}"
            ) from error
    ms.set_context(mode=ms.GRAPH_MODE if graph_mode else ms.PYNATIVE_MODE)
    if deterministic:
        ms.set_deterministic(True)
    if jit_level != "auto":
        ms.set_context(jit_config={"jit_level": jit_level})
    return Device(target, _describe(target, count, chosen or 0))


def ahead_of_time(cell: nn.Cell, *constants: bool) -> Callable[..., Any]:
    """`cell` as a function of inputs of one shape, compiled before it first runs; constants follow the inputs.

    The memory of the compiler is given back to the system in between. In PyNative mode nothing is compiled.
    """
    compiled = False

    def call(*inputs: Tensor) -> Any:
        nonlocal compiled
        if not compiled and ms.get_context("mode") == ms.GRAPH_MODE:
            cell.compile(*inputs, *constants)
            with contextlib.suppress(OSError, AttributeError):  # only glibc keeps what was freed, and has this
                ctypes.CDLL(None).malloc_trim(0)
        compiled = True
        return nn.Cell.__call__(cell, *inputs, *constants)

    return call


def current_target() -> str:
    """The device of this process, as MindSpore has it: "Ascend", "GPU" or "CPU"."""
    return ms.get_context("device_target")


def describe_machine() -> dict[str, str | int | float]:
    """Processor, cores, memory (GiB), system and versions of this machine, for reports: plain values for JSON."""
    return {
        "processor": _processor_name(),
        "cores": len(os.sched_getaffinity(0)),  # containers and taskset leave fewer than the machine has
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "mindspore": ms.__version__,
    }


def is_simulated() -> bool:
    """Whether this process is a dry run of MindSpore: Ascend is simulated, compiles, and computes nothing."""
    return bool(os.environ.get("MS_SIMULATION_LEVEL"))


def is_one_of_several() -> bool:
    """Whether this process was started as a rank of a job."""
    # msrun sets no MS_ROLE where it simulates.
    return "MS_ROLE" in os.environ or (is_simulated() and os.environ.get("RANK_SIZE", "1") != "1")


def _name_chip(name: str) -> None:
    """Tells MindSpore which chip to compile for, by its own C++, as nothing public does; a simulation knows none."""
    context = _c_expression.MSContext.get_instance()
    if context.get_ascend_soc_version():
        return
    try:
        core = ctypes.CDLL(str(Path(ms.__file__).parent / "lib/libmindspore_core.so"))
        text, shared_pointer = ctypes.c_void_p(), (ctypes.c_void_p * 2)()
        ctypes.CDLL("libstdc++.so.6")._ZNSsC1EPKcRKSaIcE(
            ctypes.byref(text), name.encode(), ctypes.byref(ctypes.c_char())
        )
        core._ZN9mindspore9MsContext11GetInstanceEv(ctypes.byref(shared_pointer))
        set_version = core._ZN9mindspore9MsContext22set_ascend_soc_versionERKSs
        set_version(ctypes.c_void_p(shared_pointer[0]), ctypes.byref(text))
    except (OSError, AttributeError) as error:
        raise DeviceError(f"this MindSpore {ms.__version__} does not say how to simulate an Ascend: {error}") from None


def _count(target: str) -> int:
    # `is_available` would log warnings for every backend that is missing; counting says the same quietly.
    try:
        return int(ms.hal.device_count(target)) or int(target == "Ascend" and is_simulated())
    except (ValueError, RuntimeError):
        return 0


def _device_id(target: str, count: int) -> int | None:
    """The environment's DEVICE_ID. None: MindSpore chooses, which hands the cards out itself under msrun."""
    given = "" if target == "CPU" or is_one_of_several() else os.environ.get("DEVICE_ID", "")
    if given and given not in map(str, range(count)):
        choices = "0" if count == 1 else f"0 to {count - 1}"
        raise DeviceError(f"DEVICE_ID is {given}, but this machine has {count} {target} device(s): {choices}")
    return int(given) if given else None


def _describe(target: str, count: int, device_id: int) -> str:
    if is_simulated() and target == "Ascend":
        return f"Ascend: a simulated {SIMULATED_CHIP}; nothing is computed"
    if target == "CPU":
        cores = len(os.sched_getaffinity(0))
        return f"CPU: {_processor_name()}, {cores} core{'s' * (cores > 1)}"
    try:
        name = ms.hal.get_device_name(device_id, target)
    except (ValueError, RuntimeError):
        name = "name unknown"
    return f"{target}: {name}, one of {count} here"


def _processor_name() -> str:
    with contextlib.suppress(OSError):
        named = re.search(r"^model name\s*:\s*(.*\S)", Path("/proc/cpuinfo").read_text(errors="replace"), re.M | re.I)
        if named:
            return named[1]
    return platform.processor() or platform.machine()
