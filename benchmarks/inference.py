"""Images per second at every exit, next to the matrix-product rate of the same machine in the same run.

    python benchmarks/inference.py --models dvt_t2t_vit_12 dvt_deit_small --batch_sizes 1 8 32 --json out.json
    python benchmarks/inference.py --models dvt_deit_small --batch_sizes 8 --against "python other.py"

Exit k is the model up to and including its k-th exit, on every image. Each case has a process of its own, so that peak
memory is of that case alone; all cases of a model and batch size run in turn, and times are medians of these rounds.
"Of matmul" is the rate in GMAC/s divided by that of nn.Dense at the best of several shapes in the same rounds.
--against names another command that is run once per round and prints its images per second as its last word;
`--rate` makes this script such a command, to compare two checkouts.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from side_by_side import Worker, rate_of_other, seconds_of, serve, serve_matmul

from dvt.cost import cumulative_gmacs
from dvt.models.variants import list_models, model_config

# Patches of 32, 24 (23 at 224) and 16 pixels.
GRID_SIZES = {224: (7, 10, 14), 320: (10, 14, 20), 384: (12, 16, 24)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list_models(), choices=list_models())
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--exits", nargs="+", type=int, default=[1, 2, 3], choices=(1, 2, 3))
    parser.add_argument("--image_sizes", nargs="+", type=int, default=[224], choices=GRID_SIZES, help="DeiT only")
    parser.add_argument("--cores", nargs="+", type=int, default=[0], help="processor cores to use; 0: all")
    parser.add_argument("--kernels", choices=("on", "off", "both"), default="both", help="the compiled CPU kernels")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--against", metavar="COMMAND", help="another command to run in turn")
    parser.add_argument("--rate", action="store_true", help="measure one case and print only its images per second")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # serve this one case, given as JSON
    arguments = parser.parse_args()
    if arguments.worker:
        case = json.loads(arguments.worker)
        return serve_matmul_on(case) if case["exit"] == 0 else serve_model(case)

    rows = []
    for model in arguments.models:
        for image_size in arguments.image_sizes:
            for batch_size in arguments.batch_sizes:
                for cores in arguments.cores:
                    common = {"model": model, "image_size": image_size, "batch_size": batch_size, "cores": cores}
                    group = measure(cases_of(common, arguments), arguments)
                    if arguments.rate:
                        print(group[-1]["images_per_second"])
                        return 0
                    print(table(group, header=not rows), flush=True)
                    rows += group
    if arguments.json:
        from dvt import device

        device.set_up("auto")
        report = {"machine": device.describe_machine(), "rounds": arguments.rounds, "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def cases_of(common: dict, arguments: argparse.Namespace) -> list[dict]:
    """The matrix products (exit 0), every exit, and all exits without kernels."""
    cases = [common | {"exit": 0, "kernels": True}]
    if arguments.kernels != "off":
        cases += [common | {"exit": exit_, "kernels": True} for exit_ in arguments.exits]
    if arguments.kernels != "on":
        exits = arguments.exits if arguments.kernels == "off" else arguments.exits[-1:]
        cases += [common | {"exit": exit_, "kernels": False} for exit_ in exits]
    return cases


def measure(cases: list[dict], arguments: argparse.Namespace) -> list[dict]:
    others = []
    with contextlib.ExitStack() as stack:
        workers = []
        for case in cases:
            command = [sys.executable, __file__, "--worker", json.dumps(case)]
            workers.append(stack.enter_context(Worker(command)))
        for _ in range(arguments.rounds):
            for worker in workers:
                worker.run()
            if arguments.against:
                others.append(rate_of_other(arguments.against))
        peaks = [worker.peak_gib() for worker in workers]

    matmul_rate = 1 / workers[0].median()
    rows = []
    for case, worker, peak in list(zip(cases, workers, peaks, strict=True))[1:]:
        config = configuration(case)
        gmacs = cumulative_gmacs(config)[case["exit"] - 1] * case["batch_size"]
        row = case | {
            "images_per_second": case["batch_size"] / worker.median(),
            "gmacs_per_second": gmacs / worker.median(),
            "matmul_gmacs_per_second": matmul_rate,
            "fraction_of_matmul": gmacs / worker.median() / matmul_rate,
            "peak_gib": peak,
            "compile_seconds": worker.prepared["compile_seconds"],
        }
        if others:
            rates = case["batch_size"] / np.asarray(worker.seconds)
            row["times_the_other"] = float(np.median(rates / np.asarray(others)))
        rows.append(row)
    return rows


def configuration(case: dict):
    """The configuration of a case."""
    if case["image_size"] == 224:
        return model_config(case["model"])
    return model_config(case["model"], image_size=case["image_size"], grid_sizes=GRID_SIZES[case["image_size"]])


def use_cores(case: dict) -> None:
    if case["cores"]:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: case["cores"]])


def serve_matmul_on(case: dict) -> int:
    use_cores(case)
    return serve_matmul()


def serve_model(case: dict) -> int:
    """Builds and compiles the first exits of a model, and runs them once per round."""
    use_cores(case)
    from mindspore import Tensor

    from dvt import device
    from dvt.models.cascade import build_from_config

    device.set_up("auto")
    config = configuration(case)
    model = build_from_config(config, kernels=case["kernels"])
    model.set_train(False)
    for _ in range(config.num_exits - case["exit"]):
        del model.exits[-1]  # what the last exit left hands on is computed by no one: nobody reads it
    shape = (case["batch_size"], config.in_channels, config.image_size, config.image_size)
    images = Tensor(np.random.default_rng(0).standard_normal(shape).astype(np.float32))

    forward = device.ahead_of_time(model)

    def run() -> np.ndarray:
        return forward(images)[-1].asnumpy()

    started = time.perf_counter()
    run()
    compile_seconds = time.perf_counter() - started - seconds_of(run)
    return serve({"compile_seconds": compile_seconds}, lambda: seconds_of(run))


def table(rows: list[dict], header: bool) -> str:
    lines = []
    if header:
        lines.append(
            f"{'model':<16} {'size':>4} {'batch':>5} {'cores':>5} {'exit':>4} {'kernels':>7} {'img/s':>8} "
            f"{'GMAC/s':>7} {'of matmul':>9} {'peak GiB':>8} {'compile s':>9} {'to other':>8}"
        )
    for row in rows:
        other = f"{row['times_the_other']:.2f}" if "times_the_other" in row else ""
        lines.append(
            f"{row['model']:<16} {row['image_size']:>4} {row['batch_size']:>5} {row['cores'] or 'all':>5} "
            f"{row['exit']:>4} {'yes' if row['kernels'] else 'no':>7} {row['images_per_second']:>8.1f} "
            f"{row['gmacs_per_second']:>7.1f} {row['fraction_of_matmul']:>9.2f} {row['peak_gib']:>8.2f} "
            f"{row['compile_seconds']:>9.1f} {other:>8}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
