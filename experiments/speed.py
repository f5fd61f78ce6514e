"""Images per second of a dynamic model and of static ones at the accuracy of each, measured in turns in one process.

Axis letters: K exits.
"""

import datetime
import logging
import time

import numpy as np
from tqdm import tqdm

from dvt import device
from dvt.checkpoint import load_model
from dvt.data import load_splits
from dvt.early_exit import ALWAYS
from dvt.early_exit.classifier import AdaptiveClassifier
from dvt.evaluation.speed import sample
from dvt.training.folder import WEIGHTS_FILE
from experiments.analysis import curve_of, matched
from experiments.recipes import find_recipe
from experiments.runs import Store

ROUNDS = 7
IMAGES = 1024

log = logging.getLogger("dvt.experiments")


def measure(claim: str, recipes: tuple[str, ...], seed: int, store: Store) -> None:
    """Times the runs of one seed, whose first recipe is the dynamic one, and leaves a JSON.

    The dynamic model stops early with the cheapest thresholds of its curve that are as accurate as the static model; a
    static model that none of them reaches is left out. Rounds are interleaved; speeds are medians, the ratio is the
    median of the rounds' ratios.
    """
    device.set_up("CPU")
    dynamic, *statics = (store.load(name, seed) for name in recipes)
    config = find_recipe(dynamic.recipe).config(seed, str(store.folder(dynamic.recipe, seed)))
    splits = load_splits(config.data, config.model.input_size, seed)
    images, batch_size = sample(splits, IMAGES), config.eval.batch_size
    batches = [images[start : start + batch_size] for start in range(0, len(images) - batch_size + 1, batch_size)]
    curve = curve_of(dynamic)
    pairs, ways = [], []
    classifier = _classifier(store, dynamic.recipe, seed, batch_size)
    for static in statics:
        point = matched(curve, static.val.accuracy[-1])
        if point is not None:
            pairs.append((static, point))
            ways.append((classifier, curve.thresholds[point]))
            ways.append((_classifier(store, static.recipe, seed, batch_size), np.array([ALWAYS])))
    seconds = _interleaved(ways, batches, batch_size)  # (rounds, ways)
    count = sum(map(len, batches))
    rows = []
    for place, (static, point) in enumerate(pairs):
        early, plain = seconds[:, 2 * place], seconds[:, 2 * place + 1]
        rows.append(
            {
                "recipe": static.recipe,
                "accuracy": static.val.accuracy[-1],
                "gmacs": float(static.gmacs[-1]),
                "images_per_second": count / float(np.median(plain)),
                "dynamic_accuracy": float(curve.accuracy[point]),
                "dynamic_gmacs": float(curve.gmacs[point]),
                "dynamic_images_per_second": count / float(np.median(early)),
                "ratio": float(np.median(plain / early)),
                "ratio_range": [float((plain / early).min()), float((plain / early).max())],
            }
        )
    record = {"seed": seed, "rounds": ROUNDS, "batch_size": batch_size, "images": count}
    record |= {"date": datetime.date.today().isoformat(), "machine": device.describe_machine(), "rows": rows}
    store.save_timing(claim, recipes, seed, record)


def _classifier(store: Store, recipe: str, seed: int, batch_size: int) -> AdaptiveClassifier:
    model, _ = load_model(store.folder(recipe, seed) / WEIGHTS_FILE)
    return AdaptiveClassifier(model, batch_sizes=[batch_size])


def _interleaved(
    ways: list[tuple[AdaptiveClassifier, np.ndarray]], batches: list[np.ndarray], batch_size: int
) -> np.ndarray:
    """(rounds, ways) seconds for all batches; the first round compiles and is thrown away."""
    seconds = np.zeros((1 + ROUNDS, len(ways)))
    with tqdm(total=seconds.size, desc="images/s", unit="run") as bar:
        for row in seconds:
            for place, (classifier, thresholds) in enumerate(ways):
                started = time.perf_counter()
                for _ in classifier.predict_batches(iter(batches), thresholds, batch_size):
                    pass
                row[place] = time.perf_counter() - started
                bar.update()
    return seconds[1:]
