"""`dvt doctor`: looks at the machine, part by part, and says what to do. Libraries are tried in processes of their own,
so that a broken one is a line of the answer."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import dvt
from dvt.cli.support import Parser
from dvt.cluster.placement import python_environment
from dvt.cluster.simulation import has_cann
from dvt.errors import DeviceError, reason_of
from dvt.safe_files import only_ours

SECONDS = 300  # that trying one library may take
SHARED_MIB = 256  # of /dev/shm for worker processes, each with a few batches
OK, TO_DO, NOT_HERE = "ok", "TO DO", "-"  # the last: nothing is wrong, but something optional is not here
NUMPY_1 = "exec(\"assert m.__version__ < '2', 'MindSpore needs a version below 2'\") or ''"
DEVICES = "__import__('dvt.device').device.available()"
MINDSPORE = "pip install 'dvt-mindspore[train]'; on Ascend and aarch64 the wheel of MindSpore's own site"
LIBRARIES = {  # package -> how messages call it, what is asked of the module `m`, what brings it, whether it is needed
    "numpy": ("NumPy", NUMPY_1, "pip install 'numpy<2'", True),
    "mindspore": ("MindSpore", DEVICES, MINDSPORE, True),
    "onnxruntime": ("ONNX Runtime", "m.get_available_providers()", "pip install 'dvt-mindspore[deploy]'", False),
    "openvino": ("OpenVINO", "m.Core().available_devices", "pip install 'dvt-mindspore[openvino]'", False),
    "torch": ("PyTorch", "m.version.cuda or 'CPU'", "pip install 'dvt-mindspore[convert]'", False),
}
RUNTIMES = ("onnxruntime", "openvino")  # `dvt.deploy` keeps them from reporting to their makers


@dataclass
class DoctorOptions:
    """Look at this machine: Python, MindSpore and its devices, kernels, runtimes, memory, CANN, caches; say what to do.
    Exit code 0: nothing to do; 1: something is.
    """


def run(argv: Sequence[str], prog: str) -> int:
    """The command."""
    Parser(prog, DoctorOptions).parse(argv)
    print(f"dvt-mindspore {dvt.__version__}, {platform.platform()}, {os.cpu_count()} CPUs")
    found = []
    for state, what, remedy in _findings():
        found.append(state)
        print(f"{state:<6}{what}", *([] if state == OK else [f"      {remedy}"]), sep="\n", flush=True)
    return 1 if TO_DO in found else 0


def _findings() -> Iterator[tuple[str, str, str]]:
    """State, what was found, and what to do unless it is ok."""
    state = OK if (3, 10) <= sys.version_info[:2] <= (3, 12) else TO_DO
    remedy = "MindSpore has wheels for Python 3.10 to 3.12: make an environment with one of these"
    yield state, f"Python {platform.python_version()}, {sys.executable}", remedy
    for package, (name, asked, remedy, needed) in LIBRARIES.items():
        first = "import dvt.deploy; " if package in RUNTIMES else ""
        said, error = _tried(f"{first}import {package} as m; print(m.__version__, {asked})")
        try:
            there = version(package)
        except PackageNotFoundError:
            there = None
        if error is None:
            simulated = ", a dry run" if package == "mindspore" and os.environ.get("MS_SIMULATION_LEVEL") else ""
            yield OK, f"{name}: {said.strip()}{simulated}", ""
            if package == "mindspore":
                yield _kernels()
        else:
            fault = f"{there} cannot be used: {error}" if there else "not installed"
            yield TO_DO if there or needed else NOT_HERE, f"{name}: {fault}", remedy
    free = shutil.disk_usage("/dev/shm").free / 2**20 if os.path.isdir("/dev/shm") else 0
    remedy = f"worker processes need {SHARED_MIB} MiB: docker run --shm-size 1g, or --data.worker_type thread"
    yield OK if free >= SHARED_MIB else TO_DO, f"shared memory: {free:,.0f} MiB free in /dev/shm", remedy
    cards = len(list(Path("/dev").glob("davinci[0-9]*")))
    try:
        remedy = "install CANN and source its set_env.sh; without cards `dvt train --dry_run` simulates them"
        state = OK if has_cann(os.environ) else TO_DO if cards else NOT_HERE
    except DeviceError as error:
        state, remedy = TO_DO, str(error)
    yield state, f"{'' if state == OK else 'no '}CANN in this shell, {cards} Ascend card(s) in /dev", remedy
    caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "dvt"
    for path in filter(Path.is_dir, (caches, *caches.glob("*"))):
        remedy = f"others could change what is run from there: chmod go-w {path}, and remove what is in it"
        yield OK if only_ours(path) else TO_DO, f"cache {path}, mode {path.stat().st_mode & 0o777:o}", remedy


def _kernels() -> tuple[str, str, str]:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if compiler is None or os.environ.get("DVT_KERNELS") == "0":
        why = "without a C++ compiler" if compiler is None else "with DVT_KERNELS=0"
        return NOT_HERE, f"CPU kernels: none {why}; models run without them, slower", "apt install g++, no DVT_KERNELS"
    said, error = _tried("from dvt.models import kernels; print(kernels.library()); assert kernels.library()")
    if error is None:
        return OK, f"CPU kernels: {said}", ""
    return TO_DO, f"CPU kernels: {compiler} does not make them; models run without", "set CXX to another compiler"


def _tried(code: str) -> tuple[str, str | None]:
    """The last line that `code` prints in another Python, and why it failed, or None."""
    how = {"capture_output": True, "text": True, "errors": "replace", "timeout": SECONDS, "env": python_environment()}
    try:
        done = subprocess.run([sys.executable, "-c", code], check=False, **how)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", reason_of(error)
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]
    return (done.stdout.splitlines() or [""])[-1], last if done.returncode else None
