"""One run or one measurement of speed in a process of its own, which `python -m experiments` starts.

python -m experiments.one train RECIPE SEED RESULTS WORK
python -m experiments.one speed CLAIM SEED RESULTS WORK
"""

import sys
from pathlib import Path

from dvt.cli.support import run_command, set_up_logging
from experiments.claims import find_claim
from experiments.recipes import find_recipe
from experiments.runs import Store


def main(argv: list[str]) -> None:
    what, name, seed, results, work = argv
    set_up_logging()
    store = Store(Path(results), Path(work))
    if what == "train":
        from experiments.training import run

        run(find_recipe(name), int(seed), store)
    else:
        from experiments.speed import measure

        measure(name, find_claim(name).timed, int(seed), store)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
