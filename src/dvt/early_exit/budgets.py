"""From a budget to thresholds, and what came of it on images that the thresholds were not chosen on.

Used by the evaluation and by `dvt thresholds`, which asks the same of a stored file. Plain NumPy. Axis letter: K exits.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dvt.config.sections import EvalSection
from dvt.early_exit.decisions import evaluate_scores
from dvt.early_exit.outcomes import Outcomes
from dvt.early_exit.rules import RANDOM, RULES, ExitRule, describe
from dvt.early_exit.search import Budget, Frontier, choose, find_frontier
from dvt.errors import ConfigError

COMPARED_BUDGETS = (
    0.2,
    0.3,
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
)  # shares of the way from the first exit's cost to the last's
SHOWN_POINTS = 60  # of a frontier, in reports


@dataclass(frozen=True)
class Costs:
    """Average cost per image of leaving at each exit, earlier ones included.

    Attributes:
        gmacs: (K,) computed.
        seconds: (K,) measured on this device at the batch size in use; None if nothing was measured.
    """

    gmacs: np.ndarray
    seconds: np.ndarray | None = None

    def of(self, budget: Budget) -> np.ndarray:
        """(K,) costs in the unit that the budget is about. Raises ConfigError if no times were measured."""
        if budget.kind != "images_per_second":
            return np.asarray(self.gmacs, np.float64)
        if self.seconds is None:
            raise ConfigError("a budget of images/s needs measured times, and none are stored; evaluate again here")
        return np.asarray(self.seconds, np.float64)


@dataclass(frozen=True)
class Choice:
    """Thresholds (K,) float32, the rule that is compared with them, and why these."""

    thresholds: np.ndarray
    rule: ExitRule
    reason: str
    budget: Budget | None = None
    search: str | None = None
    calibration_accuracy: float | None = None  # percent


def to_metadata(choice: Choice, results: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint keeps of a choice: `early_exit`, all of it, and `thresholds`, the row by itself.

    `thresholds` is None for another rule than the plain confidence: whoever reads nothing else compares confidences.
    """
    early_exit = {
        "thresholds": [float(value) for value in choice.thresholds],
        "exit_rule": choice.rule.to_dict(),
        **{key: results[key] for key in ("accuracy", "expected_gmacs", "exit_fractions", "budget")},
    }
    plain = choice.rule == ExitRule()
    return {"early_exit": early_exit, "thresholds": early_exit["thresholds"] if plain else None}


def from_metadata(metadata: dict[str, Any]) -> Choice | None:
    """The thresholds and rule stored in a checkpoint; None if it has none."""
    stored = metadata.get("early_exit") or {"thresholds": metadata.get("thresholds")}
    if stored["thresholds"] is None:
        return None
    rule = ExitRule.from_dict(stored.get("exit_rule"))
    return Choice(np.asarray(stored["thresholds"], np.float32), rule, "stored in the checkpoint")


def asked_budget(settings: EvalSection) -> Budget:
    """The budget that the section `eval` of a configuration asks for."""
    if settings.budget_gmacs is not None:
        return Budget("gmacs", settings.budget_gmacs)
    if settings.budget_images_per_second is not None:
        return Budget("images_per_second", settings.budget_images_per_second)
    return Budget("accuracy_drop", settings.max_accuracy_drop)


def choose_thresholds(
    calibration: Outcomes, costs: Costs, settings: EvalSection, temperatures: np.ndarray | None = None
) -> Choice:
    """The thresholds that serve the budget best on the calibration images.

    `temperatures` (K,) are those that the scores were taken at. Raises ConfigError for a budget that cannot be met.
    """
    budget = asked_budget(settings)
    rule = ExitRule(settings.exit_rule, None if temperatures is None else tuple(temperatures))
    frontier = find_frontier(
        calibration.scores_of(rule.name), calibration.correct, costs.of(budget), settings.threshold_search
    )
    point = choose(frontier, budget, calibration.accuracy[-1])
    how = "optimised" if settings.threshold_search == "optimised" else "of the published sweep"
    what = {
        "gmacs": f"most accurate within {budget.amount:g} GMACs per image",
        "images_per_second": f"most accurate at {budget.amount:g} images/s or more, by the measured times of the exits",
        "accuracy_drop": f"cheapest that lose at most {budget.amount:g} points of the last exit's accuracy",
    }[budget.kind]
    reason = f"{what}, {how} on {len(calibration.labels):,} calibration images; exit rule: {describe(rule)}"
    row = np.asarray(frontier.thresholds[point], np.float32)
    return Choice(row, rule, reason, budget, settings.threshold_search, float(frontier.accuracy[point]))


def setting(outcomes: Outcomes, costs: Costs, row: np.ndarray, rule: str = "confidence") -> dict[str, Any]:
    """Accuracy and cost of one threshold vector on these images, as it goes into results."""
    one = evaluate_scores(outcomes.scores_of(rule), outcomes.correct, costs.gmacs, [row])
    fractions = one.exit_fractions[0]
    return {
        "thresholds": [float(t) for t in row],
        "accuracy": float(one.accuracy[0]),
        "expected_gmacs": float(one.expected_cost[0]),
        "cost_fraction": float(one.expected_cost[0] / costs.gmacs[-1]),
        "exit_fractions": fractions.tolist(),
        "expected_images_per_second": None if costs.seconds is None else float(1 / (fractions @ costs.seconds)),
    }


def met(choice: Choice, calibration: Outcomes | None, val: Outcomes, costs: Costs) -> dict[str, Any] | None:
    """The budget asked for beside what the thresholds use on the calibration images and on held-out ones."""
    if choice.budget is None:
        return None

    def used(outcomes: Outcomes | None) -> float | None:
        if outcomes is None:
            return None
        here = setting(outcomes, costs, choice.thresholds, choice.rule.name)
        if choice.budget.kind == "accuracy_drop":
            return outcomes.accuracy[-1] - here["accuracy"]
        return here["expected_gmacs" if choice.budget.kind == "gmacs" else "expected_images_per_second"]

    return {
        "kind": choice.budget.kind,
        "unit": choice.budget.unit,
        "asked": choice.budget.amount,
        "calibration": used(calibration),
        "held_out": used(val),
    }


def frontier_on(frontier: Frontier, outcomes: Outcomes, costs: Costs, rule: str) -> dict[str, Any]:
    """At most `SHOWN_POINTS` points of a frontier, evaluated on other images: what a reader sees as its curve."""
    spread = np.unique(np.linspace(0, len(frontier.cost) - 1, SHOWN_POINTS, dtype=int))
    tried = evaluate_scores(outcomes.scores_of(rule), outcomes.correct, costs.gmacs, frontier.thresholds[spread])
    return {
        "thresholds": tried.thresholds.tolist(),
        "accuracy": tried.accuracy.tolist(),
        "expected_gmacs": tried.expected_cost.tolist(),
        "calibration_accuracy": frontier.accuracy[spread].tolist(),
        "calibration_gmacs": frontier.cost[spread].tolist(),
    }


def compare_rules(calibration: Outcomes, val: Outcomes, costs: Costs) -> list[dict[str, Any]]:
    """Every rule at a few budgets: thresholds from the published sweep, so that only the rule differs."""
    rows = []
    for rule in (*RULES, RANDOM):
        frontier = find_frontier(calibration.scores_of(rule), calibration.correct, costs.gmacs, "published")
        rows.append({"rule": rule, "points": _at_budgets(frontier, val, costs, rule)})
    return rows


def compare_searches(calibration: Outcomes, val: Outcomes, costs: Costs, rule: str) -> list[dict[str, Any]]:
    """The published sweep and the optimised thresholds at the same budgets: on calibration and on held-out images."""
    curves = {
        name: _at_budgets(
            find_frontier(calibration.scores_of(rule), calibration.correct, costs.gmacs, name), val, costs, rule
        )
        for name in ("published", "optimised")
    }
    return [
        {"budget_gmacs": budget, "published": one, "optimised": other}
        for budget, one, other in zip(_budgets(costs), curves["published"], curves["optimised"], strict=True)
        if one is not None and other is not None
    ]


def _budgets(costs: Costs) -> list[float]:
    first, last = costs.gmacs[0], costs.gmacs[-1]
    return [float(first + share * (last - first)) for share in COMPARED_BUDGETS]


def _at_budgets(frontier: Frontier, val: Outcomes, costs: Costs, rule: str) -> list[dict[str, float] | None]:
    """Per compared budget the most accurate affordable point, on both sets; None where there is none."""
    points: list[dict[str, float] | None] = []
    for budget in _budgets(costs):
        affordable = np.flatnonzero(frontier.cost <= budget)
        if len(affordable) == 0:
            points.append(None)
            continue
        best = affordable[-1]
        here = setting(val, costs, frontier.thresholds[best], rule)
        points.append(
            {
                "budget_gmacs": budget,
                "accuracy": here["accuracy"],
                "expected_gmacs": here["expected_gmacs"],
                "calibration_accuracy": float(frontier.accuracy[best]),
            }
        )
    return points
