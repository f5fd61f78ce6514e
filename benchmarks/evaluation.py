"""Evaluation from JPEG folder to scores: whether the model or the loader is the limit.

    python benchmarks/evaluation.py --models dvt_t2t_vit_12 dvt_deit_small --images 256 --json out.json

Per round and model, in turn: the loader alone (decode, resize, crop, normalise), the model alone on one batch again and
again, and `eval.py`'s own loop over the folder, which does both at a time. Images as in benchmarks/input_pipeline.py;
weights are random, as rates do not depend on them. Rates are medians of the rounds.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from input_pipeline import IMAGE_SIZE, make_photographs
from side_by_side import seconds_of

from dvt import device
from dvt.config import DataSection
from dvt.data import load_splits
from dvt.models.cascade import build_model
from dvt.models.variants import list_models


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["dvt_t2t_vit_12"], choices=list_models())
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    device.set_up("auto")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        make_photographs(root, 4 * arguments.images)  # a fourth of them for evaluation
        for model in arguments.models:
            rows.append(measure(model, root, arguments))
            print(table(rows[-1:], header=len(rows) == 1), flush=True)
    if arguments.json:
        report = {"machine": device.describe_machine(), "images": arguments.images, "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def measure(name: str, root: Path, arguments: argparse.Namespace) -> dict[str, float | str]:
    from mindspore import Tensor

    from dvt.evaluation.all_exits import run_all_exits
    from dvt.models.cascade import AllExits

    splits = load_splits(DataSection(path=str(root)), IMAGE_SIZE, seed=0)
    count, size = splits.sizes["val"], arguments.batch_size
    cell = AllExits(build_model(name, num_classes=len(splits.class_names)))
    cell.model.set_train(False)
    batch = Tensor(next(splits.batches("val", size))[0])
    cell(batch).asnumpy()  # compiles

    def load() -> None:
        for _ in splits.batches("val", size):
            pass

    def compute() -> None:
        for _ in range(-(-count // size)):
            cell(batch).asnumpy()

    runs = {
        "loader": load,
        "model_rate": compute,
        "evaluation": lambda: run_all_exits(cell, splits, "val", size),
    }
    rates: dict[str, list[float]] = {what: [] for what in runs}
    for _ in range(arguments.rounds):
        for what, run in runs.items():
            rates[what].append(count / seconds_of(run))
    return {"model": name, **{what: float(np.median(each)) for what, each in rates.items()}}


def table(rows: list[dict], header: bool) -> str:
    lines = [f"{'images/s':<16} {'loader':>8} {'model':>8} {'evaluation':>10} {'of model':>8}"] if header else []
    for row in rows:
        lines.append(
            f"{row['model']:<16} {row['loader']:>8.1f} {row['model_rate']:>8.1f} {row['evaluation']:>10.1f} "
            f"{row['evaluation'] / row['model_rate']:>8.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
