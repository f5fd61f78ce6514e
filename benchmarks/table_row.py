"""A row of the table in docs/ascend.md from the folder of a training run: `python benchmarks/table_row.py RUN`.

Speed is that of the epochs after the first, which also compiles: how much longer that one took is the time of
compiling. So the run needs two epochs or more.
"""

import argparse
import csv
import json
import re
import statistics
import sys
from pathlib import Path

from dvt.config.files import load_config


def row(run: Path) -> str:
    """model, cards, images per card, jit level, compile s, ms/step, img/s and top-1 of the last exit, as Markdown."""
    config = load_config(run / "config.yaml")
    starts = json.loads((run / "environment.json").read_text(encoding="utf-8"))["starts"]
    with (run / "metrics.csv").open(newline="") as file:
        first, *later = csv.DictReader(file)
    if not later:
        raise ValueError(f"{run} holds one epoch; train two, the first of which also compiles")
    cards = re.search(r", (\d+) ranks", starts[-1]["device"])
    cards = int(cards[1]) if cards else 1
    train = config.train
    seconds = statistics.median(float(each["seconds"]) for each in later)
    images_per_second = statistics.median(float(each["images_per_second"]) for each in later)
    step = 1000 * train.batch_size * train.accumulation_steps * cards / images_per_second
    accuracies = [value for name, value in later[-1].items() if name.startswith("val_accuracy_exit_")]
    top_1 = f"{float(accuracies[-1]):.2f}" if accuracies and accuracies[-1] else ""
    name = f"{config.model.name}, {train.amp_level}"
    compiling = f"{float(first['seconds']) - seconds:.0f}"
    cells = [
        name,
        cards,
        train.batch_size,
        config.jit_level,
        compiling,
        f"{step:.1f}",
        f"{images_per_second:.1f}",
        top_1,
    ]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a training run")
    try:
        print(row(parser.parse_args().run))
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
