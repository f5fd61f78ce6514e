"""Where a job runs: machines, workers per machine, and the address at which they meet. Imports no MindSpore."""

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import dvt
from dvt.errors import ConfigError

PACKAGE = Path(dvt.__file__).parent
DEFAULT_PORT = 8118  # msrun's own

# What msrun sets for its workers; left over from an outer job, it would mislead them.
WORKER_VARIABLES = {"MS_ROLE", "MS_NODE_ID", "MS_SCHED_HOST", "MS_SCHED_PORT", "MS_WORKER_NUM"}
WORKER_VARIABLES |= {"RANK_ID", "RANK_SIZE", "DEVICE_ID"}


@dataclass(frozen=True)
class Placement:
    """The share of one machine in a job."""

    device_num: int  # workers on this machine, one per device; the same on every machine
    nnodes: int = 1  # machines
    node_rank: int = 0  # which of them this is; 0 also runs the scheduler, with which all workers register
    master_addr: str = "127.0.0.1"  # of machine 0
    master_port: int = DEFAULT_PORT  # of the scheduler there
    rank_table_file: Path | None = None  # of HCCL; None where it finds the devices itself
    cluster_timeout: int = 600  # seconds that workers wait for each other at the start
    bind_core: str | None = None  # of msrun: true, or JSON such as {"device0": ["0-3"]}

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("DEVICE_NUM", self.device_num, 1, math.inf),
            ("NNODES", self.nnodes, 1, math.inf),
            ("NODE_RANK", self.node_rank, 0, self.nnodes - 1),
            ("MASTER_PORT", self.master_port, 1024, 65535),
            ("CLUSTER_TIMEOUT", self.cluster_timeout, 1, math.inf),
        ):
            if not least <= value <= most:
                of = f"with NNODES={self.nnodes} " if name == "NODE_RANK" else ""
                needed = f"at least {least}" if most == math.inf else f"{least} to {most}"
                raise ConfigError(f"{name} is {value}; {of}it must be {needed}")

    @property
    def world_size(self) -> int:
        return self.nnodes * self.device_num

    @property
    def ranks(self) -> range:
        """Ranks of the workers on this machine."""
        return range(self.node_rank * self.device_num, (self.node_rank + 1) * self.device_num)

    @property
    def is_master(self) -> bool:
        """Whether this machine runs the scheduler."""
        return self.node_rank == 0

    def describe(self) -> str:
        """One line for logs."""
        if self.nnodes == 1:
            return f"{self.device_num} worker(s) on this machine, port {self.master_port}"
        return (
            f"ranks {self.ranks.start} to {self.ranks.stop - 1} of {self.world_size} on this machine "
            f"({self.node_rank} of {self.nnodes}), meeting at {self.master_addr}:{self.master_port}"
        )


def whole_number(environment: Mapping[str, str], name: str, default: int) -> int:
    """The whole number in variable `name`, `default` if it is unset or empty. Raises ConfigError for anything else."""
    value = environment.get(name) or default
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number") from None


def worker_environment(placement: Placement, device_target: str, interpreter: Path) -> dict[str, str]:
    """This process's environment, changed so that msrun starts `interpreter` and workers log without delay."""
    environment = {name: value for name, value in os.environ.items() if name not in WORKER_VARIABLES}
    # msrun looks up the interpreter in PATH.
    environment["PATH"] = os.pathsep.join([str(interpreter.parent), environment.get("PATH", os.defpath)])
    environment["PYTHONUNBUFFERED"] = "1"
    if device_target == "CPU":  # without a limit each worker would start a thread for every core of the machine
        cores = len(os.sched_getaffinity(0))
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // placement.device_num)))
    return environment


def bound_cores(device_num: int) -> str | None:
    """For `Placement.bind_core`: a share of the cores of this process for each of so many workers on the CPU, as each
    would start threads for all cores, which wait actively. None if there is one worker, too few cores, or no taskset.
    """
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // device_num
    if device_num == 1 or not share or shutil.which("taskset") is None:
        return None
    parts = (cores[start : start + share] for start in range(0, share * device_num, share))
    return json.dumps({f"device{n}": [f"{core}-{core}" for core in part] for n, part in enumerate(parts)})


def python_environment() -> dict[str, str]:
    """This process's environment, changed so that a Python started in it finds this package."""
    search = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(search)}
