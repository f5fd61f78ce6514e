"""The evaluation of a checkpoint, from images to report. Axis letters: K exits, n images, P points of the sweep."""

import datetime
import logging
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import nn

from dvt import device, early_exit
from dvt.checkpoint.native import Checkpoint, check_writable, model_of, read_checkpoint
from dvt.config.files import config_to_dict
from dvt.config.sections import RunConfig
from dvt.data import Splits, load_evaluation, load_validation
from dvt.data.bad_images import LEFT_OUT
from dvt.data.classes import ModelClasses
from dvt.early_exit import budgets
from dvt.early_exit.budgets import Choice, Costs
from dvt.early_exit.candidates import parts
from dvt.early_exit.outcomes import PREDICTIONS_FILE, Outcomes, StoredPredictions
from dvt.early_exit.scores import CONFIDENCE
from dvt.early_exit.temperature import fit_temperature
from dvt.errors import ConfigError, work_begun
from dvt.evaluation.all_exits import Keep, Partial, run_all_exits
from dvt.evaluation.published import published_curve
from dvt.evaluation.speed import SpeedTest
from dvt.evaluation.stored import (
    check_calibration,
    check_fit,
    store_results,
    stored_results,
    stored_summary,
    unfit_calibration,
)
from dvt.models.cascade import AllExits
from dvt.models.cost import cumulative_gmacs
from dvt.report.page import write_report
from dvt.report.results import ClassesPresent, Group, Results, SweepCurve
from dvt.report.words import summary
from dvt.safe_files import require_writable

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
    if config.eval.store:
        check_writable(Path(checkpoint))
    loaded = loaded or read_checkpoint(checkpoint)
    stored = None if mode == 2 else stored_results(loaded, checkpoint)
    if mode == 0:
        print(stored_summary(loaded, stored))
        return None
    used = device.set_up(config.device_target)
    model = model_of(loaded, checkpoint)
    classes = ModelClasses(loaded.model.num_classes, loaded.metadata.get("class_names"), config.data.class_map)
    unfit = ""
    if mode == 2:
        check_calibration(loaded, config, checkpoint)
        splits = load_evaluation(config.data, loaded.model.image_size, config.seed, classes)
        unfit = unfit_calibration(loaded, config, splits)
    else:  # no training image is needed, nor looked at
        known = loaded.metadata.get("preprocessing") or {}
        mean, std = (getattr(config.data, key) or known.get(key) for key in ("mean", "std"))
        splits = load_validation(replace(config.data, mean=mean, std=std), loaded.model.image_size, classes)
    check_fit(loaded, splits, checkpoint)
    folder = Path(output)
    require_writable(folder)  # before any long work
    for line in (f"device: {used.description}", *splits.describe().splitlines()):
        log.info("%s", line)

    identity = {  # all that the outputs of the exits depend on; in mode 1, their scores on stored temperatures too
        "weights": {name: zlib.crc32(np.ascontiguousarray(value)) for name, value in loaded.weights.items()},
        "model": loaded.model.to_dict(),
        "data": vars(config.data),
        "images": splits.identity(),
        "seed": config.seed,
        "eval": vars(config.eval),
        "mode": mode,
    }
    partial = Partial(folder, identity)
    evaluation = _Evaluation(model, splits, config, partial)
    evaluation.unfit = unfit
    if stored is None:
        evaluation.find_thresholds()
    else:
        evaluation.sweep = np.float32(stored["dynamic_threshold"])
        evaluation.choice = Choice.from_metadata(loaded.metadata)
    results = evaluation.validate(folder, {"checkpoint": checkpoint, "mode": mode})
    page = write_report(results, folder)
    partial.remove()
    if config.eval.store:
        store_results(checkpoint, loaded, splits, results, evaluation.choice)
    print(summary(results))
    print(f"report: {page}")
    return results


class _Evaluation:
    """The steps of an evaluation, in the order of their use."""

    def __init__(self, model: nn.Cell, splits: Splits, config: RunConfig, partial: Partial) -> None:
        self._model, self._config, self._partial, self._cell = model.config, config, partial, AllExits(model)
        self._splits = splits  # of a split that was run, only the images that can be read
        self._left_out: dict[str, int] = {}  # the number of the others, by split
        self._present = np.unique(splits.source.val.labels)  # classes of which there are images
        self._speed_test = SpeedTest(self._cell, splits, config.eval)
        self.sweep: np.ndarray | None = None  # (P, K) thresholds of the published sweep
        self.choice: Choice | None = None  # the recommended thresholds; None where only a sweep is stored
        self.calibration: Outcomes | None = None  # on which thresholds were found; None for stored ones
        self.unfit = ""  # why the calibration images can certify nothing

    @cached_property
    def costs(self) -> Costs:
        """Measured at the first use, when some images have been run: how long that took bounds the measurement."""
        return Costs(np.asarray(cumulative_gmacs(self._model)), self._speed_test.stage_seconds())

    def _run(self, split: str, temperatures: Sequence[float] | None, probabilities: bool) -> Outcomes:
        """Every exit on the readable images of a split, scored at `temperatures`; they are the split from here on."""
        some = self._present if len(self._present) < self._model.num_classes else None
        keep = Keep(temperatures, probabilities, some, self._partial)
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
    def find_thresholds(self) -> None:
        """From the calibration images."""
        settings, temperatures = self._config.eval, None
        found = self._run("calibration", None, settings.temperature_scaling)
        if settings.temperature_scaling:
            fitted = found if self.unfit else found.chosen(parts(len(found.labels))[0])  # others are for a certificate
            temperatures = [fit_temperature(each, fitted.labels) for each in fitted.probabilities]
            found = Outcomes.of(found.probabilities, found.labels, temperatures)
        self.choice = budgets.choose_thresholds(found, self.costs, settings, temperatures, self.unfit or None)
        self.sweep, self.calibration = early_exit.find_sweep_thresholds(found.largest), found

    @work_begun()
    def validate(self, folder: Path, asked: dict[str, Any]) -> Results:
        """All that is found on the validation images, whose outputs are stored in `folder`; measures images/s."""
        config, choice, calibration = self._config, self.choice, self.calibration
        rule = choice.rule if choice else CONFIDENCE
        val, costs = self._run("val", rule.temperatures, config.eval.keep_probabilities), self.costs
        exit_index = choice and early_exit.assign_exits(val.scores[rule.name], choice.thresholds)
        StoredPredictions(
            val=val,
            cumulative_gmacs=costs.gmacs,
            calibration=calibration,
            cumulative_seconds=costs.seconds,
            temperatures=None if rule.temperatures is None else np.asarray(rule.temperatures),
            thresholds=choice and choice.thresholds,
            exit_index=exit_index,
            unfit=self.unfit,
        ).save(folder / PREDICTIONS_FILE)

        # The published sweep compares confidences at no temperature, whatever the exit rule.
        swept = early_exit.evaluate_scores(val.largest, val.correct, costs.gmacs, self.sweep)
        accuracy, expected_gmacs, thresholds, exit_fractions = (values.tolist() for values in swept)
        recommended = choice and budgets.recommend(choice, calibration, val, costs)
        groups = {}
        for name, values in self._splits.attributes("val").items() if choice else ():
            groups[name] = {str(each): _group(val, exit_index, values == each) for each in np.unique(values)}
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
            sweep=SweepCurve(thresholds, accuracy, expected_gmacs, exit_fractions),
            classes_present=None if val.restricted is None else self._accuracy_of_present(val, exit_index),
            frontier=calibration and budgets.frontier_curve(calibration, val, costs, rule.name),
            published=published_curve(self._model, config.data.dataset) if val.restricted is None else None,
            recommended=recommended,
            groups=groups,
            throughput=recommended and self._speed_test.measure(recommended, rule, costs.gmacs),
        )

    def _accuracy_of_present(self, val: Outcomes, exit_index: np.ndarray | None) -> ClassesPresent:
        right = val.restricted == val.labels  # (K, n)
        chosen = None if exit_index is None else float(100.0 * right[exit_index, np.arange(right.shape[1])].mean())
        return ClassesPresent(len(self._present), (100.0 * right.mean(axis=1)).tolist(), chosen)


def _group(val: Outcomes, exit_index: np.ndarray, members: np.ndarray) -> Group:
    """Of the images where `members` (n,) is true, which leave at `exit_index` (n,)."""
    exits = exit_index[members]
    fractions = np.bincount(exits, minlength=len(val.predicted)) / len(exits)
    return Group(len(exits), float(100.0 * val.correct[exits, np.flatnonzero(members)].mean()), fractions.tolist())
