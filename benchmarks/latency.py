"""Latency of one image at a time: the cascade at three budgets against each static model of its family.

    python benchmarks/latency.py --model dvt_t2t_vit_12 --backends onnxruntime openvino --json out.json

A static model is one exit of the same width and depth on one of the grids. All weights are fresh, so thresholds come
from the confidence on the images themselves: so many leave at each exit that the average cost is 30, 50 and 70 % of
the last exit's. Every image goes through all models in turn, so that a busy moment is equally busy for all.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from deploy import machine
from dvt import device
from dvt.cost import cumulative_gmacs
from dvt.deploy import Cascade, export_bundle
from dvt.early_exit import NEVER, budget_shares, find_thresholds
from dvt.models.cascade import build_model
from dvt.models.variants import list_models

BUDGETS = (0.3, 0.5, 0.7)
PERCENTILES = (50, 90, 99)
BACKENDS = ("onnxruntime", "openvino")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="dvt_t2t_vit_12", choices=list_models())
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=["onnxruntime"])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    device.set_up("CPU")
    with tempfile.TemporaryDirectory() as scratch:
        grids = export_all(options.model, Path(scratch))
        rows = [row for backend in options.backends for row in measure(options, backend, grids, Path(scratch))]
    print(machine())
    print(f"{options.model:<18} {'backend':<12} {'GMACs':>6} " + " ".join(f"{f'p{p} ms':>8}" for p in PERCENTILES))
    for row in rows:
        times = " ".join(f"{row[f'p{p}']:>8.1f}" for p in PERCENTILES)
        print(f"{row['what']:<18} {row['backend']:<12} {row['gmacs']:>6.2f} {times}")
    if options.json:
        report = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "model": options.model, "rows": rows}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def export_all(name: str, folder: Path) -> list[int]:
    """Bundles of the cascade and of each static model; the grids."""
    cascade = build_model(name)
    export_bundle(cascade, folder / "cascade", ["ONNX"])
    for grid in cascade.config.grid_sizes:
        export_bundle(build_model(name, grid_sizes=(grid,)), folder / f"static_{grid}", ["ONNX"])
    return list(cascade.config.grid_sizes)


def measure(options: argparse.Namespace, backend: str, grids: list[int], folder: Path) -> list[dict]:
    """One row for each way to answer."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((options.images, 1, 3, 224, 224), dtype=np.float32)
    cascade, costs = Cascade(folder / "cascade", backend), cumulative_gmacs(options.model)
    ways: dict[str, tuple[float, Callable[[np.ndarray], object]]] = {}
    for grid in grids:
        static = Cascade(folder / f"static_{grid}", backend)
        ways[f"static {grid}x{grid}"] = static.manifest.cumulative_gmacs[-1], partial(static.predict, thresholds=[0.0])
    confidence = np.concatenate([cascade.all_exits(image).max(-1) for image in images], 1)  # (exits, images)
    for budget in BUDGETS:
        shares = min((budget_shares(p, len(costs)) for p in range(1, 60)), key=partial(distance, costs, budget))
        thresholds = find_thresholds(confidence, shares)
        exits = np.concatenate([cascade.predict(image, thresholds).exit_index for image in images])
        ways[f"{budget:.0%} of the cost"] = (
            float(np.mean(np.asarray(costs)[exits])),
            partial(cascade.predict, thresholds=thresholds),
        )
    every_exit = [NEVER] * (len(costs) - 1) + [0.0]
    ways["all exits"] = costs[-1], partial(cascade.predict, thresholds=every_exit)

    seconds = np.zeros((len(ways), len(images)))
    for run in (row[1] for row in ways.values()):
        run(images[0])  # warms up
    for number, image in enumerate(images):
        for place, (_, run) in enumerate(ways.values()):
            started = time.perf_counter()
            run(image)
            seconds[place, number] = time.perf_counter() - started
    return [
        {"what": what, "backend": backend, "gmacs": gmacs}
        | {f"p{p}": 1e3 * float(np.percentile(times, p)) for p in PERCENTILES}
        for (what, (gmacs, _)), times in zip(ways.items(), seconds, strict=True)
    ]


def distance(costs: list[float], budget: float, shares: np.ndarray) -> float:
    """Of the average cost with these shares from the budget, a fraction of the last exit's cost."""
    return abs(float(shares @ np.asarray(costs)) / costs[-1] - budget)


if __name__ == "__main__":
    sys.exit(main())
