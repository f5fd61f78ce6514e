"""Thresholds for a budget: the frontier of accuracy against cost on calibration images, and the choice on it.

The paper takes thresholds from a one-parameter family of shares (59 points), or a genetic algorithm. Here they are
searched directly: with K exits there are only K - 1 thresholds, and accuracy and cost of every combination on a grid of
them come from one histogram, without going over the images again. The published points are always among the
candidates, so that on the calibration images no budget gets less than the published sweep gives it.

Axis letters: K exits, n images, G grid points per threshold, P candidates. A score is what a rule of
`dvt.early_exit.scores` gives; a cost is anything that adds up along the exits: GMACs, or seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from dvt.early_exit.decisions import ALWAYS, NEVER, evaluate_scores, find_sweep_thresholds
from dvt.errors import ConfigError

GRID_CELLS = 60_000  # G ** (K - 1) stays near this; a finer grid fits the calibration images, not the task
FINEST_GRID = 240  # thresholds of one exit

BudgetKind = Literal["gmacs", "images_per_second", "accuracy_drop"]
SearchName = Literal["optimised", "published"]
UNITS = {"gmacs": "GMACs/image", "images_per_second": "images/s", "accuracy_drop": "points of accuracy"}


@dataclass(frozen=True)
class Budget:
    """What the user can afford.

    Args:
        kind: "gmacs", average GMACs of an image; "images_per_second", at least so many; "accuracy_drop", percentage
            points of the last exit's accuracy on the calibration images that may be lost, at the lowest cost.
        amount: The number.

    Raises:
        ConfigError: An amount that is not above 0 (a drop may be 0).
    """

    kind: BudgetKind
    amount: float

    def __post_init__(self) -> None:
        lowest = self.amount >= 0 if self.kind == "accuracy_drop" else self.amount > 0
        if not (lowest and np.isfinite(self.amount)):
            raise ConfigError(f"the budget is {self.amount:g} {self.unit}; give a number above 0")

    @property
    def unit(self) -> str:
        """For messages and reports."""
        return UNITS[self.kind]


class Frontier(NamedTuple):
    """The best of the candidates on the calibration images, cheapest first; accuracy and cost rise together."""

    thresholds: np.ndarray  # (P, K)
    accuracy: np.ndarray  # (P,) percent
    cost: np.ndarray  # (P,) average per image

    def within(self, most_cost: float) -> int | None:
        """The most accurate point that costs at most so much; None if all cost more."""
        affordable = int(np.searchsorted(self.cost, most_cost, side="right"))
        return affordable - 1 if affordable else None


def find_frontier(
    scores: np.ndarray, correct: np.ndarray, cumulative_cost: Sequence[float], search: SearchName = "optimised"
) -> Frontier:
    """Candidates that no other one beats in both accuracy and cost.

    Args:
        scores: (K, n) of the calibration images at each exit.
        correct: (K, n) bool, whether each exit is right about them.
        cumulative_cost: (K,) cost of leaving at each exit, earlier ones included; must rise.
        search: "published" takes the 59 points of the published sweep alone.

    Raises:
        ConfigError: Costs that do not rise. DataError, ConfigError: see `early_exit.evaluate_scores`.
    """
    cost = np.asarray(cumulative_cost, np.float64)
    if (np.diff(cost) < 0).any():
        raise ConfigError(
            f"the cumulative costs are {cost.tolist()}; a later exit cannot cost less than an earlier one"
        )
    rows = find_sweep_thresholds(scores)
    if search == "optimised" and len(scores) > 1:
        rows = np.concatenate([rows, _single_exits(len(scores)), _grid_candidates(scores, correct, cost)])
    tried = evaluate_scores(scores, correct, cost, rows)
    kept = _undominated(tried.accuracy, tried.expected_cost)
    return Frontier(rows[kept], tried.accuracy[kept], tried.expected_cost[kept])


def choose(frontier: Frontier, budget: Budget, last_accuracy: float) -> int:
    """Which point of the frontier serves the budget: the most accurate that is affordable, or the cheapest that loses
    no more than allowed.

    `last_accuracy` is that of the last exit on the calibration images, in percent. Raises ConfigError, saying what can
    be had, for a budget below the cheapest point.
    """
    if budget.kind == "accuracy_drop":
        good = np.flatnonzero(frontier.accuracy >= last_accuracy - budget.amount)
        return int(good[0]) if len(good) else len(frontier.cost) - 1
    speed = budget.kind == "images_per_second"
    point = frontier.within((1 / budget.amount if speed else budget.amount) * (1 + 1e-9))
    if point is None:
        least = frontier.cost[0]
        raise ConfigError(
            f"a budget of {budget.amount:g} {budget.unit} cannot be met: these exits "
            f"{f'reach at most {1 / least:.4g}' if speed else f'need at least {least:.4g}'} {budget.unit}, with "
            "every image taken at the first one"
        )
    return point


def _single_exits(num_exits: int) -> np.ndarray:
    """(K, K) thresholds with which all images leave at one exit."""
    rows = np.where(np.eye(num_exits, dtype=bool), np.float32(ALWAYS), np.float32(NEVER))
    rows[:, -1] = ALWAYS
    return rows


def _grid_candidates(scores: np.ndarray, correct: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """(P, K) thresholds on a grid of quantiles of the scores, those that no other grid point beats.

    With bin_k the number of grid thresholds that an image's score at exit k reaches, image i leaves at the first exit
    whose chosen threshold number is below bin_k. Counting images and hits in a histogram over all (bin_1 .. bin_K-1)
    and summing it along its axes gives the result of every combination.
    """
    free = len(scores) - 1
    size = int(np.clip(round(GRID_CELLS ** (1 / free)), 2, FINEST_GRID))
    grids, bins = [], []
    for values in scores[:-1]:
        levels = np.unique(np.quantile(values, np.linspace(0, 1, size), method="lower")).astype(scores.dtype)
        grids.append(np.append(levels, scores.dtype.type(NEVER)))
        bins.append(np.searchsorted(levels, values, side="right"))  # thresholds 0..bin-1 are reached
    shape = tuple(len(grid) + 1 for grid in grids)
    place = np.ravel_multi_index(tuple(bins), shape)

    def leaving_at(k: int, counted: np.ndarray) -> np.ndarray:
        """(G_1, .., G_K-1) sum of `counted` (n,) over the images that leave at exit k, for every combination."""
        total = np.bincount(place, counted, minlength=int(np.prod(shape))).reshape(shape)
        for axis, grid in enumerate(grids):
            number, bin_ = np.ogrid[: len(grid), : len(grid) + 1]
            here = bin_ <= number if axis < k else bin_ > number if axis == k else bin_ >= 0  # later exits: any bin
            summed = np.tensordot(np.broadcast_to(here, (len(grid), len(grid) + 1)).astype(float), total, (1, axis))
            total = np.moveaxis(summed, 0, axis)
        return total

    hits = sum(leaving_at(k, right) for k, right in enumerate(correct))
    spent = sum(each * leaving_at(k, np.ones(len(place))) for k, each in enumerate(cost))
    chosen = np.unravel_index(_undominated(hits.ravel(), spent.ravel()), hits.shape)
    rows = np.stack([grid[index] for grid, index in zip(grids, chosen, strict=True)], axis=1)
    return np.concatenate([rows, np.full((len(rows), 1), ALWAYS, rows.dtype)], axis=1)


def _undominated(value: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Indices of the points with rising cost and strictly rising value."""
    order = np.lexsort((-value, cost))
    best = np.maximum.accumulate(value[order])
    return order[np.append(True, best[1:] > best[:-1])]
