"""The evaluation of a checkpoint, from images to report.

Two different things are reported and named so: GMACs, which are computed, and images/s, which are measured on this
machine with `AdaptiveClassifier` really leaving early. Axis letters: K exits, n images, P points of the sweep.
"""

import datetime
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import nn

from dvt import device, early_exit
from dvt.checkpoint.native import Checkpoint, model_of, read_checkpoint
from dvt.config.files import config_to_dict
from dvt.config.sections import RunConfig
from dvt.data import Splits, load_splits, load_validation
from dvt.data.bad_images import LEFT_OUT
from dvt.early_exit import budgets
from dvt.early_exit.budgets import Choice, Costs
from dvt.early_exit.outcomes import PREDICTIONS_FILE, Outcomes, StoredPredictions
from dvt.early_exit.scores import CONFIDENCE, ExitRule
from dvt.early_exit.temperature import fit_temperature, reliability
from dvt.errors import ConfigError, work_begun
from dvt.evaluation.all_exits import Keep, Partial, run_all_exits
from dvt.evaluation.checks import check_calibration, check_fit
from dvt.evaluation.groups import by_attribute, by_class
from dvt.evaluation.published import published_curve
from dvt.evaluation.speed import SpeedTest
from dvt.evaluation.stored import store_results, stored_results, stored_summary
from dvt.models.cascade import AllExits
from dvt.models.cost import cumulative_gmacs
from dvt.report.page import write_report
from dvt.report.results import ExitReliability, Results, SweepCurve
from dvt.report.words import summary
from dvt.safe_files import require_writable

TIMED_SETTINGS = 6  # points of the curve whose images/s are measured, beside the recommended one

log = logging.getLogger(__name__)


def evaluate_checkpoint(
    checkpoint: str, mode: int, config: RunConfig, output: str, loaded: Checkpoint | None = None
) -> Results | None:
    """The published tool's modes: 0 print the results stored in the checkpoint, 1 evaluate on `val` with the
    thresholds stored in it, 2 find thresholds on the calibration images, then evaluate on `val`.

    Modes 1 and 2 write `report.html`, figures, `results.json` and `predictions.npz` into `output` and return the
    results. Interrupted, they go on where they were when called again with the same arguments. With `eval.store`, mode
    2 also writes thresholds and results into the checkpoint. `loaded` is the content of `checkpoint`, where it has been
    read before. Raises CheckpointError, ConfigError, DataError or DeviceError before any long work starts; a budget
    that cannot be met is known only after the calibration images.
    """
    if config.eval.store and mode != 2:
        raise ConfigError(f"eval.store needs --mode 2, which finds what is to be stored; mode {mode} only reads it")
    loaded = loaded or read_checkpoint(checkpoint)
    stored = None if mode == 2 else stored_results(loaded, checkpoint)
    if mode == 0:
        print(stored_summary(loaded, stored))
        return None
    used = device.set_up(config.device_target)
    model = model_of(loaded, checkpoint)
    if mode == 2:
        splits = load_splits(config.data, loaded.model.image_size, config.seed)
    else:  # no training image is needed, nor looked at
        known = loaded.metadata.get("preprocessing") or {}
        mean, std = (getattr(config.data, key) or known.get(key) for key in ("mean", "std"))
        splits = load_validation(replace(config.data, mean=mean, std=std), loaded.model.image_size)
    check_fit(loaded, splits, checkpoint)
    if mode == 2:
        check_calibration(loaded, config, checkpoint)
    folder = Path(output)
    require_writable(folder)  # before any long work
    log.info("device: %s", used.description)
    for line in splits.describe().splitlines():
        log.info("%s", line)

    partial = Partial(folder, _identity(loaded, splits, mode, config))
    evaluation = _Evaluation(model, splits, config, partial)
    if stored is None:
        thresholds = evaluation.find_thresholds()
    else:
        thresholds = _Thresholds(np.float32(stored["dynamic_threshold"]), Choice.from_metadata(loaded.metadata))
    val = evaluation.run("val", thresholds.rule.temperatures, config.eval.keep_probabilities)
    choice, temperatures = thresholds.choice, thresholds.rule.temperatures
    exit_index = choice and early_exit.assign_exits(val.scores_of(choice.rule.name), choice.thresholds)
    results = evaluation.results(thresholds, val, exit_index, {"checkpoint": checkpoint, "mode": mode})
    StoredPredictions(
        val=val,
        cumulative_gmacs=evaluation.costs.gmacs,
        calibration=thresholds.calibration,
        cumulative_seconds=evaluation.costs.seconds,
        temperatures=None if temperatures is None else np.asarray(temperatures),
        thresholds=choice and choice.thresholds,
        exit_index=exit_index,
    ).save(folder / PREDICTIONS_FILE)
    page = write_report(results, folder)
    partial.remove()
    if config.eval.store:
        store_results(checkpoint, loaded, splits, results, choice)
    print(summary(results))
    print(f"report: {page}")
    return results


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
    """The steps of an evaluation, in the order of their use."""

    def __init__(self, model: nn.Cell, splits: Splits, config: RunConfig, partial: Partial) -> None:
        self._model, self._config, self._partial, self._cell = model.config, config, partial, AllExits(model)
        self._splits = splits  # of a split that was run, only the images that can be read
        self._left_out: dict[str, int] = {}  # the number of the others, by split
        self._speed_test = SpeedTest(self._cell, splits, config.eval)

    @cached_property
    def costs(self) -> Costs:
        """Measured at the first use, when some images have been run: how long that took bounds the measurement."""
        return Costs(np.asarray(cumulative_gmacs(self._model)), self._speed_test.stage_seconds())

    @work_begun()
    def run(self, split: str, temperatures: Sequence[float] | None, probabilities: bool) -> Outcomes:
        """Every exit on the images of a split that can be read, scored at `temperatures`; from here on, these images
        are the split."""
        keep = Keep(temperatures, probabilities, self._partial)
        found = run_all_exits(self._cell, self._splits, split, self._config.eval.batch_size, keep)
        bad = found.labels == LEFT_OUT
        if not bad.any():
            return found
        count = self._left_out[split] = int(bad.sum())
        self._splits.bad_images.check(split, count)
        log.warning("%d of %d images of %s cannot be read; all results are over the others", count, len(bad), split)
        self._splits = self._splits.without(split, np.flatnonzero(bad))
        return found.chosen(~bad)

    @work_begun()
    def find_thresholds(self) -> _Thresholds:
        """From the calibration images."""
        settings, temperatures = self._config.eval, None
        found = self.run("calibration", None, settings.temperature_scaling)
        if settings.temperature_scaling:
            temperatures = [fit_temperature(each, found.labels) for each in found.probabilities]
            found = Outcomes.of(found.probabilities, found.labels, temperatures)
        choice = budgets.choose_thresholds(found, self.costs, settings, temperatures)
        return _Thresholds(early_exit.find_sweep_thresholds(found.largest), choice, found)

    @work_begun()
    def results(
        self, thresholds: _Thresholds, val: Outcomes, exit_index: np.ndarray | None, asked: dict[str, Any]
    ) -> Results:
        """All that is found on the validation images, which take the exits `exit_index` (n,); measures images/s."""
        config, costs = self._config, self.costs
        choice, calibration, rule = thresholds.choice, thresholds.calibration, thresholds.rule
        # The published sweep compares confidences at no temperature, whatever the exit rule.
        swept = early_exit.evaluate_scores(val.largest, val.correct, costs.gmacs, thresholds.sweep)
        sweep = SweepCurve(
            thresholds=swept.thresholds.tolist(),
            accuracy=swept.accuracy.tolist(),
            expected_gmacs=swept.expected_cost.tolist(),
            exit_fractions=swept.exit_fractions.tolist(),
        )
        frontier = calibration and budgets.frontier_curve(calibration, val, costs, rule.name)
        recommended = choice and budgets.recommend(choice, calibration, val, costs)
        rows = np.asarray((frontier or sweep).thresholds, np.float32)
        rows = rows[budgets.evenly_spread(len(rows), TIMED_SETTINGS)]
        timed = [budgets.evaluate_thresholds(val, costs, row, rule.name) for row in rows]
        if recommended:
            timed = [recommended, *(each for each in timed if each.thresholds != recommended.thresholds)]
        return Results(
            **asked,
            model=self._model.to_dict(),
            dataset=config.data.dataset,
            num_images=len(val.labels),
            images_left_out=self._left_out,
            class_names=list(self._splits.class_names),
            date=datetime.date.today().isoformat(),
            machine=device.describe_machine(),
            config=config_to_dict(config),
            cumulative_gmacs=costs.gmacs.tolist(),
            cumulative_seconds=None if costs.seconds is None else costs.seconds.tolist(),
            anytime_accuracy=val.accuracy,
            sweep=sweep,
            frontier=frontier,
            published=published_curve(self._model, config.data.dataset),
            recommended=recommended,
            groups={} if exit_index is None else by_attribute(self._splits, val, exit_index),
            per_class={} if exit_index is None else by_class(self._splits, val, exit_index),
            reliability=_reliability(val, rule),
            throughput=self._speed_test.measure(timed, rule, costs.gmacs),
        )


def _identity(loaded: Checkpoint, splits: Splits, mode: int, config: RunConfig) -> dict[str, Any]:
    """All that what is kept of the outputs of all exits depends on."""
    digest = hashlib.sha256()
    for name in sorted(loaded.weights):
        digest.update(name.encode() + loaded.weights[name].tobytes())
    return {
        "weights": digest.hexdigest(),
        "model": loaded.model.to_dict(),
        "data": vars(config.data),
        "images": splits.identity(),
        "seed": config.seed,
        "batch_size": config.eval.batch_size,
        "mode": mode,  # the scores of mode 1 are taken at stored temperatures
        "temperature_scaling": config.eval.temperature_scaling,
        "keep_probabilities": config.eval.keep_probabilities,
    }


def _reliability(val: Outcomes, rule: ExitRule) -> list[ExitReliability]:
    """Of each exit; the scores of `val` are those at the temperatures of the rule."""
    rows = []
    for k, correct in enumerate(val.correct):
        plain, scaled = reliability(val.largest[k], correct), {}
        if rule.temperatures is not None:
            error = reliability(val.scores["confidence"][k], correct).expected_error
            scaled = {"temperature": rule.temperatures[k], "scaled_expected_calibration_error": error}
        rows.append(
            ExitReliability(
                counts=plain.counts.tolist(),
                confidence=_with_gaps(plain.confidence),
                accuracy=_with_gaps(plain.accuracy),
                expected_calibration_error=plain.expected_error,
                **scaled,
            )
        )
    return rows


def _with_gaps(values: np.ndarray) -> list[float | None]:
    """NaN, which JSON cannot hold, as None."""
    return [None if np.isnan(value) else float(value) for value in values]
