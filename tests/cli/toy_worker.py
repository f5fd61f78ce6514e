"""A worker for the launcher's tests: joins the cluster, adds up over all ranks for some steps, and may go wrong.

    toy_worker.py MODE STEPS

MODE is `well`, `raise` (rank 1 raises in step 3) or `save` (SIGTERM makes it write the file saved_RANK and end).
"""

import os
import signal
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from mindspore.communication import get_group_size, get_rank, init


def main(mode: str, steps: int) -> int:
    stop = []
    if mode == "save":
        signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    ms.set_device("CPU")
    init()
    rank = get_rank()
    print(f"rank {rank} of {get_group_size()}, process {os.getpid()}", flush=True)
    add_up = ops.AllReduce()
    for step in range(steps):
        total = add_up(Tensor(np.array([1.0, float(bool(stop))], np.float32))).asnumpy()
        print(f"step {step}: {int(total[0])} ranks", flush=True)
        if total[1]:  # all ranks stop after the same step
            time.sleep(2 * rank)  # rank 0 ends first, which must not harm the others
            Path(f"saved_{rank}").touch()
            return 130
        if mode == "raise" and rank == 1 and step == 3:
            raise ValueError("rank 1 has had enough")
        time.sleep(0.2)
    add_up(Tensor(np.zeros(1, np.float32))).asnumpy()
    time.sleep(1)  # a rank that ends at once can take its peer's last message away
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
