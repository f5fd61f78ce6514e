"""What stopping early saves in practice: images/s against the ratio of GMACs, and peak memory, next to all exits.

    python benchmarks/adaptive.py speed --checkpoint checkpoints/quickstart.ckpt --budget 0.6 --batch_size 64
    python benchmarks/adaptive.py memory --model dvt_deit_small --budget 0.6 --batch_size 32

`speed` takes the data set of the checkpoint's training run, its validation images, and thresholds of which the last
exit's cost times `budget` is the average cost; rounds are interleaved, medians reported with their spread. `memory`
runs every way in a process of its own and compares peak resident sets; weights and images are random, thresholds those
with which as many images leave at each exit as the budget asks for.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

WAYS = ("all_exits", "latency", "throughput")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("speed", "memory", "one"))
    parser.add_argument("--checkpoint", default="checkpoints/quickstart.ckpt")
    parser.add_argument("--model", default="dvt_deit_small")
    parser.add_argument("--budget", type=float, default=0.6, help="share of the last exit's cost")
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--batches", type=int, help="per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--way", choices=WAYS, help="of one memory measurement, which `memory` starts")
    parser.add_argument("--thresholds", type=json.loads)
    arguments = parser.parse_args()
    if arguments.what == "one":
        print(json.dumps(one_way(arguments)))
        return 0
    rows = speed(arguments) if arguments.what == "speed" else memory(arguments)
    print(json.dumps(rows, indent=1))
    return 0


def shares_for(budget: float, costs: list[float]) -> np.ndarray:
    """Shares of the published family, the one whose average cost is `budget` times the last exit's."""
    from dvt.early_exit import budget_shares

    candidates = [budget_shares(p, len(costs)) for p in np.linspace(1, 60, 600)]
    return min(candidates, key=lambda shares: abs(float(shares @ np.asarray(costs)) - budget * costs[-1]))


def speed(arguments: argparse.Namespace) -> dict:
    from mindspore import Tensor

    from dvt import device, early_exit
    from dvt.checkpoint import load_model
    from dvt.config.files import config_from_dict
    from dvt.cost import cumulative_gmacs
    from dvt.data import load_splits
    from dvt.early_exit.classifier import AdaptiveClassifier
    from dvt.evaluation.speed import sample
    from dvt.models.cascade import AllExits

    device.set_up("auto")
    model, loaded = load_model(arguments.checkpoint)
    model.set_train(False)
    config = config_from_dict(loaded.metadata["config"])
    size, count = arguments.batch_size or 64, arguments.batches or 32
    images = sample(load_splits(config.data, loaded.model.image_size, config.seed), size * count)
    batches = [images[start : start + size] for start in range(0, len(images), size)]
    costs = cumulative_gmacs(loaded.model)
    cell = AllExits(model)
    classifier = AdaptiveClassifier(model, batch_sizes=[size >> shift for shift in range(4)])
    probabilities = np.concatenate([cell(Tensor(batch)).asnumpy() for batch in batches], axis=1)
    confidence = early_exit.confidence(probabilities)
    thresholds = early_exit.find_thresholds(confidence, shares_for(arguments.budget, costs))
    exits = early_exit.assign_exits(confidence, thresholds)

    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for round_number in range(1 + arguments.rounds):  # the first compiles
        started = time.perf_counter()
        for batch in batches:
            cell(Tensor(batch)).asnumpy()
        after_all = time.perf_counter()
        for batch in batches:
            classifier.predict(batch, thresholds)
        after_latency = time.perf_counter()
        for _ in classifier.predict_batches(iter(batches), thresholds, size):
            pass
        after_throughput = time.perf_counter()
        if round_number:
            seconds["all_exits"].append(after_all - started)
            seconds["latency"].append(after_latency - after_all)
            seconds["throughput"].append(after_throughput - after_latency)
    ratio = costs[-1] / float(np.asarray(costs)[exits].mean())
    base = np.asarray(seconds["all_exits"])
    rows = {
        way: {
            "images_per_second": len(images) / float(np.median(each)),
            "lowest_and_highest": [len(images) / max(each), len(images) / min(each)],
            "speed_up": float(np.median(base / np.asarray(each))),
            "of_gmac_ratio": float(np.median(base / np.asarray(each))) / ratio,
        }
        for way, each in seconds.items()
    }
    facts = {"gmac_ratio": ratio, "images": len(images)}
    return facts | {"exit_fractions": (np.bincount(exits) / len(exits)).tolist()} | rows


def memory(arguments: argparse.Namespace) -> dict:
    from dvt.early_exit import find_thresholds

    size, count = arguments.batch_size or 32, arguments.batches or 3
    command = [sys.executable, __file__, "one", "--model", arguments.model]
    command += ["--batch_size", str(size), "--batches", str(count)]

    def run(way: str, thresholds: list[float] | None = None) -> dict:
        more = [] if thresholds is None else ["--thresholds", json.dumps(thresholds)]
        done = subprocess.run([*command, "--way", way, *more], capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    first = run("all_exits")
    shares = shares_for(arguments.budget, first["gmacs"])
    thresholds = [float(t) for t in find_thresholds(np.float32(first["confidence"]), shares)]
    runs = {way: [run(way, thresholds) for _ in range(arguments.rounds)] for way in WAYS}
    return {"shares": shares.tolist(), "images": size * count} | {
        way: {
            "peak_mib": [each["peak_mib"] for each in rows],
            "median_peak_mib": float(np.median([each["peak_mib"] for each in rows])),
        }
        for way, rows in runs.items()
    }


def one_way(arguments: argparse.Namespace) -> dict:
    """Peak resident set of one way of running, in MiB, in this process."""
    import mindspore as ms
    from mindspore import Tensor

    from dvt import device
    from dvt.cost import cumulative_gmacs
    from dvt.early_exit.classifier import AdaptiveClassifier
    from dvt.models.cascade import AllExits, build_model

    device.set_up("auto")
    ms.set_seed(0)
    model = build_model(arguments.model)
    model.set_train(False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    shape = (arguments.batch_size, model.config.in_channels, model.config.image_size, model.config.image_size)
    batches = [np.random.default_rng(i).standard_normal(shape, dtype=np.float32) for i in range(arguments.batches)]
    result: dict = {"gmacs": cumulative_gmacs(model)}
    if arguments.way == "all_exits":
        cell = AllExits(model)
        confidence = [cell(Tensor(batch)).asnumpy().max(axis=2) for batch in batches]
        result["confidence"] = np.concatenate(confidence, axis=1).tolist()
    else:
        classifier = AdaptiveClassifier(model, arguments.thresholds, batch_sizes=sizes_for(arguments.batch_size))
        if arguments.way == "latency":
            parts = [classifier.predict(batch) for batch in batches]
        else:
            parts = list(classifier.predict_batches(iter(batches), batch_size=arguments.batch_size))
        result["exits"] = np.bincount(np.concatenate([part.exit_index for part in parts])).tolist()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return result | {"peak_mib": peak, "before_mib": before}


def sizes_for(batch_size: int) -> list[int]:
    """Compiled numbers of images: the batch and its halves, down to an eighth."""
    return sorted({max(1, batch_size >> shift) for shift in range(4)})


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
    sys.exit(main())
