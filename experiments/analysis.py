"""What claims have in common: curves of accuracy against cost, and mean and spread over seeds. NumPy only.

Thresholds are always chosen on the calibration images and judged on the test images. Axis letters: K exits, P points.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dvt.early_exit import evaluate_scores
from dvt.early_exit.budgets import Costs, evaluate_thresholds
from dvt.early_exit.search import Frontier, SearchName, find_frontier
from experiments.runs import Run

CURVE_POINTS = 25
# Shares of the way from the first exit's cost to the last's.
COMPARED_BUDGETS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class Curve(NamedTuple):
    """Accuracy (P,) in percent and cost (P,) in GMACs on the test images of the thresholds (P, K), by rising cost on
    the calibration images."""

    accuracy: np.ndarray
    gmacs: np.ndarray
    thresholds: np.ndarray


def frontier_of(run: Run, rule: str = "confidence", search: SearchName = "optimised") -> Frontier:
    """The best thresholds of a run, on the calibration images."""
    return find_frontier(run.calibration.scores[rule], run.calibration.correct, run.gmacs, search)


def curve_of(run: Run) -> Curve:
    """The frontier of a run, judged on the test images."""
    rows = frontier_of(run).thresholds
    tried = evaluate_scores(run.val.scores["confidence"], run.val.correct, run.gmacs, rows)
    return Curve(tried.accuracy, tried.expected_cost, rows)


def matched(curve: Curve, accuracy: float) -> int | None:
    """The cheapest point at least as accurate; None if there is none."""
    good = np.flatnonzero(curve.accuracy >= accuracy)
    return int(good[np.argmin(curve.gmacs[good])]) if len(good) else None


def accuracies_within(
    run: Run, budgets: Sequence[float], rule: str = "confidence", search: SearchName = "optimised"
) -> np.ndarray:
    """(2, budgets) accuracy in percent on the test and on the calibration images of the thresholds that serve each
    budget (GMACs per image) best on the latter; NaN where none is affordable."""
    frontier, costs, found = frontier_of(run, rule, search), Costs(run.gmacs), []
    for budget in budgets:
        if (best := frontier.within(budget * (1 + 1e-9))) is None:
            found.append((np.nan, np.nan))
        else:
            on_test = evaluate_thresholds(run.val, costs, frontier.thresholds[best], rule).accuracy
            found.append((on_test, frontier.accuracy[best]))
    return np.transpose(found)


def accuracy_within(run: Run, budgets: Sequence[float]) -> np.ndarray:
    """Those on the test images, by confidence."""
    return accuracies_within(run, budgets)[0]


def budgets_between(first: float, last: float, shares: Sequence[float] = COMPARED_BUDGETS) -> np.ndarray:
    """GMACs at shares of the way from `first` to `last`."""
    return first + np.asarray(shares) * (last - first)


def budget_curve(runs: Sequence[Run]) -> dict[str, list[float]]:
    """Mean and standard deviation over the runs of one recipe of the accuracy within budgets, for figures."""
    gmacs = runs[0].gmacs
    budgets = budgets_between(gmacs[0], gmacs[-1], np.linspace(0, 1, CURVE_POINTS))
    accuracy = np.stack([accuracy_within(run, budgets) for run in runs])
    return {"gmacs": budgets.tolist(), "mean": accuracy.mean(axis=0).tolist(), "std": spread(accuracy).tolist()}


def spread(values: np.ndarray) -> np.ndarray:
    """Standard deviation over the first axis, the seeds; 0 of a single one."""
    return values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1:])


def measured(values: Sequence[float], digits: int = 2) -> dict[str, Any]:
    """A cell of a table: mean and standard deviation over seeds, of those that have a value."""
    known = np.asarray([value for value in values if value is not None and np.isfinite(value)], float)
    if not len(known):
        return {"mean": None, "std": None, "n": 0, "digits": digits}
    std = float(known.std(ddof=1)) if len(known) > 1 else None
    return {"mean": float(known.mean()), "std": std, "n": len(known), "digits": digits}


def point(runs: Sequence[Run], exit_index: int = -1) -> dict[str, float]:
    """Cost, and mean and spread of the accuracy, of one exit taken by every image, for figures."""
    accuracy = np.asarray([run.val.accuracy[exit_index] for run in runs])
    return {
        "gmacs": float(runs[0].gmacs[exit_index]),
        "mean": float(accuracy.mean()),
        "std": float(spread(accuracy)),
    }
