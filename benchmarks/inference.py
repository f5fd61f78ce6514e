"""Images per second of all exits, next to the matrix-product rate of the same machine in the same run.

    python benchmarks/inference.py --models dvt_t2t_vit_12 dvt_deit_small --batch_size 8 --json out.json

Timings are medians of rounds in which everything is measured in turn, so that a noisy machine is equally noisy for all.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from dvt import device, kernels
from dvt.cost import cumulative_gmacs
from dvt.models.cascade import build_model
from dvt.variants import list_models

MATMUL_SIZE = 2048


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list_models(), choices=list_models())
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    device.set_up("auto")
    rng = np.random.default_rng(0)

    square = rng.standard_normal((MATMUL_SIZE, MATMUL_SIZE)).astype(np.float32)
    dense = nn.Dense(MATMUL_SIZE, MATMUL_SIZE, has_bias=False)
    candidates = {"matmul": (lambda: dense(Tensor(square)).asnumpy(), MATMUL_SIZE**3 / 1e9, 1, 0.0)}
    for name in arguments.models:
        for label, off in ((name, False), (f"{name}, no kernels", True)):
            if off:
                with kernels.disabled():
                    model = build_model(name)
            else:
                model = build_model(name)
            model.set_train(False)
            images = Tensor(rng.standard_normal((arguments.batch_size, 3, 224, 224)).astype(np.float32))
            started = time.perf_counter()
            run = _runner(model, images)
            run()
            compile_seconds = time.perf_counter() - started
            gmacs = cumulative_gmacs(name)[-1] * arguments.batch_size
            candidates[label] = (run, gmacs, arguments.batch_size, compile_seconds)

    seconds: dict[str, list[float]] = {label: [] for label in candidates}
    for _ in range(arguments.rounds):
        for label, (run, *_) in candidates.items():
            started = time.perf_counter()
            run()
            seconds[label].append(time.perf_counter() - started)

    matmul_rate = MATMUL_SIZE**3 / 1e9 / float(np.median(seconds["matmul"]))
    rows = []
    for label, (_, gmacs, images_per_run, compile_seconds) in candidates.items():
        median = float(np.median(seconds[label]))
        rows.append(
            {
                "what": label,
                "images_per_second": None if label == "matmul" else images_per_run / median,
                "gmacs_per_second": gmacs / median,
                "fraction_of_matmul": gmacs / median / matmul_rate,
                "compile_seconds": compile_seconds,
            }
        )
    report = {"machine": device.describe_machine(), "batch_size": arguments.batch_size, "rows": rows}
    sys.stdout.write(_table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _runner(model: nn.Cell, images: Tensor):
    return lambda: model(images)[-1].asnumpy()


def _table(report: dict) -> str:
    lines = [f"{'all exits, batch ' + str(report['batch_size']):<34} {'img/s':>8} {'GMAC/s':>8} {'of matmul':>10}"]
    for row in report["rows"]:
        rate = "" if row["images_per_second"] is None else f"{row['images_per_second']:.1f}"
        lines.append(f"{row['what']:<34} {rate:>8} {row['gmacs_per_second']:>8.1f} {row['fraction_of_matmul']:>10.2f}")
    return "\n".join(lines) + f"\nMindSpore {ms.__version__}\n"


if __name__ == "__main__":
    sys.exit(main())
