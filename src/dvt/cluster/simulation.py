"""A process whose Ascend is simulated: MindSpore compiles for it as for a card, and computes nothing (its "dry run").

The process must be started with the variables of `environment`; `device.set_up` does the rest. What MindSpore chose is
in the log that it then writes to standard error: `kernels_in` reads it. Imports no MindSpore.
"""

import functools
import importlib.util
import os
import re
from collections import Counter
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import yaml

from dvt.cluster import cann_stand_ins
from dvt.cluster.placement import WORKER_VARIABLES, python_environment
from dvt.errors import DeviceError

STEP_BEGINS = "the step begins"  # a line on standard error: kernels before it are not those of the step
LEVEL = "1"  # of MindSpore's simulation: memory is planned too; level 0 only compiles, levels 2 and 3 need a card

AICPU = "AICPU"  # the kind of operators that the slow processor beside the cores computes
_TABLE = yaml.safe_load((resources.files(__package__) / "simulation.yaml").read_text(encoding="utf-8"))
KINDS: dict[str, str] = _TABLE["kinds"]

_KERNEL = re.compile(r"kernel opname:(\w+), kernel type:(\w+)")
_MINDSPORE_LINE = re.compile(r"\[(INFO|WARNING|ERROR|CRITICAL)\] \w+\(\d+")
# MindSpore asks for these packages of CANN and needs neither in a dry run.
_NOISE = re.compile(r"No module named 'te'|whl package \"te\"|does not support mstx|Memory Adapter deinitialize")

Kernels = Counter[tuple[str, str]]
"""How often each (operator, kind of kernel) is launched, views included."""


def environment(folder: Path, cards: int = 1, rank: int = 0) -> dict[str, str]:
    """The variables of a process that is `rank` of so many simulated cards.

    CANN's own where this shell has it, else of stand-ins, which are made in `folder` within some 20 s. Raises
    DeviceError where neither is possible.
    """
    variables = python_environment()
    for name in WORKER_VARIABLES:
        variables.pop(name, None)
    if not has_cann(os.environ):
        for name, value in cann_stand_ins.make(folder).items():
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
    scripts = [path for path in Path("/usr/local/Ascend").glob("*/set_env.sh") if path.is_file()]
    if scripts:
        raise DeviceError(f"CANN is installed, but not set up in this shell: source {scripts[0]}, then run this again")
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
    """What a person wants to read of that log: neither MindSpore's messages of level INFO nor what is always there."""
    shown = []
    for line in log.splitlines():
        stamped = _MINDSPORE_LINE.match(line)
        if not (stamped and stamped[1] == "INFO") and not _NOISE.search(line):
            shown.append(line)
    return "\n".join(shown)
