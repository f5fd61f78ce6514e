"""The evaluation of a checkpoint, from images to report.

Two different things are reported and named so: GMACs, which are computed, and images/s, which are measured on this
machine with `AdaptiveClassifier` really leaving early. Axis letters: K exits, n images, C classes.
"""

import datetime
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import nn

from dvt import device, early_exit
from dvt.checkpoint.native import Checkpoint, load_model, save_checkpoint
from dvt.config.files import config_to_dict
from dvt.config.sections import EvalSection, RunConfig
from dvt.data import Splits, load_splits
from dvt.data.bad_images import LEFT_OUT
from dvt.early_exit.budgets import (
    Choice,
    Costs,
    choose_thresholds,
    compare_rules,
    compare_searches,
    from_metadata,
    frontier_on,
    met,
    setting,
    to_metadata,
)
from dvt.early_exit.classifier import AdaptiveClassifier
from dvt.early_exit.outcomes import PREDICTIONS_FILE, Outcomes, Predictions
from dvt.early_exit.rules import ExitRule
from dvt.early_exit.search import find_frontier
from dvt.early_exit.temperature import fit_temperature, reliability
from dvt.errors import CheckpointError, ConfigError
from dvt.evaluation import groups, pictures, speed
from dvt.evaluation.all_exits import AllExits, Partial, SplitOutputs, run_all_exits
from dvt.evaluation.checks import check_calibration, check_fit
from dvt.evaluation.published import published_curve
from dvt.models.cost import cumulative_gmacs
from dvt.report.write import summary, write_report
from dvt.safe_files import require_writable

log = logging.getLogger(__name__)


def evaluate_checkpoint(checkpoint: str, mode: int, config: RunConfig, output: str) -> dict[str, Any]:
    """The published tool's modes: 0 print the results stored in the checkpoint, 1 evaluate on `val` with the
    thresholds stored in it, 2 find thresholds on the calibration images, then evaluate on `val`.

    Modes 1 and 2 write `report.html`, figures, `results.json` and `predictions.npz` into `output` and return the
    results. Interrupted, they go on where they were when called again with the same arguments. With `eval.store`, mode
    2 also writes thresholds and results into the checkpoint. Raises CheckpointError, ConfigError, DataError or
    DeviceError before any long work starts; a budget that cannot be met is known only after the calibration images.
    """
    if config.eval.store and mode != 2:
        raise ConfigError(f"eval.store needs --mode 2, which finds what is to be stored; mode {mode} only reads it")
    used = device.set_up(config.device_target)
    model, loaded = load_model(checkpoint)
    if mode == 0:
        results = _stored_results(loaded, checkpoint)
        print(_stored_summary(loaded, results))
        return results
    stored = _stored_results(loaded, checkpoint) if mode == 1 else None
    splits = load_splits(config.data, loaded.model.image_size, config.seed)
    check_fit(loaded, splits, checkpoint)
    if mode == 2:
        check_calibration(loaded, config, checkpoint)
    folder = Path(output)
    require_writable(folder)  # before any long work
    log.info("device: %s", used.description)
    for line in splits.describe().splitlines():
        log.info("%s", line)

    evaluation = _Evaluation(model, loaded, splits, config, folder, mode)
    results = evaluation.run(stored)
    results |= {"checkpoint": str(checkpoint), "mode": mode}
    page = write_report(results, folder, evaluation.examples, evaluation.extremes, evaluation.attention)
    evaluation.partial.remove()
    if config.eval.store and mode == 2:
        _store(checkpoint, loaded, splits, results, evaluation.choice)
    print(summary(results))
    print(f"report: {page}")
    return results


class _Evaluation:
    """One evaluation under way: what its steps share.

    Attributes:
        choice: Thresholds and rule; None until `run` has found any.
        partial: What is kept of it in case of an interruption.
        left_out: Split -> images that could not be read, if there were any and they were to be skipped.
        examples: Images by the exit they took; `extremes` the easiest and hardest per class; `attention` what the
            class token of each exit attends to. All empty until `run` has chosen thresholds.
    """

    def __init__(
        self, model: nn.Cell, loaded: Checkpoint, splits: Splits, config: RunConfig, folder: Path, mode: int
    ) -> None:
        self._model, self._loaded, self._splits, self._config = model, loaded, splits, config
        self._settings: EvalSection = config.eval
        self._folder = folder
        self._cell = AllExits(model)
        self._gmacs = cumulative_gmacs(loaded.model)
        self._classifier = AdaptiveClassifier(model, batch_sizes=[config.eval.batch_size])
        self.partial = Partial(folder, _identity(loaded, config, mode))
        self.left_out: dict[str, int] = {}
        self.choice: Choice | None = None
        self.examples: list = []
        self.extremes: list = []
        self.attention: list = []

    def run(self, stored: dict[str, Any] | None) -> dict[str, Any]:
        """All results; `stored` are those of the checkpoint where its thresholds are to be used, else None."""
        batch_size = self._settings.batch_size
        images = speed.sample(self._splits, self._settings.throughput_images)
        seconds = speed.stage_seconds(self._classifier, images, batch_size)
        costs = Costs(np.asarray(self._gmacs), seconds)

        calibration, choice = None, from_metadata(self._loaded.metadata)
        temperatures = None if choice is None or choice.rule.temperatures is None else choice.rule.temperatures
        if stored is None:
            scaled = self._settings.temperature_scaling
            found = self._all_exits("calibration", keep_probabilities=scaled)
            temperatures, calibration = None, found.outcomes
            if scaled:
                temperatures = [fit_temperature(each, found.outcomes.labels) for each in found.probabilities]
                calibration = Outcomes.of(found.probabilities, found.outcomes.labels, temperatures)
            choice = choose_thresholds(calibration, costs, self._settings, temperatures)
            rows = early_exit.find_sweep_thresholds(found.confidence)
        else:
            rows = np.asarray(stored["dynamic_threshold"], np.float32)
        found = self._all_exits("val", temperatures, self._settings.keep_probabilities)
        val = found.outcomes
        sweep = early_exit.evaluate_scores(found.confidence, val.correct, self._gmacs, rows)

        results = self._facts(val, costs)
        results["sweep"] = {
            "thresholds": sweep.thresholds.tolist(),
            "accuracy": sweep.accuracy.tolist(),
            "expected_gmacs": sweep.expected_cost.tolist(),
            "exit_fractions": sweep.exit_fractions.tolist(),
        }
        results["reliability"] = _reliability(val, found.confidence, temperatures)
        others: Sequence[np.ndarray] = sweep.thresholds
        if calibration is not None:
            rule = self._settings.exit_rule
            frontier = find_frontier(calibration.scores_of(rule), calibration.correct, costs.gmacs)
            results["frontier"] = frontier_on(frontier, val, costs, rule)
            results["rules"] = compare_rules(calibration, val, costs)
            results["searches"] = compare_searches(calibration, val, costs, rule)
            others = results["frontier"]["thresholds"]
        exit_index, self.choice = None, choice
        if choice is not None:
            exit_index = early_exit.assign_exits(val.scores_of(choice.rule.name), choice.thresholds)
            results["recommended"] = setting(val, costs, choice.thresholds, choice.rule.name) | {
                "rule": choice.reason,
                "exit_rule": choice.rule.to_dict(),
                "budget": met(choice, calibration, val, costs),
                "calibration_accuracy": choice.calibration_accuracy,
            }
            results["per_class"] = groups.by_class(val, exit_index, self._splits.class_names)
            results["groups"] = groups.by_attribute(val, exit_index, self._splits)
            self._choose_pictures(val, found.confidence, exit_index)
        results["throughput"] = self._measure(images, val, costs, choice, others)
        self._keep(val, calibration, costs, choice, exit_index, found.probabilities)
        return results

    def _all_exits(
        self, split: str, temperatures: Sequence[float] | None = None, keep_probabilities: bool = False
    ) -> SplitOutputs:
        """Outputs of the images of a split that can be read; from here on, these are the split."""
        batch_size = self._settings.batch_size
        found = run_all_exits(
            self._cell, self._splits, split, batch_size, self.partial, temperatures, keep_probabilities
        )
        bad = found.outcomes.labels == LEFT_OUT
        if not bad.any():
            return found
        self._splits.bad_images.check(split, int(bad.sum()))
        log.warning(
            "%d of %d images of %s cannot be read; all results are over the other %d",
            bad.sum(),
            len(bad),
            split,
            (~bad).sum(),
        )
        self._splits = self._splits.without(split, np.flatnonzero(bad))
        self.left_out[split] = int(bad.sum())
        return found.chosen(~bad)

    def _facts(self, val: Outcomes, costs: Costs) -> dict[str, Any]:
        curve = published_curve(self._loaded.model, self._config.data.dataset)
        return {
            "model": self._loaded.model.to_dict(),
            "dataset": self._config.data.dataset,
            "num_images": len(val.labels),
            "images_left_out": self.left_out,
            "class_names": list(self._splits.class_names),
            "date": datetime.date.today().isoformat(),
            "machine": device.describe_machine(),
            "config": config_to_dict(self._config),
            "cumulative_gmacs": list(self._gmacs),
            "cumulative_seconds": costs.seconds.tolist(),
            "anytime_accuracy": val.accuracy,
            "published": None if curve is None else vars(curve),
            "recommended": None,
            "groups": {},
            "per_class": {},
        }

    def _choose_pictures(self, val: Outcomes, confidence: np.ndarray, exit_index: np.ndarray) -> None:
        self.examples = pictures.examples_by_exit(self._splits, val, confidence, exit_index)
        self.extremes = pictures.extremes_by_class(self._splits, val, confidence, exit_index)
        self.attention = pictures.attention_examples(self._model, self._splits, val, exit_index)

    def _measure(
        self, images: np.ndarray, val: Outcomes, costs: Costs, choice: Choice | None, others: Sequence
    ) -> dict[str, Any]:
        rule = ExitRule() if choice is None else choice.rule
        spread = np.unique(np.linspace(0, len(others) - 1, speed.TIMED_SETTINGS, dtype=int))
        rows = [np.asarray(others[i], np.float32) for i in spread]
        classifier = self._classifier.with_rule(rule)
        return speed.measure(self._cell, classifier, images, val, costs, choice, rows, self._settings.batch_size)

    def _keep(
        self,
        val: Outcomes,
        calibration: Outcomes | None,
        costs: Costs,
        choice: Choice | None,
        exit_index: np.ndarray | None,
        probabilities: np.ndarray | None,
    ) -> None:
        temperatures = None if choice is None else choice.rule.temperatures
        Predictions(
            val,
            np.asarray(costs.gmacs),
            calibration,
            costs.seconds,
            None if temperatures is None else np.asarray(temperatures),
            None if choice is None else choice.thresholds,
            exit_index,
            probabilities,
        ).save(self._folder / PREDICTIONS_FILE)


def _identity(loaded: Checkpoint, config: RunConfig, mode: int) -> dict[str, Any]:
    """All that what is kept of the outputs of all exits depends on."""
    digest = hashlib.sha256()
    for name in sorted(loaded.weights):
        digest.update(name.encode() + loaded.weights[name].tobytes())
    return {
        "weights": digest.hexdigest(),
        "model": loaded.model.to_dict(),
        "data": vars(config.data),
        "seed": config.seed,
        "batch_size": config.eval.batch_size,
        "mode": mode,  # the scores of mode 1 are taken at stored temperatures
        "temperature_scaling": config.eval.temperature_scaling,
        "keep_probabilities": config.eval.keep_probabilities,
    }


def _reliability(val: Outcomes, confidence: np.ndarray, temperatures: Sequence[float] | None) -> list[dict[str, Any]]:
    """Per exit: bins of confidence against accuracy, and the expected calibration error, before and after scaling.

    `confidence` (K, n) is that before; the scores of `val` are those after.
    """
    rows = []
    for k, correct in enumerate(val.correct):
        plain = reliability(confidence[k], correct)
        row = {
            "counts": plain.counts.tolist(),
            "confidence": _with_gaps(plain.confidence),
            "accuracy": _with_gaps(plain.accuracy),
            "expected_calibration_error": plain.expected_error,
        }
        if temperatures is not None:
            scaled = reliability(val.scores["confidence"][k], correct)
            row |= {"temperature": temperatures[k], "scaled_expected_calibration_error": scaled.expected_error}
        rows.append(row)
    return rows


def _with_gaps(values: np.ndarray) -> list[float | None]:
    """NaN, which JSON cannot hold, as None."""
    return [None if np.isnan(value) else float(value) for value in values]


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


def _store(checkpoint: str, loaded: Checkpoint, splits: Splits, results: dict[str, Any], choice: Choice) -> None:
    """Thresholds and results into the checkpoint, under the names of the released ones.

    Converted files know neither their preprocessing nor their classes: they get those that they were evaluated with.
    """
    metadata = {"preprocessing": splits.preprocessing, "class_names": list(splits.class_names), **loaded.metadata}
    metadata["results"] = {
        "flops": results["cumulative_gmacs"],
        "anytime_classification": results["anytime_accuracy"],
        "dynamic_threshold": results["sweep"]["thresholds"],
        "budgeted_batch_classification": [results["sweep"]["expected_gmacs"], results["sweep"]["accuracy"]],
    }
    metadata |= to_metadata(choice, results["recommended"])
    save_checkpoint(checkpoint, loaded.weights, metadata)
    log.info("stored thresholds and results in %s", checkpoint)
