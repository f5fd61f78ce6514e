"""From a budget to thresholds, and what these bring on images that they were not chosen on.

Used by the evaluation and, on a stored file, by `dvt thresholds`. Plain NumPy. Axis letters: K exits, P points.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dvt.config.sections import EvalSection
from dvt.early_exit.decisions import evaluate_scores
from dvt.early_exit.outcomes import Outcomes
from dvt.early_exit.scores import CONFIDENCE, RANDOM, RULES, ExitRule, describe
from dvt.early_exit.search import Budget, BudgetKind, SearchName, choose
from dvt.errors import ConfigError

# Shares of the way from the first exit's cost to the last's.
COMPARED_BUDGETS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
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


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Accuracy and cost of one threshold vector on some images."""

    thresholds: list[float]  # (K,)
    accuracy: float  # percent
    expected_gmacs: float  # average of an image
    cost_fraction: float  # that as a share of the last exit's cost
    exit_fractions: list[float]  # (K,) share of the images that leave at each exit
    expected_images_per_second: float | None  # by the measured times of the exits


@dataclass(frozen=True)
class BudgetUse:
    """A budget beside what the thresholds chosen for it use, on the calibration images and on held-out ones."""

    kind: BudgetKind
    unit: str
    asked: float
    calibration: float | None
    held_out: float


@dataclass(frozen=True, kw_only=True)
class Recommended(Setting):
    """The chosen thresholds on held-out images, and how they were chosen."""

    rule: str  # the reason for these thresholds, in words
    exit_rule: ExitRule = CONFIDENCE
    budget: BudgetUse | None = None  # None for thresholds that were stored before
    calibration_accuracy: float | None = None  # percent, on the images that they were chosen on


@dataclass(frozen=True)
class Choice:
    """Thresholds (K,) float32, the rule that is compared with them, and why these."""

    thresholds: np.ndarray
    rule: ExitRule
    reason: str
    budget: Budget | None = None
    search: SearchName | None = None
    calibration_accuracy: float | None = None  # percent

    def to_metadata(self, found: Recommended) -> dict[str, Any]:
        """What a checkpoint keeps: `early_exit`, all of the choice with its results, and `thresholds`, the row alone.

        `thresholds` is None for another rule than the plain confidence: who reads nothing else compares confidences.
        """
        kept = asdict(found)
        early_exit = {
            "thresholds": [float(value) for value in self.thresholds],
            "exit_rule": self.rule.to_dict(),
            **{key: kept[key] for key in ("accuracy", "expected_gmacs", "exit_fractions", "budget")},
        }
        return {"early_exit": early_exit, "thresholds": early_exit["thresholds"] if self.rule == CONFIDENCE else None}

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any]) -> "Choice | None":
        """The thresholds and rule stored in a checkpoint; None if it has none."""
        stored = metadata.get("early_exit") or {"thresholds": metadata.get("thresholds")}
        if stored["thresholds"] is None:
            return None
        rule = ExitRule.from_dict(stored.get("exit_rule"))
        return cls(np.asarray(stored["thresholds"], np.float32), rule, "stored in the checkpoint")


def requested_budget(settings: EvalSection) -> Budget:
    """The budget that the section `eval` of a configuration asks for."""
    if settings.budget_gmacs is not None:
        return Budget("gmacs", settings.budget_gmacs)
    if settings.budget_images_per_second is not None:
        return Budget("images_per_second", settings.budget_images_per_second)
    return Budget("accuracy_drop", settings.max_accuracy_drop)


def choose_thresholds(
    calibration: Outcomes, costs: Costs, settings: EvalSection, temperatures: Sequence[float] | None = None
) -> Choice:
    """The thresholds that serve the budget best on the calibration images.

    `temperatures` (K,) are those that the scores were taken at. Raises ConfigError for a budget that cannot be met.
    """
    budget, search = requested_budget(settings), settings.threshold_search
    rule = ExitRule(settings.exit_rule, None if temperatures is None else tuple(temperatures))
    frontier = calibration.frontier(rule.name, costs.of(budget), search)
    point = choose(frontier, budget, calibration.accuracy[-1])
    what = {
        "gmacs": f"most accurate within {budget.amount:g} GMACs per image",
        "images_per_second": f"most accurate at {budget.amount:g} images/s or more, by the measured times of the exits",
        "accuracy_drop": f"cheapest that lose at most {budget.amount:g} points of the last exit's accuracy",
    }[budget.kind]
    how = "optimised" if search == "optimised" else "of the published sweep"
    reason = f"{what}, {how} on {len(calibration.labels):,} calibration images; exit rule: {describe(rule)}"
    row = np.asarray(frontier.thresholds[point], np.float32)
    return Choice(row, rule, reason, budget, search, float(frontier.accuracy[point]))


def evaluate_thresholds(outcomes: Outcomes, costs: Costs, thresholds: np.ndarray, rule: str = "confidence") -> Setting:
    """Accuracy and cost of one threshold vector (K,) on these images."""
    found = evaluate_scores(outcomes.scores_of(rule), outcomes.correct, costs.gmacs, [thresholds])
    fractions = found.exit_fractions[0]
    return Setting(
        thresholds=[float(value) for value in thresholds],
        accuracy=float(found.accuracy[0]),
        expected_gmacs=float(found.expected_cost[0]),
        cost_fraction=float(found.expected_cost[0] / costs.gmacs[-1]),
        exit_fractions=fractions.tolist(),
        expected_images_per_second=None if costs.seconds is None else float(1 / (fractions @ costs.seconds)),
    )


def setting(outcomes: Outcomes, costs: Costs, row: np.ndarray, rule: str = "confidence") -> dict[str, Any]:
    """`evaluate_thresholds` under its name and in its form of 0.1.0."""
    return asdict(evaluate_thresholds(outcomes, costs, row, rule))


def recommend(choice: Choice, calibration: Outcomes | None, val: Outcomes, costs: Costs) -> Recommended:
    """What chosen thresholds bring on held-out images, and how they keep their budget there and on `calibration`."""

    def used(outcomes: Outcomes, found: Setting) -> float:
        return {
            "gmacs": found.expected_gmacs,
            "images_per_second": found.expected_images_per_second,
            "accuracy_drop": outcomes.accuracy[-1] - found.accuracy,
        }[budget.kind]

    held_out, use = evaluate_thresholds(val, costs, choice.thresholds, choice.rule.name), None
    if (budget := choice.budget) is not None:
        before = calibration and used(
            calibration, evaluate_thresholds(calibration, costs, choice.thresholds, choice.rule.name)
        )
        use = BudgetUse(budget.kind, budget.unit, budget.amount, before, used(val, held_out))
    return Recommended(
        **vars(held_out),
        rule=choice.reason,
        exit_rule=choice.rule,
        budget=use,
        calibration_accuracy=choice.calibration_accuracy,
    )


def evenly_spread(count: int, most: int) -> np.ndarray:
    """At most `most` of the places 0 to count - 1, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, most, dtype=int))


@dataclass(frozen=True)
class FrontierCurve:
    """P points of a frontier, judged on other images; by rising cost on the calibration images."""

    thresholds: list[list[float]]  # (P, K)
    accuracy: list[float]  # percent
    expected_gmacs: list[float]
    calibration_accuracy: list[float]
    calibration_gmacs: list[float]


def frontier_curve(calibration: Outcomes, val: Outcomes, costs: Costs, rule: str) -> FrontierCurve:
    """At most `SHOWN_POINTS` of the optimised thresholds, evaluated on other images."""
    frontier = calibration.frontier(rule, costs.gmacs)
    shown = evenly_spread(len(frontier.cost), SHOWN_POINTS)
    found = evaluate_scores(val.scores_of(rule), val.correct, costs.gmacs, frontier.thresholds[shown])
    return FrontierCurve(
        thresholds=found.thresholds.tolist(),
        accuracy=found.accuracy.tolist(),
        expected_gmacs=found.expected_cost.tolist(),
        calibration_accuracy=frontier.accuracy[shown].tolist(),
        calibration_gmacs=frontier.cost[shown].tolist(),
    )


@dataclass(frozen=True)
class BudgetPoint:
    """The best thresholds within a budget, judged on held-out images."""

    budget_gmacs: float
    accuracy: float  # percent
    expected_gmacs: float
    calibration_accuracy: float  # percent, on the images that they were chosen on


@dataclass(frozen=True)
class RuleComparison:
    """What an exit rule reaches at each of the compared budgets; None where no thresholds are affordable."""

    rule: str
    points: list[BudgetPoint | None]


@dataclass(frozen=True)
class SearchComparison:
    """What the published sweep and the optimised thresholds reach within one budget."""

    budget_gmacs: float
    published: BudgetPoint
    optimised: BudgetPoint


def compare_rules(calibration: Outcomes, val: Outcomes, costs: Costs) -> list[RuleComparison]:
    """Every rule at `COMPARED_BUDGETS`: thresholds from the published sweep, so that only the rule differs."""
    return [RuleComparison(rule, _at_budgets(calibration, val, costs, rule, "published")) for rule in (*RULES, RANDOM)]


def compare_searches(calibration: Outcomes, val: Outcomes, costs: Costs, rule: str) -> list[SearchComparison]:
    """The published sweep and the optimised thresholds at those of `COMPARED_BUDGETS` that both can keep."""
    pairs = zip(
        _at_budgets(calibration, val, costs, rule, "published"),
        _at_budgets(calibration, val, costs, rule, "optimised"),
        strict=True,
    )
    return [SearchComparison(one.budget_gmacs, one, other) for one, other in pairs if one and other]


def _at_budgets(
    calibration: Outcomes, val: Outcomes, costs: Costs, rule: str, search: SearchName
) -> list[BudgetPoint | None]:
    """The most accurate affordable thresholds at each of `COMPARED_BUDGETS`."""
    frontier, first, last = calibration.frontier(rule, costs.gmacs, search), costs.gmacs[0], costs.gmacs[-1]
    points: list[BudgetPoint | None] = []
    for share in COMPARED_BUDGETS:
        budget = float(first + share * (last - first))
        best = frontier.within(budget)
        if best is None:
            points.append(None)
            continue
        found = evaluate_thresholds(val, costs, frontier.thresholds[best], rule)
        points.append(BudgetPoint(budget, found.accuracy, found.expected_gmacs, float(frontier.accuracy[best])))
    return points
