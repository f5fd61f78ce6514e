"""The launcher: `python -m dvt.cli.launch [--device_num N] -- [train.py arguments]` (scripts/run_distribute_train.sh).

Checks what can be checked before the start, runs msrun, shows the log of the first worker of this machine, and after a
failure names the error that came first. Exit codes are those of all commands, but 128 + N when stopped by signal N.
"""

import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from dvt.cli import train
from dvt.cli.support import Parser, run_command
from dvt.cluster import preflight
from dvt.cluster.diagnosis import earliest_error, report
from dvt.cluster.job import Job
from dvt.cluster.placement import DEFAULT_PORT, Placement, bound_cores, whole_number, worker_environment
from dvt.errors import ConfigError
from dvt.training.folder import RunFolder
from dvt.value_checks import bounds

PROGRAM = "python -m dvt.cli.launch"
CARDS = 8  # of a machine that is simulated, by default
ATTEMPTS = 3  # to start
CPU_WORKERS = 2  # by default: a machine has one CPU device, which any number of workers may share

log = logging.getLogger("dvt.cli.launch")  # run with -m, __name__ is another, which would not be shown


@dataclass
class LaunchOptions:
    """Train on several devices with msrun.

    Args:
        device_num: Devices of this machine; by default all, on the CPU 2 workers.
    """

    device_num: int | None = field(default=None, metadata=bounds(1, 4096))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one job from its checks to its end and returns the exit code."""
    return run_command(_launch, sys.argv[1:] if argv is None else argv)


def _launch(argv: list[str]) -> int:
    end = argv.index("--") if "--" in argv else len(argv)
    train_arguments = argv[end + 1 :]
    text = "Variables: NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT, RANK_TABLE_FILE, CLUSTER_TIMEOUT (seconds), "
    text += "BIND_CORE (see msrun --bind_core); scripts/run_distribute_train.sh -h explains them."
    usage = "%(prog)s [--device_num N] -- [train.py arguments]"
    device_num = Parser(PROGRAM, LaunchOptions, usage=usage, epilog=text).parse(argv[:end])[0].device_num
    options, config = train.parse(train_arguments, "train.py")
    if options.dry_run:
        cards = (device_num or CARDS) * whole_number(os.environ, "NNODES", 1)
        return train.dry_run(config, os.environ, cards, options.largest_batch)
    counts = preflight.count_devices()
    target = config.device_target
    if target == "auto":
        target = config.device_target = next(iter(counts), "CPU")
    devices = CPU_WORKERS if target == "CPU" else counts.get(target, 1)
    placement = placement_from(os.environ, device_num or devices)
    if target == "CPU" and not placement.bind_core:
        placement = replace(placement, bind_core=bound_cores(placement.device_num))
    environment = worker_environment(placement, target, Path(sys.executable))
    preflight.check(placement, config, counts, environment["PATH"])
    with RunFolder.opened(config, placement.is_master):
        pass  # refuses one that holds a run or in which one is under way, and to resume where there is none
    log.info("%s: %s", target, placement.describe())
    log.info("%s", ", ".join(f"{name} {number}" for name, number in preflight.versions().items()))
    if shutil.which("ip") is None:
        log.warning("`ip` (package iproute2) is missing: msrun then guesses this machine's address from its routes")
    log.info("fingerprint of code, configuration and versions: %06x", preflight.fingerprint(config))
    command = [*train_command(), *train_arguments, f"--device_target={target}"]
    return run(command, placement, Path(config.output), environment)


def run(command: Sequence[str], placement: Placement, output: Path, environment: Mapping[str, str]) -> int:
    """Runs `command`, a Python script with its arguments, as a job; reports its end and returns the exit code.

    The logs go to a new folder below `output`/logs. A start that MindSpore's scheduler spoils by chance is repeated on
    one machine; several machines would have to repeat it together.
    """
    for attempts_left in reversed(range(ATTEMPTS if placement.nnodes == 1 else 1)):
        log_dir = new_log_dir(output, placement)
        log.info("logs of all workers: %s", log_dir)
        outcome = Job(command, placement, log_dir, environment).run()
        if outcome.signal_number is not None:
            print(f"stopped; all workers have ended. Their logs are in {log_dir}", file=sys.stderr)
            return 128 + outcome.signal_number
        if outcome.succeeded:
            return 0
        first = earliest_error(outcome.logs)
        if not attempts_left or not (first and first.known and first.known.name == "registered twice"):
            break
        log.warning("MindSpore's scheduler took a worker for a second one of the same rank; starting again")
    print(report(outcome.logs, str(log_dir), placement.nnodes), file=sys.stderr)
    return 1


def placement_from(environment: Mapping[str, str], device_num: int) -> Placement:
    """The placement that the variables NNODES, NODE_RANK, MASTER_ADDR and so on describe. Raises ConfigError."""
    nnodes = whole_number(environment, "NNODES", 1)
    address, table = environment.get("MASTER_ADDR"), environment.get("RANK_TABLE_FILE")
    if nnodes > 1 and not (environment.get("NODE_RANK") and address):
        raise ConfigError(
            f"NNODES is {nnodes}: NODE_RANK (0 to {nnodes - 1}, another on each machine) and MASTER_ADDR (the address "
            "of machine 0, the same everywhere) are needed too"
        )
    port = DEFAULT_PORT if nnodes > 1 else preflight.free_port()  # of one machine no other needs to know it
    return Placement(
        device_num=device_num,
        nnodes=nnodes,
        node_rank=whole_number(environment, "NODE_RANK", 0),
        master_addr=address or "127.0.0.1",
        master_port=whole_number(environment, "MASTER_PORT", port),
        rank_table_file=Path(table).absolute() if table else None,
        cluster_timeout=whole_number(environment, "CLUSTER_TIMEOUT", 600),
        bind_core=environment.get("BIND_CORE") or None,
    )


def train_command() -> list[str]:
    """The Python script that trains, with its first arguments: train.py of the checkout, or the installed command."""
    script = preflight.PACKAGE.parents[1] / "train.py"
    if script.is_file():
        return [str(script)]
    return [str(Path(sys.executable).parent / "dvt"), "train"]


def new_log_dir(output: Path, placement: Placement) -> Path:
    """A new folder below `output`/logs, named after the time and, with several machines, after this one."""
    machine = f"-node{placement.node_rank}" if placement.nnodes > 1 else ""
    folder = (output / "logs" / f"{datetime.now():%Y%m%d-%H%M%S-%f}{machine}").absolute()
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
