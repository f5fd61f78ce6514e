"""Optional compiled CPU kernels (GELU, LayerNorm, softmax, biases, transposition); MindSpore's operators as fall-back.

The C++ source beside this file is compiled once per machine into the user's cache. Loading a library runs it: it must
be whole (its name ends in the hash of its content), nobody but this user and root may be able to change it, and a child
process tries it first. Models without it are built of MindSpore's operators, and results agree to float rounding.
"""

import functools
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dvt import device
from dvt.safe_files import only_ours, private_cache

SOURCE = Path(__file__).with_name("cpu_kernels.cc")
COMPILE_FLAGS = ("-O3", "-ffast-math", "-std=c++17", "-fPIC", "-pthread")
PROCESSOR_FLAGS = {  # by `platform.machine()`: compilers refuse those of another architecture
    "x86_64": ("-march=native", "-mprefer-vector-width=512"),
    "aarch64": ("-mcpu=native",),
}
COMMAND_SECONDS = 120
_TRIAL = """
import ctypes as c, sys
sys.tracebacklimit = 0
x, y, shape = (c.c_float * 64)(*range(64)), (c.c_float * 64)(), (c.c_int64 * 1)(64)
arrays, shapes = (c.c_void_p * 2)(*map(c.addressof, (x, y))), (c.c_void_p * 2)(*[c.addressof(shape)] * 2)
gelu = c.CDLL(sys.argv[1]).Gelu
sys.exit(gelu(2, arrays, (c.c_int * 2)(1, 1), shapes, (c.c_char_p * 2)(b"float32", b"float32"), None, None))
"""

SWITCH = "DVT_KERNELS"  # environment variable; for a single model there is `build_model(..., kernels=False)`

log = logging.getLogger(__name__)


def library() -> str | None:
    """Path of the compiled kernels, or None where models must do without them."""
    if os.environ.get(SWITCH) == "0" or device.current_target() != "CPU":
        return None
    return _compiled()


@functools.cache
def _compiled() -> str | None:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if compiler is None:
        log.info("no C++ compiler found: using MindSpore's own GELU and LayerNorm, which are slower")
        return None
    flags = COMPILE_FLAGS + PROCESSOR_FLAGS.get(platform.machine(), ())
    try:
        folder = private_cache("kernels")
        stem = f"cpu_kernels-{_fingerprint(compiler, flags)}"
        ours = (path for path in folder.glob(f"{stem}-*.so") if only_ours(path))
        path = next((path for path in ours if path.name == f"{stem}-{_hash(path)}.so"), None)
        if path is None:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                built = compile_library(compiler, flags, Path(scratch))
                path = folder / f"{stem}-{_hash(built)}.so"
                os.replace(built, path)  # whole or not at all, also when several processes compile
        _run(sys.executable, "-I", "-S", "-c", _TRIAL, path)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: there is no home folder
        output = (getattr(error, "stderr", None) or "").strip()
        log.warning("no compiled CPU kernels, using MindSpore's slower operators: %s", output[-300:] or error)
        return None
    return str(path)


def compile_library(compiler: str, flags: Sequence[str], folder: Path) -> Path:
    """Compiles the kernels into `folder`, in two steps: linking with -ffast-math would flush denormals in the whole
    process. Raises OSError or subprocess.SubprocessError."""
    objects, linked = folder / "kernels.o", folder / "kernels.so"
    _run(compiler, *flags, "-c", SOURCE, "-o", objects)
    _run(compiler, "-shared", "-pthread", objects, "-o", linked)
    linked.chmod(stat.S_IRWXU)
    return linked


def _run(*command: str | Path) -> str:
    how = {"check": True, "capture_output": True, "text": True, "errors": "replace", "timeout": COMMAND_SECONDS}
    return subprocess.run(command, **how).stdout


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _fingerprint(compiler: str, flags: Sequence[str]) -> str:
    """Of all that the library depends on: a home folder may be shared by machines of different processors."""
    parts = [SOURCE.read_text(), _run(compiler, "--version"), *flags, platform.machine()]
    processor = Path("/proc/cpuinfo")
    if processor.exists():
        named = ("flags", "model name", "Features", "CPU part")  # of x86-64, of aarch64
        parts += sorted({line for line in processor.read_text().splitlines() if line.startswith(named)})
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
