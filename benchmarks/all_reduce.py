"""Seconds that an all-reduce takes, for a few sizes; a worker of msrun: `all_reduce.py OUT.json BYTES [BYTES ...]`.

Each time is that of the fastest of some rounds, in each of which all sizes are measured. Rank 0 writes the file.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from mindspore import Tensor, ops
from mindspore.communication import get_rank, init

ROUNDS = 19


def main(out: str, sizes: list[int]) -> None:
    init()
    all_reduce = ops.AllReduce()
    messages = {size: Tensor(np.ones(size // 4, np.float32)) for size in sizes}
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(ROUNDS + 1):  # the first one sets connections up
        for size, message in messages.items():
            started = time.perf_counter()
            all_reduce(message).asnumpy()
            seconds[size].append(time.perf_counter() - started)
    if get_rank() == 0:
        fastest = {size: min(times[1:]) for size, times in seconds.items()}
        Path(out).write_text(json.dumps(fastest))
    time.sleep(1)  # a rank that ends at once can take its peer's last message away


if __name__ == "__main__":
    main(sys.argv[1], [int(size) for size in sys.argv[2:]])
