"""Runs a Python script as a worker of msrun on one processor core of its own: `pinned_worker.py SCRIPT [arguments]`.

Rank r takes the r-th core that this process may use, with one thread, so that workers do not take time from each other.
"""

import os
import runpy
import sys

if __name__ == "__main__":
    if os.environ.get("MS_ROLE") == "MS_WORKER":  # the scheduler has hardly anything to do
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(os.environ["RANK_ID"]) % len(cores)]})
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
