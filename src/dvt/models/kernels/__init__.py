"""Optional compiled CPU kernels (GELU, LayerNorm, softmax, biases, transposition); MindSpore's operators as fall-back.

The C++ source beside this file is compiled once per machine with the system's compiler into the user's cache. Nothing
depends on it: without a compiler, on Ascend and GPU, with DVT_KERNELS=0 and by `build_model(..., kernels=False)` models
are built of MindSpore's operators alone, and results agree to float rounding.
"""

import contextlib
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dvt import device

COMPILE_FLAGS = ("-O3", "-march=native", "-mprefer-vector-width=512", "-ffast-math", "-std=c++17", "-fPIC", "-pthread")
COMPILE_SECONDS = 120

SWITCH = "DVT_KERNELS"  # environment variable; 0 builds models without the kernels

log = logging.getLogger(__name__)


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Sets DVT_KERNELS=0 for the models built inside. For a single one there is `build_model(..., kernels=False)`."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SWITCH]
        else:
            os.environ[SWITCH] = before


def library() -> str | None:
    """Path of the compiled kernels, or None where models must do without them."""
    if os.environ.get(SWITCH) == "0" or device.current_target() != "CPU":
        return None
    return _compiled()


@functools.cache
def _compiled() -> str | None:
    source = Path(__file__).with_name("cpu_kernels.cc")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if compiler is None:
        log.info("no C++ compiler found: using MindSpore's own GELU and LayerNorm, which are slower")
        return None
    try:
        target = _cache_folder() / f"cpu_kernels-{_fingerprint(source, compiler)}.so"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            _compile(compiler, source, target)
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        log.warning("cannot compile the CPU kernels, using MindSpore's slower ones: %s", detail.strip()[-300:])
        return None
    return str(target)


def _compile(compiler: str, source: Path, target: Path) -> None:
    """Compiles and links in two steps: linking with -ffast-math would flush denormals in the whole process."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        objects, linked = Path(scratch) / "kernels.o", Path(scratch) / "kernels.so"
        for command in (
            [compiler, *COMPILE_FLAGS, "-c", str(source), "-o", str(objects)],
            [compiler, "-shared", "-pthread", str(objects), "-o", str(linked)],
        ):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS)
        os.replace(linked, target)  # whole or not at all, also when several processes compile


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dvt" / "kernels"


def _fingerprint(source: Path, compiler: str) -> str:
    """Of all that the library depends on: a home folder may be shared by machines of different processors."""
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, timeout=COMPILE_SECONDS).stdout
    parts = [source.read_bytes(), version, " ".join(COMPILE_FLAGS).encode(), platform.machine().encode()]
    flags = Path("/proc/cpuinfo")
    if flags.exists():
        parts += [line for line in flags.read_bytes().splitlines() if line.startswith((b"flags", b"model name"))][:2]
    return hashlib.sha256(b"\n".join(parts)).hexdigest()[:16]
