"""The evaluation of a checkpoint, from images to report.

Two different things are reported and named so: GMACs, which are computed, and images/s, which are measured on this
machine with `AdaptiveClassifier` really leaving early. Axis letters: K exits, n images, P points of the sweep.
"""

import datetime
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import nn

from dvt import device, early_exit
from dvt.checkpoint.native import Checkpoint, load_model
from dvt.config.files import config_to_dict
from dvt.config.sections import RunConfig
from dvt.data import Splits, load_splits
from dvt.data.bad_images import LEFT_OUT
from dvt.early_exit import budgets
from dvt.early_exit.budgets import Choice, Costs
from dvt.early_exit.classifier import AdaptiveClassifier
from dvt.early_exit.outcomes import PREDICTIONS_FILE, Outcomes, StoredPredictions
from dvt.early_exit.scores import CONFIDENCE, ExitRule
from dvt.early_exit.search import Frontier, find_frontier
from dvt.early_exit.temperature import fit_temperature, reliability
from dvt.errors import ConfigError
from dvt.evaluation import groups, pictures
from dvt.evaluation.all_exits import ExitsTaken, Keep, Partial, SplitOutputs, run_all_exits
from dvt.evaluation.checks import check_calibration, check_fit
from dvt.evaluation.published import published_curve
from dvt.evaluation.speed import SpeedTest, sample
from dvt.evaluation.stored import store_results, stored_results, stored_summary
from dvt.models.cascade import AllExits
from dvt.models.cost import cumulative_gmacs
from dvt.report.results import ExitReliability, Results, SweepCurve
from dvt.report.words import summary
from dvt.report.write import write_report
from dvt.safe_files import require_writable

TIMED_SETTINGS = 6  # points of the curve whose images/s are measured, beside the recommended one

log = logging.getLogger(__name__)


def evaluate_checkpoint(checkpoint: str, mode: int, config: RunConfig, output: str) -> Results | None:
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
    stored = None if mode == 2 else stored_results(loaded, checkpoint)
    if mode == 0:
        print(stored_summary(loaded, stored))
        return None
    splits = load_splits(config.data, loaded.model.image_size, config.seed)
    check_fit(loaded, splits, checkpoint)
    if mode == 2:
        check_calibration(loaded, config, checkpoint)
    folder = Path(output)
    require_writable(folder)  # before any long work
    log.info("device: %s", used.description)
    for line in splits.describe().splitlines():
        log.info("%s", line)

    evaluation = _Evaluation(_Job(checkpoint, mode, config, folder), model, loaded, splits)
    thresholds = evaluation.find_thresholds() if stored is None else evaluation.stored_thresholds(stored)
    found = evaluation.run_val(thresholds.rule)
    taken = evaluation.exits_taken(thresholds, found)
    results = evaluation.results(thresholds, found, taken)
    evaluation.predictions(thresholds, found, taken).save(folder / PREDICTIONS_FILE)
    page = write_report(results, folder, **(pictures.chosen(model, taken) if taken else {}))
    evaluation.partial.remove()
    if config.eval.store:
        store_results(checkpoint, loaded, splits, results, thresholds.choice)
    print(summary(results))
    print(f"report: {page}")
    return results


@dataclass(frozen=True)
class _Job:
    """What is asked for; `folder` is that of the results."""

    checkpoint: str
    mode: int
    config: RunConfig
    folder: Path


@dataclass(frozen=True)
class _Thresholds:
    """Where images may leave."""

    sweep: np.ndarray  # (P, K) of the published sweep
    choice: Choice | None  # the recommended ones; None for a checkpoint that stores only a sweep
    calibration: Outcomes | None = None  # the images that they were found on; None for stored ones

    @property
    def rule(self) -> ExitRule:
        return CONFIDENCE if self.choice is None else self.choice.rule


class _Evaluation:
    """The steps of an evaluation, in the order of their use; making it measures the seconds of every exit.

    Attributes:
        partial: The outputs so far, kept in case of an interruption.
    """

    def __init__(self, job: _Job, model: nn.Cell, loaded: Checkpoint, splits: Splits) -> None:
        self._job, self._loaded, self._settings = job, loaded, job.config.eval
        self._splits = splits  # of a split that was run, only the images that can be read
        self._left_out: dict[str, int] = {}  # the number of the others, by split
        self.partial = Partial(job.folder, _identity(job, loaded))
        self._cell = AllExits(model)
        batch_size = self._settings.batch_size
        images = sample(splits, self._settings.throughput_images)
        classifier = AdaptiveClassifier(model, batch_sizes=[batch_size])
        self._speed_test = SpeedTest(self._cell, classifier, images, batch_size)
        self._costs = Costs(np.asarray(cumulative_gmacs(loaded.model)), self._speed_test.stage_seconds())

    def find_thresholds(self) -> _Thresholds:
        """From the calibration images."""
        scaled, temperatures = self._settings.temperature_scaling, None
        found = self._run("calibration", Keep(probabilities=scaled, partial=self.partial))
        calibration = found.outcomes
        if scaled:
            temperatures = [fit_temperature(each, calibration.labels) for each in found.probabilities]
            calibration = Outcomes.of(found.probabilities, calibration.labels, temperatures)
        choice = budgets.choose_thresholds(calibration, self._costs, self._settings, temperatures)
        return _Thresholds(early_exit.find_sweep_thresholds(found.confidence), choice, calibration)

    def stored_thresholds(self, stored: dict[str, Any]) -> _Thresholds:
        """Those of the checkpoint, whose results are `stored`."""
        sweep = np.asarray(stored["dynamic_threshold"], np.float32)
        return _Thresholds(sweep, Choice.from_metadata(self._loaded.metadata))

    def run_val(self, rule: ExitRule) -> SplitOutputs:
        """Every exit on the validation images, scored at the temperatures of a rule."""
        return self._run("val", Keep(rule.temperatures, self._settings.keep_probabilities, self.partial))

    def _run(self, split: str, keep: Keep) -> SplitOutputs:
        """Outputs of the images of a split that can be read; from here on, these are the split."""
        found = run_all_exits(self._cell, self._splits, split, self._settings.batch_size, keep)
        bad = found.outcomes.labels == LEFT_OUT
        if not bad.any():
            return found
        count = int(bad.sum())
        self._splits.bad_images.check(split, count)
        log.warning(
            "%d of %d images of %s cannot be read; all results are over the other %d",
            *(count, len(bad), split, len(bad) - count),
        )
        self._splits = self._splits.without(split, np.flatnonzero(bad))
        self._left_out[split] = count
        return found.chosen(~bad)

    def exits_taken(self, thresholds: _Thresholds, found: SplitOutputs) -> ExitsTaken | None:
        """With the recommended thresholds; None without any."""
        if thresholds.choice is None:
            return None
        scores = found.outcomes.scores_of(thresholds.rule.name)
        exit_index = early_exit.assign_exits(scores, thresholds.choice.thresholds)
        return ExitsTaken(self._splits, found.outcomes, found.confidence, exit_index)

    def results(self, thresholds: _Thresholds, found: SplitOutputs, taken: ExitsTaken | None) -> Results:
        """All that is found on the validation images; measures images/s."""
        config, costs = self._job.config, self._costs
        choice, calibration, rule = thresholds.choice, thresholds.calibration, thresholds.rule
        val = found.outcomes
        sweep = _sweep(found, thresholds.sweep, costs)
        frontier = calibration and budgets.frontier_curve(_frontier(calibration, costs, rule), val, costs, rule.name)
        recommended = choice and budgets.recommend(choice, calibration, val, costs)
        rows = np.asarray((frontier or sweep).thresholds, np.float32)
        rows = rows[budgets.evenly_spread(len(rows), TIMED_SETTINGS)]
        timed = [budgets.evaluate_thresholds(val, costs, row, rule.name) for row in rows]
        if recommended:
            timed = [recommended, *(each for each in timed if each.thresholds != recommended.thresholds)]
        return Results(
            model=self._loaded.model.to_dict(),
            checkpoint=self._job.checkpoint,
            mode=self._job.mode,
            dataset=config.data.dataset,
            num_images=len(val.labels),
            images_left_out=self._left_out,
            class_names=list(self._splits.class_names),
            date=datetime.date.today().isoformat(),
            machine=device.describe_machine(),
            config=config_to_dict(config),
            cumulative_gmacs=costs.gmacs.tolist(),
            cumulative_seconds=costs.seconds.tolist(),
            anytime_accuracy=val.accuracy,
            sweep=sweep,
            frontier=frontier,
            published=published_curve(self._loaded.model, config.data.dataset),
            recommended=recommended,
            groups=groups.by_attribute(taken) if taken else {},
            per_class=groups.by_class(taken) if taken else {},
            reliability=_reliability(found, rule.temperatures),
            rules=budgets.compare_rules(calibration, val, costs) if calibration else [],
            searches=budgets.compare_searches(calibration, val, costs, rule.name) if calibration else [],
            throughput=self._speed_test.measure(timed, rule, costs.gmacs),
        )

    def predictions(self, thresholds: _Thresholds, found: SplitOutputs, taken: ExitsTaken | None) -> StoredPredictions:
        """What `dvt thresholds` needs later."""
        temperatures, choice = thresholds.rule.temperatures, thresholds.choice
        return StoredPredictions(
            val=found.outcomes,
            cumulative_gmacs=self._costs.gmacs,
            calibration=thresholds.calibration,
            cumulative_seconds=self._costs.seconds,
            temperatures=None if temperatures is None else np.asarray(temperatures),
            thresholds=None if choice is None else choice.thresholds,
            exit_index=None if taken is None else taken.exit_index,
            probabilities=found.probabilities,
        )


def _identity(job: _Job, loaded: Checkpoint) -> dict[str, Any]:
    """All that what is kept of the outputs of all exits depends on."""
    digest = hashlib.sha256()
    for name in sorted(loaded.weights):
        digest.update(name.encode() + loaded.weights[name].tobytes())
    return {
        "weights": digest.hexdigest(),
        "model": loaded.model.to_dict(),
        "data": vars(job.config.data),
        "seed": job.config.seed,
        "batch_size": job.config.eval.batch_size,
        "mode": job.mode,  # the scores of mode 1 are taken at stored temperatures
        "temperature_scaling": job.config.eval.temperature_scaling,
        "keep_probabilities": job.config.eval.keep_probabilities,
    }


def _sweep(found: SplitOutputs, rows: np.ndarray, costs: Costs) -> SweepCurve:
    """The published sweep compares confidences at no temperature, whatever the exit rule."""
    swept = early_exit.evaluate_scores(found.confidence, found.outcomes.correct, costs.gmacs, rows)
    return SweepCurve(
        thresholds=swept.thresholds.tolist(),
        accuracy=swept.accuracy.tolist(),
        expected_gmacs=swept.expected_cost.tolist(),
        exit_fractions=swept.exit_fractions.tolist(),
    )


def _frontier(calibration: Outcomes, costs: Costs, rule: ExitRule) -> Frontier:
    return find_frontier(calibration.scores_of(rule.name), calibration.correct, costs.gmacs)


def _reliability(found: SplitOutputs, temperatures: Sequence[float] | None) -> list[ExitReliability]:
    """Of each exit; the scores of `found.outcomes` are those at the temperatures (K,)."""
    rows = []
    for k, correct in enumerate(found.outcomes.correct):
        plain, temperature, scaled_error = reliability(found.confidence[k], correct), None, None
        if temperatures is not None:
            temperature = temperatures[k]
            scaled_error = reliability(found.outcomes.scores["confidence"][k], correct).expected_error
        rows.append(
            ExitReliability(
                counts=plain.counts.tolist(),
                confidence=_with_gaps(plain.confidence),
                accuracy=_with_gaps(plain.accuracy),
                expected_calibration_error=plain.expected_error,
                temperature=temperature,
                scaled_expected_calibration_error=scaled_error,
            )
        )
    return rows


def _with_gaps(values: np.ndarray) -> list[float | None]:
    """NaN, which JSON cannot hold, as None."""
    return [None if np.isnan(value) else float(value) for value in values]
