"""From a budget to thresholds, and what these bring on other images. Axis letters: K exits, P points."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from dvt.config.sections import EvalSection
from dvt.early_exit.candidates import CalibrationSet, parts
from dvt.early_exit.certify import (
    COUNTED,
    LEAST_IMAGES,
    Certificate,
    ClassDrop,
    NotCertifiedError,
    certify,
    class_drops,
    cost_bound,
)
from dvt.early_exit.decisions import evaluate_scores, thresholds_text
from dvt.early_exit.outcomes import Outcomes
from dvt.early_exit.scores import CONFIDENCE, ExitRule, describe
from dvt.early_exit.search import Budget, BudgetKind, choose, find_frontier
from dvt.errors import ConfigError

SHOWN_POINTS = 60  # of a frontier, in reports

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Costs:
    """Average cost per image of leaving at each exit, earlier ones included."""

    gmacs: np.ndarray  # (K,) computed
    seconds: np.ndarray | None = None  # (K,) measured on this device at the batch size in use

    def of(self, budget: Budget) -> np.ndarray:
        """(K,) costs in the unit that the budget is about. Raises ConfigError if no times were measured."""
        found = self.seconds if budget.kind == "images_per_second" else self.gmacs
        if found is None:
            raise ConfigError("a budget of images/s needs measured times, and none are stored; evaluate again here")
        return np.asarray(found, np.float64)


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


@dataclass(frozen=True)
class CostBound:
    """Upper bound of the average GMACs of all images of the kind of the calibration images."""

    gmacs: float
    confidence: float
    budget: float | None = None  # what was asked for, where that was in GMACs


@dataclass(frozen=True, kw_only=True)
class Recommended(Setting):
    """The chosen thresholds on held-out images, and how they were chosen."""

    rule: str  # the reason for these thresholds, in words
    exit_rule: ExitRule = CONFIDENCE
    budget: BudgetUse | None = None  # None for thresholds that were stored before
    calibration_accuracy: float | None = None  # percent, on the images that they were chosen on
    gmacs_bound: CostBound | None = None
    certificate: Certificate | None = None
    not_certified: str | None = None  # why there is none
    class_drops: list[ClassDrop] = field(default_factory=list)


@dataclass(frozen=True)
class Choice:
    """Thresholds (K,) float32, the rule that is compared with them, and why these."""

    thresholds: np.ndarray
    rule: ExitRule
    reason: str
    budget: Budget | None = None
    calibration_accuracy: float | None = None  # percent
    gmacs_bound: CostBound | None = None
    certificate: Certificate | None = None
    not_certified: str | None = None

    def to_metadata(self, found: Recommended) -> dict[str, Any]:
        """What a checkpoint keeps: `early_exit`, all of the choice with its results, and `thresholds`, the row, None
        for another rule than confidence: who reads nothing else compares confidences."""
        kept, row = asdict(found), self.thresholds.tolist()
        early_exit = {key: kept[key] for key in ("accuracy", "expected_gmacs", "exit_fractions", "budget")}
        early_exit |= {"thresholds": row, "exit_rule": self.rule.to_dict(), "not_certified": self.not_certified}
        early_exit |= {key: kept[key] for key in ("certificate", "gmacs_bound")}
        return {"early_exit": early_exit, "thresholds": row if self.rule == CONFIDENCE else None}

    def describe(self) -> list[str]:
        """Lines: the thresholds, and what is guaranteed of them."""
        return [f"thresholds {thresholds_text(self.thresholds)}; exit rule: {describe(self.rule)}", *certainty(self)]

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any]) -> "Choice | None":
        """The thresholds and rule stored in a checkpoint; None if it has none."""
        stored = metadata.get("early_exit") or {"thresholds": metadata.get("thresholds")}
        if stored.get("thresholds") is None:
            return None
        row, bound = np.asarray(stored["thresholds"], np.float32), stored.get("gmacs_bound")
        certificate = Certificate.from_json(stored["certificate"]) if stored.get("certificate") else None
        why = stored.get("not_certified", None if certificate or bound else "stored without a certificate")
        if certificate and not certificate.is_of(row):
            certificate, why = None, "the certificate that is stored is of other thresholds"
        return cls(
            row,
            ExitRule.from_dict(stored.get("exit_rule")),
            "stored in the checkpoint",
            gmacs_bound=bound and CostBound(**bound),
            certificate=certificate,
            not_certified=why,
        )


def requested_budget(settings: EvalSection) -> Budget:
    """The budget that the section `eval` of a configuration asks for."""
    budgets = {"gmacs": settings.budget_gmacs, "images_per_second": settings.budget_images_per_second}
    given = (Budget(kind, amount) for kind, amount in budgets.items() if amount is not None)
    return next(given, Budget("accuracy_drop", settings.max_accuracy_drop))


def choose_thresholds(
    calibration: Outcomes,
    costs: Costs,
    settings: EvalSection,
    temperatures: Sequence[float] | None = None,
    unfit: str | None = None,
) -> Choice:
    """The thresholds that serve the budget best, certified or with a bound of their cost where that is asked for.

    The scores were taken at `temperatures` (K,), fitted on the first of the `parts` alone. `unfit` says why the images
    can certify nothing. Raises ConfigError for a budget that cannot be met and, with `on_uncertified` "fail", for
    thresholds that cannot be certified.
    """
    budget, rule = requested_budget(settings), ExitRule(settings.exit_rule, temperatures)
    if len(costs.gmacs) == 1:
        return _search(calibration, costs, settings, rule)
    images, sure = _images(calibration, costs, rule), settings.confidence
    why = _why_not_certified(settings, len(calibration.labels), unfit)
    if why is None and settings.has_budget:
        first, second = parts(len(calibration.labels))
        choice = _search(calibration.chosen(first), costs, settings, rule)
        bound = cost_bound(images.at(second), choice.thresholds, sure)
        return replace(choice, gmacs_bound=CostBound(bound, sure, settings.budget_gmacs))
    if why is None:
        try:
            found = certify(images, settings.risk, min(budget.amount, 100.0), sure)
            reason = f"cheapest that are certified; exit rule: {describe(rule)}"
            row = np.asarray(found.thresholds, np.float32)
            return Choice(row, rule, reason, budget, certificate=replace(found, exif=False))  # images as stored
        except NotCertifiedError as error:
            why = str(error)
    if sure != "none":
        if settings.on_uncertified == "fail" or settings.risk != "accuracy_drop":
            search = "; --confidence none chooses without a certificate" * (settings.risk == "accuracy_drop")
            raise ConfigError(f"not certified: {why}{search}")
        log.warning("not certified: %s", why)
    return replace(_search(calibration, costs, settings, rule), not_certified=why)


def _why_not_certified(settings: EvalSection, images: int, unfit: str | None) -> str | None:
    if settings.confidence == "none":
        return "no confidence was asked for"
    if unfit is None and images < LEAST_IMAGES:
        return f"there are {images} calibration images, and {LEAST_IMAGES} are needed"
    if unfit is None and settings.threshold_search == "published" and not settings.has_budget:
        return "the thresholds of the published sweep are not tested"
    return unfit


def _search(calibration: Outcomes, costs: Costs, settings: EvalSection, rule: ExitRule) -> Choice:
    budget, search = requested_budget(settings), settings.threshold_search
    frontier = find_frontier(calibration.scores[rule.name], calibration.correct, costs.of(budget), search)
    point = choose(frontier, budget, calibration.accuracy[-1])
    what = {
        "gmacs": f"most accurate within {budget.amount:g} GMACs per image",
        "images_per_second": f"most accurate at {budget.amount:g} images/s or more, by the measured times of the exits",
        "accuracy_drop": f"cheapest that lose at most {budget.amount:g} points of the last exit's accuracy",
    }[budget.kind]
    how = "optimised" if search == "optimised" else "of the published sweep"
    reason = f"{what}, {how} on {len(calibration.labels):,} calibration images; exit rule: {describe(rule)}"
    row = np.asarray(frontier.thresholds[point], np.float32)
    return Choice(row, rule, reason, budget, float(frontier.accuracy[point]))


def evaluate_thresholds(outcomes: Outcomes, costs: Costs, thresholds: np.ndarray, rule: str = "confidence") -> Setting:
    """Accuracy and cost of one threshold vector (K,) on these images."""
    found = evaluate_scores(outcomes.scores[rule], outcomes.correct, costs.gmacs, [thresholds])
    (accuracy,), (gmacs,), _, (fractions,) = found
    return Setting(
        thresholds=[float(value) for value in thresholds],
        accuracy=float(accuracy),
        expected_gmacs=float(gmacs),
        cost_fraction=float(gmacs / costs.gmacs[-1]),
        exit_fractions=fractions.tolist(),
        expected_images_per_second=None if costs.seconds is None else float(1 / (fractions @ costs.seconds)),
    )


def recommend(choice: Choice, calibration: Outcomes | None, val: Outcomes, costs: Costs) -> Recommended:
    """What chosen thresholds bring on held-out images, and how they keep their budget there and on `calibration`."""
    risk = choice.certificate.risk if choice.certificate else "accuracy_drop"

    def used(outcomes: Outcomes) -> float:
        found = evaluate_thresholds(outcomes, costs, choice.thresholds, choice.rule.name)
        if risk != "accuracy_drop":
            return 100 * _images(outcomes, costs, choice.rule).lost(risk, choice.thresholds).mean()
        return {
            "gmacs": found.expected_gmacs,
            "images_per_second": found.expected_images_per_second,
            "accuracy_drop": round(outcomes.accuracy[-1] - found.accuracy, 9),  # 0 where floats leave 1e-14
        }[budget.kind]

    use = None
    if (budget := choice.budget) is not None:
        unit = budget.unit if risk == "accuracy_drop" else COUNTED[risk]
        use = BudgetUse(budget.kind, unit, budget.amount, calibration and used(calibration), used(val))
    early = len(costs.gmacs) > 1
    return Recommended(
        **vars(evaluate_thresholds(val, costs, choice.thresholds, choice.rule.name)),
        rule=choice.reason,
        exit_rule=choice.rule,
        budget=use,
        calibration_accuracy=choice.calibration_accuracy,
        gmacs_bound=choice.gmacs_bound,
        certificate=choice.certificate,
        not_certified=choice.not_certified,
        class_drops=class_drops(_images(val, costs, choice.rule), choice.thresholds) if early else [],
    )


def _images(outcomes: Outcomes, costs: Costs, rule: ExitRule) -> CalibrationSet:
    return CalibrationSet(outcomes.scores[rule.name], outcomes.predicted, costs.gmacs, outcomes.labels)


def certainty(found: Recommended | Choice) -> list[str]:
    """Lines that say what is guaranteed of thresholds, or that nothing is."""
    if found.certificate:
        return [found.certificate.promise(), f"  from {found.certificate.evidence()}"]
    if bound := found.gmacs_bound:
        above = bound.budget is not None and bound.gmacs > bound.budget
        return [
            f"with a confidence of {100 * bound.confidence:g} %, the average is at most {bound.gmacs:.4g} GMACs/image"
            + (f", which is above the budget of {bound.budget:g}" if above else "")
        ]
    return [f"not certified: {found.not_certified}"] if found.not_certified else []


@dataclass(frozen=True)
class FrontierCurve:
    """P points of a frontier, judged on other images."""

    thresholds: list[list[float]]  # (P, K)
    accuracy: list[float]  # percent
    expected_gmacs: list[float]


def frontier_curve(calibration: Outcomes, val: Outcomes, costs: Costs, rule: str) -> FrontierCurve:
    """At most `SHOWN_POINTS` of the optimised thresholds, evaluated on other images."""
    rows = find_frontier(calibration.scores[rule], calibration.correct, costs.gmacs).thresholds
    shown = np.unique(np.linspace(0, len(rows) - 1, SHOWN_POINTS, dtype=int))
    found = evaluate_scores(val.scores[rule], val.correct, costs.gmacs, rows[shown])
    return FrontierCurve(*(column.tolist() for column in (found.thresholds, found.accuracy, found.expected_cost)))
