"""One run: training with `dvt.training.run`, then all exits on the calibration images and on the test images.

Axis letters: K exits.
"""

import csv
import datetime
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from dvt import device
from dvt.checkpoint import load_model
from dvt.config import RunConfig
from dvt.config.files import config_to_dict
from dvt.cost import cumulative_gmacs, parameter_count
from dvt.data import load_splits
from dvt.evaluation.all_exits import AllExits, Keep, run_all_exits
from dvt.training.folder import STATE_FILE, WEIGHTS_FILE, git_state
from dvt.training.metrics import METRICS_FILE
from dvt.training.run import train as train_model
from experiments.recipes import ROOT, Recipe
from experiments.runs import Store, pack

EVALUATED = ("val", "calibration")
CURVE = ("epoch", "loss_exit_", "images_per_second", "seconds")  # columns of metrics.csv that a run's JSON keeps

log = logging.getLogger("dvt.experiments")


def run(recipe: Recipe, seed: int, store: Store) -> None:
    """Trains and evaluates a recipe, or goes on where that was interrupted, and leaves the JSON of the run."""
    folder = store.begin(recipe, seed)
    config = recipe.config(seed, str(folder))
    config.resume = (folder / STATE_FILE).exists()
    if recipe.start is not None:
        config.train.init_checkpoint = str(store.folder(recipe.start, seed) / WEIGHTS_FILE)
    train_model(config)
    started = time.perf_counter()
    arrays, facts = _evaluate(config, folder)
    if recipe.start is not None:
        facts["training_gmacs"] += store.record(recipe.start, seed)["training_gmacs"]
    facts["evaluation_minutes"] = round((time.perf_counter() - started) / 60, 2)
    store.finish(recipe, seed, arrays, record_of(recipe, config, folder) | facts)
    accuracy = ", ".join(f"{value:.2f}" for value in facts["accuracy"])
    log.info("%s, seed %d: accuracy per exit %s %%", recipe.name, seed, accuracy)


def record_of(recipe: Recipe, config: RunConfig, folder: Path) -> dict[str, Any]:
    """What the JSON of a run holds besides the results: where it comes from, the epochs, and where and when it ran."""
    curve = _curve(folder / METRICS_FILE)
    settings = config_to_dict(config) | {"output": "", "resume": False}
    settings["train"]["init_checkpoint"] = recipe.start
    settings["data"]["path"] = recipe.content["data"].get("path")  # where this machine has it is nobody's business
    return {
        "recipe": recipe.name,
        "about": recipe.about,
        "seed": config.seed,
        "config": settings,
        "curve": curve,
        "training_minutes": round(sum(row["seconds"] for row in curve) / 60, 2),
        "date": datetime.date.today().isoformat(),
        "machine": device.describe_machine(),
        "git": git_state(ROOT),
    }


def _evaluate(config: RunConfig, folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays of `Run`, results)."""
    model, checkpoint = load_model(folder / WEIGHTS_FILE)
    splits = load_splits(config.data, checkpoint.model.image_size, config.seed)
    cell, arrays, accuracy = AllExits(model), {}, {}
    for split in EVALUATED:
        found = run_all_exits(cell, splits, split, config.eval.batch_size, Keep(probabilities=True))
        packed = pack(found.probabilities, found.labels)
        arrays |= {f"{split}_{key}": values for key, values in packed.items()}
        accuracy[split] = found.accuracy
    arrays |= {f"val_{key}": values.astype(np.uint8) for key, values in splits.attributes("val").items()}
    costs = cumulative_gmacs(checkpoint.model)
    train = config.train
    images = checkpoint.metadata["step"] * train.batch_size * train.accumulation_steps
    facts = {
        "grid_sizes": list(checkpoint.model.grid_sizes),
        "images": splits.sizes,
        "parameters": parameter_count(checkpoint.model),
        "cumulative_gmacs": costs,
        "training_images": images,
        "training_gmacs": images * costs[-1],
        "accuracy": accuracy["val"],
        "calibration_accuracy": accuracy["calibration"],
    }
    return arrays, facts


def _curve(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: float(value) for key, value in row.items() if key.startswith(CURVE) and value} for row in rows]
