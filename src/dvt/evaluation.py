"""Evaluation: accuracy of every exit, thresholds, accuracy and cost with early exits, measured images per second.

Two different things are reported and named so: GMACs, which are computed, and images/s, which are measured on this
machine with `AdaptiveClassifier` really leaving early. Axis letters: K exits, n images, C classes.
"""

import datetime
import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops
from tqdm import tqdm

from dvt import device, early_exit
from dvt.checkpoint import Checkpoint, load_model, save_checkpoint
from dvt.config import EvalSection, RunConfig
from dvt.cost import cumulative_gmacs
from dvt.data import Splits, load_splits
from dvt.errors import CheckpointError, ConfigError
from dvt.inference import AdaptiveClassifier
from dvt.report import Example, summary, write_report

TIMING_ROUNDS = 3
GATHERED_BATCHES = 4  # batches whose survivors go on together when images/s are measured
TIMED_SETTINGS = 6  # points of the sweep whose images/s are measured, beside the recommended one
EXAMPLES_PER_EXIT = 8
PREDICTIONS_FILE = "predictions.npz"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outputs:
    """What all exits say of the images of one split."""

    probabilities: np.ndarray  # (K, n, C) float32
    labels: np.ndarray  # (n,) int32

    @property
    def confidence(self) -> np.ndarray:
        """(K, n)."""
        return early_exit.confidence(self.probabilities)

    @property
    def accuracy(self) -> list[float]:
        """Top-1 in percent per exit, every image taken at that exit ("anytime")."""
        return [float(a) for a in 100.0 * (self.probabilities.argmax(axis=2) == self.labels).mean(axis=1)]


class _AllExits(nn.Cell):
    """images -> softmax of every exit, (K, B, C)."""

    def __init__(self, model: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, images: Tensor) -> Tensor:
        return ops.softmax(ops.stack(self.model(images)), axis=-1)


def run_all_exits(model: nn.Cell, splits: Splits, split: str, batch_size: int) -> Outputs:
    """Every exit on every image of a split, each image once, in order."""
    model.set_train(False)
    cell = _AllExits(model)
    probabilities, labels = [], []
    batches = splits.pipeline(split, batch_size).create_tuple_iterator(num_epochs=1, output_numpy=True)
    with tqdm(total=splits.sizes[split], unit="img", desc=f"{split}, all exits") as bar:
        for images, batch_labels in batches:
            count = len(images)
            if count < batch_size:  # one compiled shape serves all
                images = np.concatenate([images, np.repeat(images[-1:], batch_size - count, axis=0)])
            probabilities.append(cell(Tensor(images)).asnumpy()[:, :count])
            labels.append(batch_labels)
            bar.update(count)
    return Outputs(np.concatenate(probabilities, axis=1), np.concatenate(labels))


def evaluate_checkpoint(checkpoint: str, mode: int, config: RunConfig, output: str) -> dict[str, Any]:
    """The published tool's modes: 0 print the results stored in the checkpoint, 1 evaluate on `val` with the
    thresholds stored in it, 2 find thresholds on the calibration images, then evaluate on `val`.

    Modes 1 and 2 write `report.html`, figures, `results.json` and `predictions.npz` into `output` and return the
    results. With `eval.store`, mode 2 also writes thresholds and results into the checkpoint. Raises CheckpointError,
    ConfigError, DataError or DeviceError before any long work starts.
    """
    if config.eval.store and mode != 2:
        raise ConfigError(f"eval.store needs --mode 2, which finds what is to be stored; mode {mode} only reads it")
    used = device.set_up(config.device_target)
    model, loaded = load_model(checkpoint)
    if mode == 0:
        results = _stored_results(loaded, checkpoint)
        print(_stored_summary(loaded, results))
        return results
    thresholds = None
    if mode == 1:
        thresholds = np.asarray(_stored_results(loaded, checkpoint)["dynamic_threshold"], np.float32)
    splits = load_splits(config.data, loaded.model.image_size, config.seed)
    _check_fit(loaded, splits, checkpoint)
    if mode == 2:
        _check_calibration(loaded, config, checkpoint)
    folder = _prepared(output)
    log.info("device: %s", used.description)
    for line in splits.describe().splitlines():
        log.info("%s", line)

    calibration = None
    if mode == 2:
        calibration = run_all_exits(model, splits, "calibration", config.eval.batch_size)
        thresholds = early_exit.find_sweep_thresholds(calibration.confidence)
    val = run_all_exits(model, splits, "val", config.eval.batch_size)
    gmacs = cumulative_gmacs(loaded.model)
    sweep = early_exit.evaluate_many(val.probabilities, val.labels, gmacs, thresholds)
    if calibration is not None:
        chosen = _recommended(calibration, thresholds, gmacs, config.eval.max_accuracy_drop)
    else:
        chosen = _stored_choice(loaded)

    results: dict[str, Any] = {
        "model": loaded.model.to_dict(),
        "checkpoint": str(checkpoint),
        "mode": mode,
        "dataset": config.data.dataset,
        "num_images": len(val.labels),
        "class_names": list(splits.class_names),
        "date": datetime.date.today().isoformat(),
        "machine": device.describe_machine(),
        "cumulative_gmacs": gmacs,
        "anytime_accuracy": val.accuracy,
        "sweep": {
            "thresholds": sweep.thresholds.tolist(),
            "accuracy": sweep.accuracy.tolist(),
            "expected_gmacs": sweep.expected_cost.tolist(),
            "exit_fractions": sweep.exit_fractions.tolist(),
        },
        "recommended": None,
        "groups": {},
        "per_class": {},
    }
    exit_index = None
    if chosen is not None:
        row, rule = chosen
        exit_index = early_exit.assign_exits(val.confidence, row)
        results["recommended"] = _setting(val, gmacs, row) | {"rule": rule}
        results["per_class"] = _by_class(val, exit_index, splits.class_names)
        results["groups"] = _by_attribute(val, exit_index, splits)
    results["throughput"] = _throughput(model, splits, val, sweep, results["recommended"], gmacs, config.eval)

    np.savez_compressed(
        folder / PREDICTIONS_FILE,
        probabilities=val.probabilities,
        labels=val.labels,
        **({} if exit_index is None else {"exit_index": exit_index}),
    )
    examples = [] if exit_index is None else _examples(splits, val, exit_index)
    page = write_report(results, folder, examples)
    if config.eval.store and mode == 2:
        _store(checkpoint, loaded, results)
    print(summary(results))
    print(f"report: {page}")
    return results


def _check_fit(loaded: Checkpoint, splits: Splits, checkpoint: str) -> None:
    if loaded.model.num_classes != splits.num_classes:
        raise CheckpointError(
            f"{checkpoint} has {loaded.model.num_classes} classes, the data set {splits.num_classes}; evaluate on the "
            "data set the model was trained for"
        )
    if loaded.model.in_channels != splits.in_channels:
        raise CheckpointError(
            f"{checkpoint} takes images of {loaded.model.in_channels} channels, the data set has {splits.in_channels}"
        )
    trained_on = loaded.metadata.get("preprocessing") or {}
    for key in ("mean", "std"):
        if key in trained_on and list(trained_on[key]) != list(splits.preprocessing[key]):
            raise CheckpointError(
                f"{checkpoint} was trained on images normalised with {key} {trained_on[key]}, but this data set has "
                f"{list(splits.preprocessing[key])}; evaluate on the data set it was trained for, or give data.{key}"
            )
    names = loaded.metadata.get("class_names")
    if names and list(names) != list(splits.class_names):
        differ = next(i for i, (a, b) in enumerate(zip(names, splits.class_names, strict=True)) if a != b)
        raise CheckpointError(
            f"class {differ} is {names[differ]!r} in {checkpoint} and {splits.class_names[differ]!r} in the data set; "
            "evaluate on the data set the model was trained for"
        )


def _check_calibration(loaded: Checkpoint, config: RunConfig, checkpoint: str) -> None:
    """A held-out calibration slice is the same as in training, or it holds images that were trained on."""
    trained = loaded.metadata.get("config")
    if not trained or not config.data.hold_out_calibration:
        return
    asked = {"seed": config.seed, **vars(config.data)}
    before = {"seed": trained["seed"], **trained["data"]}
    for key in ("seed", "dataset", "hold_out_calibration", "calibration_images"):
        if asked[key] != before[key]:
            name = key if key == "seed" else f"data.{key}"
            raise ConfigError(
                f"{name} is {asked[key]}, but {checkpoint} was trained with {before[key]}: the calibration images "
                "would not be those that were kept out of training; leave the key as it was"
            )


def _prepared(output: str) -> Path:
    """The folder of the results, made and writable before any long work."""
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"cannot write to the output folder {output}: {error.strerror}") from error
    return folder


def _stored_results(loaded: Checkpoint, checkpoint: str) -> dict[str, Any]:
    results = loaded.metadata.get("results")
    if not results or "dynamic_threshold" not in results:
        raise CheckpointError(
            f"{checkpoint} holds no thresholds and results yet; find them with --mode 2 --eval.store, which writes "
            "them into the checkpoint"
        )
    return results


def _stored_summary(loaded: Checkpoint, results: dict[str, Any]) -> str:
    """What mode 0 prints."""
    lines = [f"{loaded.model.name}, results stored in the checkpoint"]
    costs = results.get("flops") or []
    for k, accuracy in enumerate(results.get("anytime_classification") or []):
        cost = f" at {costs[k]:.3f} GMACs" if k < len(costs) else ""
        lines.append(f"  exit {k + 1}: top-1 {accuracy:.2f} %{cost}")
    budgets, accuracies = results.get("budgeted_batch_classification") or ([], [])
    if len(budgets):
        lines.append("budgeted batch classification")
        lines += [f"  {cost:7.4f} GMACs: top-1 {acc:.2f} %" for cost, acc in zip(budgets, accuracies, strict=True)]
    return "\n".join(lines)


def _recommended(calibration: Outputs, rows: np.ndarray, gmacs: list[float], drop: float) -> tuple[np.ndarray, str]:
    """The cheapest thresholds that lose at most `drop` points of the last exit's accuracy on the calibration images."""
    tried = early_exit.evaluate_many(calibration.probabilities, calibration.labels, gmacs, rows)
    good = np.flatnonzero(tried.accuracy >= calibration.accuracy[-1] - drop)
    if len(good) == 0:
        best = int(tried.accuracy.argmax())
        return rows[best], f"most accurate of {len(rows)} settings on the calibration images"
    best = good[tried.expected_cost[good].argmin()]
    return rows[best], (
        f"cheapest of {len(rows)} settings that lose at most {drop:g} points of the last exit's accuracy on the "
        f"{len(calibration.labels):,} calibration images"
    )


def _stored_choice(loaded: Checkpoint) -> tuple[np.ndarray, str] | None:
    row = loaded.metadata.get("thresholds")
    return None if row is None else (np.asarray(row, np.float32), "stored in the checkpoint")


def _setting(outputs: Outputs, gmacs: list[float], row: np.ndarray) -> dict[str, Any]:
    """Accuracy and cost of one threshold vector, as it goes into the results."""
    one = early_exit.evaluate_many(outputs.probabilities, outputs.labels, gmacs, [row])
    return {
        "thresholds": [float(t) for t in row],
        "accuracy": float(one.accuracy[0]),
        "expected_gmacs": float(one.expected_cost[0]),
        "cost_fraction": float(one.expected_cost[0] / gmacs[-1]),
        "exit_fractions": one.exit_fractions[0].tolist(),
    }


def _throughput(
    model: nn.Cell,
    splits: Splits,
    val: Outputs,
    sweep: early_exit.Sweep,
    recommended: dict[str, Any] | None,
    gmacs: list[float],
    settings: EvalSection,
) -> dict[str, Any]:
    """Images/s of running all exits and of leaving early, measured in turns in this process; medians of the rounds.

    Both run graphs of `batch_size` images; leaving early takes a few batches per call, so that later exits, too, mostly
    run full batches of those that are left.
    """
    batch_size = settings.batch_size
    count = min(len(val.labels), settings.throughput_images)
    order = np.random.default_rng(0).permutation(len(val.labels))[:count]
    images, _ = splits.batch("val", np.sort(order))
    images = images[np.random.default_rng(1).permutation(count)]
    timed = count - count % batch_size if count >= batch_size else count

    spread = np.unique(np.linspace(0, len(sweep.thresholds) - 1, TIMED_SETTINGS, dtype=int))
    chosen = list(sweep.thresholds[spread])
    if recommended is not None:
        row = np.asarray(recommended["thresholds"], np.float32)
        chosen = [row, *(other for other in chosen if (other != row).any())]
    all_exits = _AllExits(model)
    classifier = AdaptiveClassifier(model, batch_sizes={max(1, batch_size >> shift) for shift in range(4)})

    def run(row: np.ndarray | None) -> float:
        together = batch_size if row is None else GATHERED_BATCHES * batch_size
        started = time.perf_counter()
        for start in range(0, timed, together):
            batch = images[start : min(start + together, timed)]
            if row is None:
                all_exits(Tensor(batch)).asnumpy()
            else:
                classifier.predict(batch, row)
        return timed / (time.perf_counter() - started)

    rounds = []
    with tqdm(total=(1 + TIMING_ROUNDS) * (1 + len(chosen)), desc="images/s", unit="run") as bar:
        for number in range(1 + TIMING_ROUNDS):  # the first compiles and is thrown away
            rates = []
            for row in [None, *chosen]:
                rates.append(run(row))
                bar.update()
            if number > 0:
                rounds.append(rates)
    rates = np.median(rounds, axis=0)
    measured = [
        {key: value for key, value in _setting(val, gmacs, row).items() if key != "exit_fractions"}
        | {"images_per_second": float(rate)}
        for row, rate in zip(chosen, rates[1:], strict=True)
    ]
    reference = measured[0]
    return {
        "batch_size": batch_size,
        "gathered_batches": GATHERED_BATCHES,
        "num_images": timed,
        "rounds": TIMING_ROUNDS,
        "all_exits_images_per_second": float(rates[0]),
        "adaptive_images_per_second": reference["images_per_second"],
        "speed_up": reference["images_per_second"] / float(rates[0]),
        "gmac_ratio": 1.0 / reference["cost_fraction"],
        "settings": measured,
    }


def _by_class(val: Outputs, exit_index: np.ndarray, class_names: tuple[str, ...]) -> dict[str, Any]:
    correct = _correct(val, exit_index)
    groups = {name: val.labels == label for label, name in enumerate(class_names)}
    return {name: _group(val, exit_index, correct, members) for name, members in groups.items() if members.any()}


def _by_attribute(val: Outputs, exit_index: np.ndarray, splits: Splits) -> dict[str, Any]:
    correct = _correct(val, exit_index)
    return {
        key: {str(value): _group(val, exit_index, correct, values == value) for value in np.unique(values)}
        for key, values in splits.attributes("val").items()
    }


def _correct(val: Outputs, exit_index: np.ndarray) -> np.ndarray:
    """(n,) whether each image is classified rightly at the exit it takes."""
    return val.probabilities[exit_index, np.arange(len(exit_index))].argmax(axis=1) == val.labels


def _group(val: Outputs, exit_index: np.ndarray, correct: np.ndarray, members: np.ndarray) -> dict[str, Any]:
    """Accuracy in percent and share of each exit, over the images of one group."""
    exits = exit_index[members]
    return {
        "count": int(members.sum()),
        "accuracy": float(100.0 * correct[members].mean()),
        "exit_fractions": (np.bincount(exits, minlength=len(val.probabilities)) / len(exits)).tolist(),
    }


def _examples(splits: Splits, val: Outputs, exit_index: np.ndarray) -> list[Example]:
    """A few images per exit, evenly spread over those that took it."""
    mean, std = (np.asarray(v, np.float32).reshape(-1, 1, 1) for v in (splits.mean, splits.std))
    examples = []
    for k in range(len(val.probabilities)):
        members = np.flatnonzero(exit_index == k)
        spread = np.unique(np.linspace(0, len(members) - 1, EXAMPLES_PER_EXIT, dtype=int)) if len(members) else []
        for position in members[spread]:
            image = splits.batch("val", [position])[0][0] * std + mean  # (C, S, S) in 0..1
            pixels = np.clip(np.rint(image * 255), 0, 255).astype(np.uint8).transpose(1, 2, 0)
            probabilities = val.probabilities[k, position]
            examples.append(
                Example(
                    image=pixels[..., 0] if pixels.shape[2] == 1 else pixels,
                    label=splits.class_names[val.labels[position]],
                    predicted=splits.class_names[probabilities.argmax()],
                    exit_index=k,
                    confidence=float(probabilities.max()),
                )
            )
    return examples


def _store(checkpoint: str, loaded: Checkpoint, results: dict[str, Any]) -> None:
    """Thresholds and results into the checkpoint, under the names of the released ones."""
    metadata = dict(loaded.metadata)
    metadata["results"] = {
        "flops": results["cumulative_gmacs"],
        "anytime_classification": results["anytime_accuracy"],
        "dynamic_threshold": results["sweep"]["thresholds"],
        "budgeted_batch_classification": [results["sweep"]["expected_gmacs"], results["sweep"]["accuracy"]],
    }
    metadata["thresholds"] = results["recommended"]["thresholds"]
    save_checkpoint(checkpoint, loaded.weights, metadata)
    log.info("stored thresholds and results in %s", checkpoint)
