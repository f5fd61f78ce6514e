"""Thresholds for a budget: the frontier of accuracy against cost on calibration images, and the choice on it.

Thresholds are searched directly; the 59 published points are always among the candidates, so that on the calibration
images no budget gets less than the published sweep gives it.

Axis letters: K exits, n images, G grid points per threshold, P candidates. Costs are GMACs, or seconds.
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

    `kind` is "gmacs", average GMACs of an image; "images_per_second", at least so many; or "accuracy_drop", points that
    may be lost against the last exit. Raises ConfigError for an amount that is not above 0 (a drop may be 0).
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
    """Candidates that no other one beats in both accuracy and cost, for scores (K, n) of the calibration images.

    `correct` (K, n) says whether each exit is right about them, `cumulative_cost` (K,) what leaving there costs in all.
    "published" takes the 59 of the sweep alone. Raises ConfigError for costs that fall, and as `evaluate_scores`.
    """
    cost = np.asarray(cumulative_cost, np.float64)
    if (np.diff(cost) < 0).any():
        raise ConfigError(f"the costs are {cost.tolist()}; a later exit cannot cost less than an earlier one")
    rows = find_sweep_thresholds(scores)
    if search == "optimised" and len(scores) > 1:
        grid = ThresholdGrid(scores, GRID_CELLS, FINEST_GRID)
        hits = sum(grid.leaving_at(k, right) for k, right in enumerate(correct))
        spent = sum(each * grid.leaving_at(k) for k, each in enumerate(cost))
        single = np.where(np.eye(len(scores), dtype=bool), np.float32(ALWAYS), np.float32(NEVER))
        single[:, -1] = ALWAYS
        rows = np.concatenate([rows, single, grid.rows(undominated(hits, spent))])
    tried = evaluate_scores(scores, correct, cost, rows)
    kept = undominated(tried.accuracy, tried.expected_cost)
    return Frontier(rows[kept], tried.accuracy[kept], tried.expected_cost[kept])


def choose(frontier: Frontier, budget: Budget, last_accuracy: float) -> int:
    """Which point of the frontier serves the budget: the most accurate that is affordable, or the cheapest that loses
    no more than allowed of `last_accuracy`, percent. Raises ConfigError for a budget below the cheapest point."""
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


class ThresholdGrid:
    """Every combination of thresholds on a grid of quantiles of scores (K, n), as rows or with shape (G_1, .., G_K-1).

    An image that reaches the first b thresholds of an exit leaves there if the number of the chosen one is below b. So
    a histogram over (b_1, .., b_K-1), summed along its axes, holds the result of every combination.
    """

    def __init__(self, scores: np.ndarray, cells: int, finest: int) -> None:
        size = int(np.clip(round(cells ** (1 / (len(scores) - 1))), 2, finest))
        levels = [np.unique(np.quantile(row, np.linspace(0, 1, size), method="lower")) for row in scores[:-1]]
        levels = [grid.astype(scores.dtype) for grid in levels]
        reached = [np.searchsorted(grid, row, side="right") for grid, row in zip(levels, scores, strict=False)]
        self._grids = [np.append(grid, scores.dtype.type(NEVER)) for grid in levels]
        self._shape = tuple(len(grid) for grid in self._grids)
        self._place = np.ravel_multi_index(reached, self._shape)

    def leaving_at(self, exit_index: int, values: np.ndarray | None = None) -> np.ndarray:
        """Sum of the values (n,) of the images that leave there, or their number, for each combination."""
        total = np.bincount(self._place, values, minlength=int(np.prod(self._shape))).reshape(self._shape)
        for axis in range(total.ndim):
            stays = np.cumsum(total, axis=axis)
            everything = np.take(stays, [-1], axis=axis)  # of later exits any threshold may be chosen
            total = stays if axis < exit_index else everything - stays if axis == exit_index else everything
        return np.broadcast_to(total, self._shape).ravel()

    def rows(self, kept: np.ndarray) -> np.ndarray:
        """(P, K) thresholds of the combinations with these places."""
        chosen = zip(self._grids, np.unravel_index(kept, self._shape), strict=True)
        last = np.full(len(kept), ALWAYS, self._grids[0].dtype)
        return np.stack([*(grid[index] for grid, index in chosen), last], axis=1)


def undominated(value: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Indices of the points with rising cost and strictly rising value."""
    order = np.lexsort((-value, cost))
    best = np.maximum.accumulate(value[order])
    return order[np.append(True, best[1:] > best[:-1])]
