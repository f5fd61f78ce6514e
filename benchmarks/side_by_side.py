"""Cases measured in turn, each in a process of its own: noise hits all alike, and a peak of memory belongs to one case.

The parent starts one worker per case. A worker prepares its case, answers with one line of JSON, and then runs the
case once for every line it reads, answering with the seconds it took; at the end of its input it answers with the
largest resident set of its life.
"""

import json
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

import numpy as np

REPETITIONS = 5  # of each product in a round: the first comes after another process had the caches
MATMUL_SHAPES = ((1576, 384, 1152), (1576, 384, 1536), (1576, 1536, 384), (2048, 2048, 2048), (4096, 1024, 1024))


class Worker:
    """One case in its process: `prepared` is what it said of its preparation."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.prepared = json.loads(self._answer())
        self.seconds: list[float] = []

    def run(self) -> None:
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.seconds.append(float(self._answer()))

    def peak_gib(self) -> float:
        """Ends the case."""
        self._process.stdin.close()
        peak = float(self._answer())
        self._process.wait()
        return peak

    def median(self) -> float:
        return float(np.median(self.seconds))

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> str:
        # A framework may print to stdout as well; answers are marked.
        for line in self._process.stdout:
            if line.startswith("ANSWER "):
                return line.removeprefix("ANSWER ")
        raise SystemExit(f"the measured process ended early (exit code {self._process.wait()}); what it said is above")


def serve(prepared: Mapping[str, object], run: Callable[[], float]) -> int:
    """The worker's side: `run`, which returns what was measured, once per line of stdin."""
    print("ANSWER", json.dumps(prepared), flush=True)
    for _ in sys.stdin:
        print("ANSWER", run(), flush=True)
    print("ANSWER", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, flush=True)
    return 0


def seconds_of(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def serve_matmul() -> int:
    """The worker that all cases are compared with: seconds per GMAC of nn.Dense at the best of several shapes, those
    of these models and square ones."""
    from mindspore import Tensor, nn

    rng, products = np.random.default_rng(0), []
    for rows, inner, columns in MATMUL_SHAPES:
        x, dense = Tensor(rng.standard_normal((rows, inner)).astype(np.float32)), nn.Dense(inner, columns)
        products.append((rows * inner * columns / 1e9, lambda dense=dense, x=x: dense(x).asnumpy()))

    def best() -> float:
        return min(seconds_of(run) / gmacs for gmacs, run in products for _ in range(REPETITIONS))

    best()  # the first call of each compiles
    return serve({}, best)


def rate_of_other(command: str) -> float:
    """Runs another command to its end; the last line it prints must be its images per second."""
    done = subprocess.run(shlex.split(command), stdout=subprocess.PIPE, text=True)
    words = done.stdout.split()
    try:
        return float(words[-1])
    except (IndexError, ValueError):
        raise SystemExit(
            f"{command!r} ended with code {done.returncode} and {done.stdout[-200:]!r}; "
            "the last word that it prints must be its images per second"
        ) from None
