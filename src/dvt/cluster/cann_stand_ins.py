"""Stand-ins for the libraries of CANN, so that MindSpore's dry run of Ascend starts on a machine without CANN.

MindSpore's Ascend back end asks CANN's libraries for some thousand functions when it is loaded. In a dry run it calls
hardly any of them, and none for a result: each of the stand-ins returns 0, an empty string or an empty object. Which
libraries and functions are missing is read from the installed MindSpore. Imports no MindSpore.
"""

import importlib.util
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dvt.errors import DeviceError

TESTED = ("2.10.0",)  # versions of MindSpore that tests/ascend ran with
CANN_VERSION = "9.1.0"  # that this MindSpore asks for; another one makes it warn

_LIBRARY = "libstandin.so"
_LOADED_FIRST = ("plugin/libmindspore_ascend.so.2", "libmindspore_ge_backend.so")
# Loaded and looked up by name while the program runs, so that no list of needed libraries or symbols has them.
_LOADED_LATE = ("libacl_op_compiler.so", "libacl_tdt_channel.so", "libopapi.so")
_NAMES_LOOKED_UP = re.compile(rb"\0((?:acl(?:nn|rt|tdt|mdl|op|prof)?|Hccl?)[A-Z]\w+)(?=\0)")

# Functions of CANN's graph library `ge` that return an object: bytes of it, all zero, or an empty string.
_EMPTY_STRING = "*(char **)a = _ZNSs4_Rep20_S_empty_rep_storageE + 24; return a;"
_EMPTY_OBJECTS = {
    r"ge::(Operator::Get(Name|OpType)\(\) const|Graph::GetName\(\) const)": _EMPTY_STRING,
    r"ge::.*(GetOutputDesc|GetTensorDesc|Get(Origin)?Shape|GetCompiledGraphSummary)": "memset(a, 0, 16); return a;",
    r"ge::.*(GetDims|ControlNodes|PortIndexs|GetDirectNode|CreateOperator)": "memset(a, 0, 24); return a;",
    r"ge::Operator::Operator\(": "memset(a, 0, 24); return a;",
    r"ge::(AscendString|Graph|Tensor|TensorDesc|Shape)::\1\(": "memset(a, 0, 16); return a;",
    r"ge::(Operator|Graph)::(Set|AddControl)": "return a;",
    r"ge::AscendString::GetString": 'return "";',
    r"ge::StatusFactory::Instance\(\)": "static long m[16]; if (!m[3]) m[3] = m[4] = (long)&m[1]; return m;",
    r"aclrtGetDeviceCount$": "*(unsigned *)a = 8; return 0;",
}


def why_not() -> str | None:
    """What is missing here for stand-ins; None if they can be made."""
    try:
        installed = version("mindspore")
    except PackageNotFoundError:
        return "MindSpore is not installed: pip install 'dvt-mindspore[train]'"
    if platform.machine() != "x86_64" or installed not in TESTED:
        return (
            f"stand-ins for CANN were tried with MindSpore {', '.join(TESTED)} on x86_64, and this is MindSpore "
            f"{installed} on {platform.machine()}: use a machine with CANN, or one of these"
        )
    missing = [tool for tool in ("gcc", "readelf", "nm", "c++filt") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} is missing, of which stand-ins for CANN are made: apt-get install gcc binutils"
    return None


def make(folder: Path) -> dict[str, str]:
    """Makes the stand-ins below `folder` and returns the environment variables that lead MindSpore to them.

    Takes about 20 s. Raises DeviceError where they cannot be made.
    """
    problem = why_not()
    if problem:
        raise DeviceError(problem)
    home = folder.absolute() / "cann"  # MindSpore looks for this word in the path
    libraries, packages = home / "lib64", home / "opp/built-in/op_impl/ai_core/tbe"
    for each in (libraries, home / "compiler", packages / "hccl"):
        each.mkdir(parents=True)
    found, of_system, missing = _needed()
    names = _missing_functions(found, of_system)
    code = ["#include <string.h>", "extern char _ZNSs4_Rep20_S_empty_rep_storageE[];"]
    code += [
        f"void *{name}(void *a) {{ {_body(plain)} }}"
        for name, plain in zip(names, _run(["c++filt"], "\n".join(names)).splitlines(), strict=True)
    ]
    (home / "standin.c").write_text("\n".join(code) + "\n")
    options = ["-shared", "-fPIC", "-w", "-fno-builtin", "-l:libstdc++.so.6"]
    _run(["gcc", str(home / "standin.c"), "-o", str(libraries / _LIBRARY), *options])
    for name in {*missing, *_LOADED_LATE}:
        (libraries / name).symlink_to(_LIBRARY)
    (home / "compiler/version.info").write_text(f"Version={CANN_VERSION}\n")
    (packages / "hccl/__init__.py").write_text("")
    (packages / "hccl/sys_version.py").write_text(f"__sys_version__ = {CANN_VERSION!r}\n")
    return {
        "LD_LIBRARY_PATH": str(libraries),
        "ASCEND_HOME_PATH": str(home),
        "ASCEND_OPP_PATH": str(home / "opp"),
        "PYTHONPATH": str(packages),
    }


def _needed() -> tuple[list[Path], set[str], set[str]]:
    """The libraries of MindSpore and of the system that its Ascend back end loads, and the names of those that are
    nowhere here."""
    root = Path(importlib.util.find_spec("mindspore").submodule_search_locations[0])
    own = {path.name: path for path in root.rglob("*.so*") if "gpu" not in path.parts}
    listed = _run([shutil.which("ldconfig", path="/sbin:/usr/sbin") or "ldconfig", "-p"])
    system = dict(re.findall(r"^\s+(\S+) \(.*x86-64.*\) => (\S+)", listed, re.MULTILINE))
    found: dict[Path, None] = {}
    of_system: set[str] = set()
    missing: set[str] = set()
    rest = [root / "lib" / name for name in _LOADED_FIRST]
    while rest:
        library = rest.pop()
        if library in found:
            continue
        found[library] = None
        for name in re.findall(r"NEEDED.*\[(.*)\]", _run(["readelf", "-dW", str(library)])):
            if name in own:
                rest.append(own[name])
            elif name in system:
                of_system.add(system[name])
            elif not name.startswith("ld-linux"):
                missing.add(name)
    return list(found), of_system, missing


def _missing_functions(libraries: Sequence[Path], of_system: Iterable[str]) -> list[str]:
    """The functions that MindSpore's libraries ask for and none of them, nor of the system's, has."""
    wanted, defined = set(), set()
    for library in [*libraries, *of_system]:
        for line in _run(["nm", "-D", str(library)]).splitlines():
            kind, name = line.split()[-2:]
            if kind == "U":
                wanted.add(name.partition("@")[0])
            elif kind not in "wv":
                defined.add(name.partition("@")[0])
    plugins = (library for library in libraries if "plugin" in library.parts)
    late = {name.decode() for library in plugins for name in _NAMES_LOOKED_UP.findall(library.read_bytes())}
    late |= {f"{name}GetWorkspaceSize" for name in late if name.startswith("aclnn")} | {"aclnnInit", "aclnnFinalize"}
    return sorted(name for name in (wanted - defined) | late if not re.match(r"_?Py", name))


def _body(plain_name: str) -> str:
    """What the function does, in C; `plain_name` is its C++ name with the types of its parameters."""
    return next((body for pattern, body in _EMPTY_OBJECTS.items() if re.match(pattern, plain_name)), "return 0;")


def _run(command: Sequence[str], text: str | None = None) -> str:
    try:
        return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise DeviceError(f"stand-ins for CANN cannot be made: {command[0]} failed: {last}") from error
