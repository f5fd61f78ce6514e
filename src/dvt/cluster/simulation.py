"""A process whose Ascend is simulated: MindSpore compiles for it as for a card, and computes nothing (its "dry run").

The process is started with the variables of `environment`; `device.set_up` does the rest. What MindSpore chose is in
the log on standard error, which `kernels_in` reads. Imports no MindSpore.

On a machine without CANN, stand-ins for its libraries are made. MindSpore's Ascend back end asks for some thousand
functions when it is loaded, and for the result of none: each returns 0, an empty string or an empty object. Which ones
are missing is read from the installed MindSpore.
"""

import functools
import importlib.util
import os
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from importlib.metadata import version
from pathlib import Path

import yaml

from dvt.cluster.placement import WORKER_VARIABLES, python_environment
from dvt.errors import DeviceError

STEP_BEGINS = "the step begins"  # a line on standard error: kernels before it are not those of the step
LEVEL = "1"  # of MindSpore's simulation: memory is planned too; level 0 only compiles, levels 2 and 3 need a card

AICPU = "AICPU"  # the kind of operators that the slow processor beside the cores computes
_TABLE = yaml.safe_load((resources.files(__package__) / "simulation.yaml").read_text(encoding="utf-8"))
KINDS: dict[str, str] = _TABLE["kinds"]

_KERNEL = re.compile(r"kernel opname:(\w+), kernel type:(\w+)")
# Of level INFO, or about packages of CANN that MindSpore asks for and does not need in a dry run.
_NOISE = re.compile(r"^\[INFO\] |No module named 'te'|whl package \"te\"|does not support mstx|Adapter deinitialize")

TESTED = ("2.10.0",)  # versions of MindSpore that tests/ascend ran with
CANN_VERSION = "9.1.0"  # that this MindSpore asks for; another one makes it warn

_LIBRARY = "libstandin.so"
_LOADED_FIRST = ("plugin/libmindspore_ascend.so.2", "libmindspore_ge_backend.so")
# Loaded and looked up by name while the program runs, so that no list of needed libraries or symbols has them.
_LOADED_LATE = ("libacl_op_compiler.so", "libacl_tdt_channel.so", "libopapi.so", "libprofapi.so")
_NAMES_LOOKED_UP = re.compile(rb"\0((?:acl(?:nn|rt|tdt|mdl|op|prof)?|Hccl?|Msprof|rt)[A-Z]\w+)(?=\0)")

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
    r"aclrtGetSocName$": 'return "Ascend910B1";',  # the fused kernels of jit level O1 are made for it
    r"aclrtGetDeviceCount$": "*(unsigned *)a = 8; return 0;",
}

Kernels = Counter[tuple[str, str]]
"""How often each (operator, kind of kernel) is launched, views included."""


def environment(folder: Path, cards: int = 1, rank: int = 0) -> dict[str, str]:
    """The variables of a process that is `rank` of so many simulated cards: CANN's own where this shell has it, else of
    stand-ins, which are made in `folder` within some 20 s. Raises DeviceError where neither is possible."""
    variables = {name: value for name, value in python_environment().items() if name not in WORKER_VARIABLES}
    if not has_cann(os.environ):
        for name, value in make_stand_ins(folder).items():
            is_path = name in ("LD_LIBRARY_PATH", "PYTHONPATH")
            variables[name] = os.pathsep.join(filter(None, [value, variables.get(name)])) if is_path else value
    return variables | {
        "MS_SIMULATION_LEVEL": LEVEL,
        "RANK_SIZE": str(cards),
        "RANK_ID": str(rank),
        "MS_SUBMODULE_LOG_v": "{DEVICE:1}",  # the lines that name the kernels
        "MS_OM_PATH": str(folder),
    }


def has_cann(variables: Mapping[str, str]) -> bool:
    """Whether CANN can be used in this shell. Raises DeviceError where only its set_env.sh is missing."""
    homes = [variables.get(name) for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")]
    if any(home and Path(home).is_dir() for home in homes):
        return True
    for script in Path("/usr/local/Ascend").glob("*/set_env.sh"):
        raise DeviceError(f"CANN is installed, but not set up in this shell: source {script}, then run this again")
    return False


def kernels_in(log: str) -> Kernels:
    """The kernels that MindSpore made, from what the process wrote to standard error."""
    kernels = Kernels()
    for operator, word in _KERNEL.findall(log):
        kind = KINDS.get(word, word)
        if kind == "aclop" and operator in _aicpu_operators():
            kind = AICPU
        kernels[operator, kind] += 1
    return kernels


@functools.cache
def _aicpu_operators() -> set[str]:
    """The operators of which the installed MindSpore knows an AICPU kernel alone."""
    root = Path(importlib.util.find_spec("mindspore").submodule_search_locations[0])
    texts = (path.read_text(encoding="utf-8") for path in root.glob("ops/_op_impl/aicpu/*.py"))
    return {name for text in texts for name in re.findall(r'AiCPURegOp\("(\w+)"', text)} - set(_TABLE["on_cores"])


def usable_memory(log: str) -> int:
    """Bytes of the simulated card's memory that MindSpore uses, as it says when it ends; 0 if it does not."""
    said = re.search(r"MindSpore Used memory size: (\d+)M", log)
    return int(said[1]) * 2**20 if said else 0


def without_chatter(log: str) -> str:
    """What a person wants to read of that log."""
    return "\n".join(line for line in log.splitlines() if not _NOISE.search(line))


def make_stand_ins(folder: Path) -> dict[str, str]:
    """Makes the stand-ins below `folder`; returns the environment variables that lead MindSpore to them. Raises
    DeviceError where they cannot be made."""
    installed, machine = version("mindspore"), platform.machine()
    if machine != "x86_64" or installed not in TESTED:
        raise DeviceError(
            f"stand-ins for CANN were tried with MindSpore {', '.join(TESTED)} on x86_64, and this is MindSpore "
            f"{installed} on {machine}: use a machine with CANN, or one of these"
        )
    found, missing = _needed()
    names = _missing_functions(found)
    home = folder.absolute() / "cann"  # MindSpore looks for this word in the path
    libraries, packages = home / "lib64", home / "opp/built-in/op_impl/ai_core/tbe"
    for each in (libraries, home / "compiler", packages / "hccl"):
        each.mkdir(parents=True)
    code = ["#include <string.h>", "extern char _ZNSs4_Rep20_S_empty_rep_storageE[];"]
    for name, plain in zip(names, _run(["c++filt"], "\n".join(names)).splitlines(), strict=True):
        body = next((body for pattern, body in _EMPTY_OBJECTS.items() if re.match(pattern, plain)), "return 0;")
        code.append(f"void *{name}(void *a) {{ {body} }}")
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


def _needed() -> tuple[set[Path], set[str]]:
    """The libraries that MindSpore's Ascend back end loads, and the names of those that are nowhere here."""
    root = Path(importlib.util.find_spec("mindspore").submodule_search_locations[0])
    folders = {str(path.parent) for path in root.rglob("*.so*") if "gpu" not in path.parts}
    first = [root / "lib" / name for name in _LOADED_FIRST]
    listed = _run(["ldd", *map(str, first)], LD_LIBRARY_PATH=os.pathsep.join(folders))
    found = {Path(path).resolve() for path in [*first, *re.findall(r"(/\S+) \(0x", listed)]}
    return found, set(re.findall(r"(\S+) => not found", listed))


def _missing_functions(libraries: Iterable[Path]) -> list[str]:
    wanted, defined = set(), set()
    for line in _run(["nm", "-D", *map(str, libraries)]).splitlines():
        kind, _, name = line[17:].partition(" ")
        if kind == "U":
            wanted.add(name.partition("@")[0])
        elif kind not in "wv":
            defined.add(name.partition("@")[0])
    plugins = (library for library in libraries if "plugin" in library.parts)
    late = {name.decode() for library in plugins for name in _NAMES_LOOKED_UP.findall(library.read_bytes())}
    late |= {f"{name}GetWorkspaceSize" for name in late if name.startswith("aclnn")} | {"aclnnInit", "aclnnFinalize"}
    return sorted(name for name in (wanted - defined) | late if not re.match(r"_?Py", name))


def _run(command: Sequence[str], text: str | None = None, **variables: str) -> str:
    how = {"capture_output": True, "text": True, "check": True, "env": {**os.environ, **variables}}
    try:
        return subprocess.run(command, input=text, **how).stdout
    except FileNotFoundError:
        what = f"{command[0]} is missing, which makes stand-ins for CANN"
        raise DeviceError(f"{what}: apt-get install gcc binutils") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise DeviceError(f"stand-ins for CANN cannot be made: {command[0]} failed: {last}") from error
