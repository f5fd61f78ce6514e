"""Feeds damaged files to a reader and watches it: `run_fuzz`. For POSIX systems.

The reader runs in a forked child. What it may do with a case is to return, or to raise one of the exceptions allowed.
Another exception, a crash, more time than `CASE_SECONDS` or more memory than `MEMORY_BYTES` is a failure: its case is
written to a file, with a text that says how to make it again, and a new child goes on with the next one.
"""

import mmap
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fuzz.mutations import mutated

CASE_SECONDS = 10.0
MEMORY_BYTES = 10**9
MOST_FAILURES = 10
"""Failures after which a run ends early."""
POLL_SECONDS = 0.02
REPORT_FOLDER = Path("runs/fuzz")
LONGEST_REASON = 8000
"""Characters kept of a traceback; what a child writes must fit its pipe."""


@dataclass(frozen=True)
class Failure:
    """One case that the reader did not survive.

    Args:
        case: Its number.
        reason: What happened: a traceback, or one line.
        file: Where its bytes were written; the text beside it has the same name with .txt.
    """

    case: int
    reason: str
    file: Path


@dataclass
class FuzzOutcome:
    """What a run has found.

    Args:
        seed: Of the run.
        cases: How many were run; they are the first ones of the seed.
        read: Those that the reader made something of.
        refused: Those for which it raised an exception allowed.
        seconds: Of the whole run.
        slowest: Seconds that the slowest case took.
        peak_bytes: Memory taken by the child beyond what it began with, at the worst.
        failures: All others.
    """

    seed: int
    cases: int = 0
    read: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    peak_bytes: int = 0
    failures: list[Failure] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: {self.cases:,} cases in {self.seconds:.0f} s; {self.read:,} read, {self.refused:,}"
            f" refused, {len(self.failures)} failed; slowest {self.slowest:.2f} s, peak {self.peak_bytes / 1e6:.0f} MB"
        ]
        lines += [f"case {each.case} ({each.file}): {each.reason.strip().splitlines()[-1]}" for each in self.failures]
        return "\n".join(lines)


class _Progress:
    """Numbers that the child writes and the parent reads, in memory that both share."""

    NAMES = ("case", "started", "read", "refused", "slowest", "resident", "finished")

    def __init__(self) -> None:
        self._values = np.frombuffer(mmap.mmap(-1, 8 * len(self.NAMES)), np.float64)

    def __getitem__(self, name: str) -> float:
        return float(self._values[self.NAMES.index(name)])

    def __setitem__(self, name: str, value: float) -> None:
        self._values[self.NAMES.index(name)] = value


def run_fuzz(
    target: Callable[[bytes], None],
    corpus: list[bytes],
    allowed: tuple[type[BaseException], ...],
    seconds: float,
    seed: int,
    *,
    case_seconds: float = CASE_SECONDS,
    memory_bytes: int = MEMORY_BYTES,
    report_folder: Path = REPORT_FOLDER,
) -> FuzzOutcome:
    """Runs the cases 0, 1, 2, ... of a seed until the time is up.

    Args:
        target: Reads one file, given as its bytes.
        corpus: Good files to damage; they must be read without an exception.
        allowed: What the target may raise.
        seconds: How long.
        seed: Fixes all cases; see `fuzz.mutations.mutated`.
        case_seconds: Longest time for one case.
        memory_bytes: Most memory for one case, beyond what this process holds.
        report_folder: Where failures are written.

    Raises:
        AssertionError: A file of the corpus is not read.
    """
    for number, data in enumerate(corpus):
        try:
            target(data)
        except allowed as error:
            raise AssertionError(f"file {number} of the corpus must be readable, but: {error}") from error
    outcome = FuzzOutcome(seed)
    progress = _Progress()
    began = time.monotonic()
    while time.monotonic() < began + seconds and len(outcome.failures) < MOST_FAILURES:
        first = outcome.cases
        progress["case"], progress["started"], progress["finished"] = first, time.monotonic(), 0

        def work(first: int = first) -> None:
            _run_cases(target, corpus, allowed, seed, first, began + seconds, progress, memory_bytes)

        reason = _watched(work, progress, case_seconds, outcome)
        number = int(progress["case"])
        if progress["finished"]:
            outcome.cases = number
            break
        outcome.cases = number + 1
        data = mutated(corpus, seed, number)
        outcome.failures.append(Failure(number, reason, _report(report_folder, target, seed, number, data, reason)))
    outcome.read, outcome.refused = int(progress["read"]), int(progress["refused"])
    outcome.slowest, outcome.seconds = progress["slowest"], time.monotonic() - began
    return outcome


def _run_cases(
    target: Callable[[bytes], None],
    corpus: list[bytes],
    allowed: tuple[type[BaseException], ...],
    seed: int,
    first: int,
    deadline: float,
    progress: _Progress,
    memory_bytes: int,
) -> None:
    """The child's work; raises what makes a case fail."""
    resident, mapped = _memory_of_this_process()
    progress["resident"] = resident
    # Only a net for allocations that would harm the machine: many readers turn a refusal of memory into an error of
    # their own, which would hide that they asked for it. The limit itself is compared with what was used.
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 4 * memory_bytes,) * 2)
    number = first
    while time.monotonic() < deadline:
        data = mutated(corpus, seed, number)
        progress["started"] = time.monotonic()
        progress["case"] = number
        try:
            target(data)
        except allowed:
            progress["refused"] += 1
        else:
            progress["read"] += 1
        progress["slowest"] = max(progress["slowest"], time.monotonic() - progress["started"])
        used = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
        if used > memory_bytes:
            raise MemoryError(f"{used / 1e6:.0f} MB were used; {memory_bytes / 1e6:.0f} MB are allowed")
        number += 1
    progress["case"], progress["finished"] = number, 1


def _memory_of_this_process() -> tuple[int, int]:
    """Bytes resident and bytes of address space."""
    mapped, resident, *_ = Path("/proc/self/statm").read_text().split()
    page = resource.getpagesize()
    return int(resident) * page, int(mapped) * page


def _watched(work: Callable[[], None], progress: _Progress, case_seconds: float, outcome: FuzzOutcome) -> str:
    """Runs `work` in a forked child and returns why it ended; empty: it was done."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            work()
        except BaseException:
            os.write(writer, traceback.format_exc()[-LONGEST_REASON:].encode())
        finally:
            os._exit(0)  # nothing of what the parent does at its end
    os.close(writer)
    hung = False
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() - progress["started"] > case_seconds and not hung:
            hung = True
            os.kill(child, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    # Of the child: what it shares with this process is not counted there until it is used.
    outcome.peak_bytes = max(outcome.peak_bytes, 1024 * usage.ru_maxrss - int(progress["resident"]))
    with os.fdopen(reader, encoding="utf-8", errors="replace") as pipe:
        reason = pipe.read()
    if hung:
        return f"not done after {case_seconds:g} s"
    if os.WIFSIGNALED(status):
        return f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return reason or ("" if progress["finished"] else "the reader ended the process")


def _report(folder: Path, target: Callable[[bytes], None], seed: int, number: int, data: bytes, reason: str) -> Path:
    """Writes a failing case and what it did; the file with its bytes."""
    name = getattr(target, "__name__", type(target).__name__)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}-seed{seed}-case{number}.bin"
    file.write_bytes(data)
    how = f"fuzz.mutations.mutated(corpus, seed={seed}, number={number})"
    file.with_suffix(".txt").write_text(f"{name}: {how}, {len(data)} bytes\n{reason}\n", encoding="utf-8")
    return file
