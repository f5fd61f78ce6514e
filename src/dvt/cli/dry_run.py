"""`train.py --dry_run`: compiles the training step for simulated Ascend cards, and says what it asks of a card."""

import json
import logging
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dvt.cluster.placement import whole_number
from dvt.cluster.simulation import (
    STEP_BEGINS,
    Kernels,
    environment,
    has_cann,
    kernels_in,
    usable_memory,
    without_chatter,
)
from dvt.config.files import config_to_dict
from dvt.config.sections import RunConfig
from dvt.errors import ConfigError, DeviceError

GIB = 2**30
TRIES = 4  # to confirm the largest batch
ROUND_TO = 8  # images

NOT_CHECKED = """\
Not checked, since nothing was computed:
- whether the card has every kernel for these types and shapes, and its numbers: accuracy, overflow, mixed precision
- time: speed of a step, waiting for the AICPU and for other ranks, reading the data
- memory beyond the plan of the graph: workspace of kernels, HCCL's buffers, fragments; leave a fifth free"""

log = logging.getLogger("dvt.cli.dry_run")


@dataclass(frozen=True)
class Found:
    """What a compile came to.

    Attributes:
        seconds: To compile the graphs of a step.
        peak_bytes: Memory of a card that one step needs at most.
        usable_bytes: Memory that MindSpore takes of the card that it simulates.
        kernels: Those that a step launches.
    """

    seconds: float
    peak_bytes: int
    usable_bytes: int
    kernels: Kernels

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.usable_bytes


def run(config: RunConfig, variables: Mapping[str, str], cards: int | None = None, largest: bool = False) -> int:
    """Compiles for rank RANK_ID (0) of so many cards (RANK_SIZE, 1), and prints the report; the exit code.

    With `largest`, also looks for the largest batch that fits into a card's memory. Raises ConfigError for what no run
    could start with, and DeviceError where no card can be simulated.
    """
    config = _with_absolute_paths(config)
    cards = cards or whole_number(variables, "RANK_SIZE") or 1
    rank = whole_number(variables, "RANK_ID") or 0
    if not 0 <= rank < cards:
        raise ConfigError(f"RANK_ID is {rank}; of {cards} cards it must be 0 to {cards - 1}")
    origin = "CANN of this machine" if has_cann(variables) else "stand-ins for CANN"
    log.info("dry run: rank %d of %d simulated Ascend card(s), %s; compiling takes minutes", rank, cards, origin)
    with tempfile.TemporaryDirectory(prefix="dvt-dry-run-") as folder:
        child = environment(Path(folder), cards, rank)
        try:
            found = _compile(config, child, folder)
        except _CompileError as error:
            print(f"does not compile: {error}")
            return 1
        _print_report(config, found)
        if largest:
            _print_largest(config, found, lambda images: _compile(_with_batch(config, images), child, folder))
    print(NOT_CHECKED)
    return 0


class _CompileError(Exception):
    """MindSpore's first error, with its place."""


def _compile(config: RunConfig, variables: Mapping[str, str], folder: str) -> Found:
    """Compiles in a process of its own: MindSpore must find the variables when it is imported, and leaves files behind
    in the folder in which it runs."""
    done = subprocess.run(
        [sys.executable, "-m", "dvt.training.dry_run"],
        input=json.dumps(config_to_dict(config)),
        capture_output=True,
        text=True,
        errors="replace",
        env=dict(variables),
        cwd=folder,
    )
    lines = done.stdout.strip().splitlines()
    if not lines or not lines[-1].startswith("{"):
        last = "\n".join(without_chatter(done.stderr).splitlines()[-5:])
        raise DeviceError(f"the simulated card did not start, or ended by itself (code {done.returncode}): {last}")
    found = json.loads(lines[-1])
    if "refused" in found:
        raise ConfigError(found["refused"])
    if "error" in found:
        raise _CompileError(found["error"])
    kernels = kernels_in(done.stderr.partition(STEP_BEGINS)[2])
    return Found(found["seconds"], found["peak_bytes"], usable_memory(done.stderr), kernels)


def _print_report(config: RunConfig, found: Found) -> None:
    train = config.train
    print(f"compiled in {found.seconds:.0f} s: {config.model.name}, amp_level {train.amp_level}")
    by_kind: dict[str, Counter[str]] = {}
    for (operator, kind), count in found.kernels.items():
        by_kind.setdefault(kind, Counter())[operator] += count
    print("kernels of one step of the optimizer:")
    for kind, operators in sorted(by_kind.items()):
        named = ", ".join(f"{name} {count}" for name, count in operators.most_common(8))
        print(f"  {kind:8} {operators.total():6,}: {named}{', ...' * (len(operators) > 8)}")
    print(f"peak memory of a card at {train.batch_size} images: {_gib(found)}")
    if not found.fits:
        print("  too much: lower train.batch_size (and raise train.accumulation_steps), or set train.recompute")


def _gib(found: Found) -> str:
    share = found.peak_bytes / found.usable_bytes
    return f"{found.peak_bytes / GIB:.2f} of {found.usable_bytes / GIB:.1f} GiB ({share:.0%})"


def _print_largest(config: RunConfig, found: Found, compiled: Callable[[int], Found]) -> None:
    """The largest batch whose peak fits: memory grows in proportion to the images, so two compiles give a guess."""
    batch = config.train.batch_size
    other = max(1, batch // 2) if batch > 1 else 2
    per_image = (found.peak_bytes - compiled(other).peak_bytes) / (batch - other)
    fitting = int(batch + (found.usable_bytes - found.peak_bytes) / max(per_image, 1))
    for _ in range(TRIES):
        fitting = max(1, fitting - fitting % ROUND_TO if fitting > ROUND_TO else fitting)
        tried = compiled(fitting)
        if tried.fits:
            print(f"largest batch that fits: {fitting} images, {_gib(tried)}")
            return
        fitting -= ROUND_TO
    print(f"no batch of {fitting} images or more fits")


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    def absolute(path: str | None) -> str | None:
        return None if path is None else str(Path(path).expanduser().absolute())

    data = replace(config.data, path=absolute(config.data.path))
    train = replace(config.train, init_checkpoint=absolute(config.train.init_checkpoint))
    return replace(config, data=data, train=train)


def _with_batch(config: RunConfig, images: int) -> RunConfig:
    return replace(config, train=replace(config.train, batch_size=images))
