"""A process whose Ascend is simulated: MindSpore compiles for it as for a card, and computes nothing (its "dry run").

The process must be started with the variables of `environment`; `device.set_up` does the rest. What MindSpore chose is
in the log that it then writes to standard error: `kernels_in` reads it. Imports no MindSpore.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from dvt.cluster import cann_stand_ins
from dvt.cluster.placement import WORKER_VARIABLES, python_environment
from dvt.errors import DeviceError

LEVEL = "1"  # of MindSpore's simulation: memory is planned too; level 0 only compiles, levels 2 and 3 need a card

# How MindSpore launches a kernel, by the word in its log.
KINDS = {
    "opapi_kernel": "aclnn",  # CANN's present operators
    "acl_kernel": "aclop",  # its older ones; CANN decides whether a core of the card or the AICPU runs them
    "hccl_kernel": "HCCL",
    "rt_kernel": "view",  # another shape of the same memory: nothing is launched
    "internal_kernel": "internal",  # MindSpore's own
    "cpu_kernel": "host",
    "host_kernel": "host",
}
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
    return Counter((operator, KINDS.get(kind, kind)) for operator, kind in _KERNEL.findall(log))


def without_chatter(log: str) -> str:
    """What a person wants to read of that log: neither MindSpore's messages of level INFO nor what is always there."""
    shown = []
    for line in log.splitlines():
        stamped = _MINDSPORE_LINE.match(line)
        if not (stamped and stamped[1] == "INFO") and not _NOISE.search(line):
            shown.append(line)
    return "\n".join(shown)
