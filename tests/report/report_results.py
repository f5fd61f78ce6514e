"""Made-up results and pictures, as the evaluation hands them to the report; shared by the tests of the report."""

import copy
import json

import numpy as np

from dvt.early_exit import ALWAYS
from dvt.report import Results

GRIDS = {1: [9], 2: [3, 9], 3: [3, 6, 9], 4: [3, 5, 7, 9]}


def results_of(plain):
    """Results from the content of `results.json`."""
    return Results.from_json(json.dumps(plain))


def made_up(num_exits=3, classes=("Bag", "Coat", "Dress")):
    """The content of `results.json` without the parts that are optional; the numbers are invented."""
    gmacs = [0.0123 * 2.5**k for k in range(num_exits)]
    accuracy = [61.25 + 6.5 * k for k in range(num_exits)]
    shares = np.array([[0.9, 0.06, 0.03, 0.01], [0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]])[:, :num_exits]
    shares /= shares.sum(axis=1, keepdims=True)
    thresholds = [[0.5 + 0.1 * p] * (num_exits - 1) + [ALWAYS] for p in range(3)]
    cost = shares @ gmacs
    row = {"count": 500, "accuracy": 70.5, "exit_fractions": shares[1].tolist()}
    drop = {"images": 500, "accuracy": 70.5, "drop": 0.25, "low": -0.5, "high": 1.25}
    recommended = {
        "thresholds": thresholds[1],
        "accuracy": accuracy[-1] - 0.3,
        "expected_gmacs": float(cost[1]),
        "cost_fraction": float(cost[1] / gmacs[-1]),
        "exit_fractions": shares[1].tolist(),
        "expected_images_per_second": 1700.0,
        "rule": "cheapest within 0.5 points",
        "class_drops": [drop | {"label": label} for label in range(len(classes))],
    }
    measured = {"adaptive_images_per_second": 1613.0, "images_per_second_range": [1590.0, 1630.0]}
    return {
        "model": {"name": "dvt_deit_small", "grid_sizes": GRIDS[num_exits], "embed_dim": 64, "soft_splits": None},
        "checkpoint": "runs/quickstart/last.ckpt",
        "mode": 2,
        "dataset": "fashion_mnist_scale",
        "num_images": 10000,
        "class_names": list(classes),
        "date": "2025-01-31",
        "machine": {"processor": "A Processor", "cores": 2, "memory_gib": 15.6, "python": "3.11.7"},
        "cumulative_gmacs": gmacs,
        "anytime_accuracy": accuracy,
        "sweep": {
            "thresholds": thresholds,
            "accuracy": [accuracy[0], accuracy[-1] - 0.3, accuracy[-1]],
            "expected_gmacs": cost.tolist(),
            "exit_fractions": shares.tolist(),
        },
        "recommended": recommended,
        "throughput": {
            "batch_size": 64,
            "num_images": 2048,
            "rounds": 3,
            "device": "CPU",
            "all_exits_images_per_second": 1000.0,
            "all_exits_range": [980.0, 1010.0],
            **measured,
            "speed_up": 1.613,
            "gmac_ratio": 1.85,
        },
        "groups": {"item_size": {size: copy.deepcopy(row) for size in ("14", "28")}},
    }


def with_everything(results):
    """The same content with every optional part."""
    gmacs, accuracy = results["cumulative_gmacs"], results["anytime_accuracy"]
    budget = {"kind": "gmacs", "unit": "GMACs/image", "asked": 0.04, "calibration": 0.0399, "held_out": 0.0404}
    optional = {
        "images_left_out": {"val": 1},
        "frontier": {"accuracy": accuracy, "expected_gmacs": gmacs, "thresholds": []},
        "cumulative_seconds": [0.001 * value for value in gmacs],
        "published": {"label": "published, ImageNet", "source": "a table", "gmacs": gmacs, "accuracy": accuracy},
        "config": {"eval": {"batch_size": 64, "budget_gmacs": 0.04}, "seed": 7, "output": "runs/quickstart"},
    }
    exit_rule = {"name": "confidence", "temperatures": [1.31] * len(gmacs)}
    chosen = {"exit_rule": exit_rule, "budget": budget, "calibration_accuracy": 71.0}
    return results | optional | {"recommended": results["recommended"] | chosen}
