"""What a certificate is made from: the outcomes on calibration images, and candidates found on the first part of them.

The search does not have to be right for the guarantee to hold: poor candidates, or a poor order, only cost more.
Plain NumPy.

Axis letters: K exits, n images, G grid points per threshold, P candidates.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from dvt.early_exit.decisions import ALWAYS, NEVER
from dvt.errors import ConfigError, DataError

Risk = Literal["accuracy_drop", "regressions", "changes"]
FIRST_SHARE = 0.35  # of the images, to find candidates on
MOST = 40  # candidates
_CAUTION = 1.25  # standard errors that a candidate's expected loss is raised by
_BEYOND = 1.5  # times the limit: candidates whose raised loss is larger are not tried
_CELLS, _FINEST = 10_000, 200  # grid points in all; of one threshold


@dataclass(frozen=True)
class CalibrationSet:
    """What every exit of any network says of the calibration images, none of which it was trained on.

    Args:
        scores: (K, n); an image leaves at the first exit whose score is at least its threshold.
        predicted: (K, n) class that each exit answers.
        costs: (K,) of leaving at each exit, earlier ones included, in any unit; must not fall.
        labels: (n,) true class; the risk `changes` needs none.

    Raises:
        DataError: Shapes that do not fit, or scores that are not numbers. ConfigError: One exit, or costs that fall.
    """

    scores: np.ndarray
    predicted: np.ndarray
    costs: np.ndarray
    labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        shape, shapes = np.shape(self.scores), {"predicted": np.shape(self.predicted), "costs": np.shape(self.costs)}
        wanted = {"predicted": shape, "costs": shape[:1]}
        if self.labels is not None:
            shapes["labels"], wanted["labels"] = np.shape(self.labels), shape[1:]
        if len(shape) != 2 or shapes != wanted:
            raise DataError(f"scores have shape {shape}, which must be (exits, images), and {shapes}; give {wanted}")
        if not np.isfinite(self.scores).all():
            raise DataError("the scores hold NaN or infinity; the model that made them has diverged")
        costs = np.asarray(self.costs)
        if not (np.isfinite(costs).all() and (np.diff(costs) >= 0).all() and costs[0] < costs[-1]):
            raise ConfigError(f"the costs are {costs.tolist()}; two or more are needed that rise from exit to exit")

    def losses(self, risk: Risk) -> np.ndarray:
        """(K, n) loss of an answer at each exit against the last: 1 worse, 0 as good, -1 better (accuracy_drop only).

        Raises ConfigError for an unknown risk, and for labels that are missing.
        """
        if risk not in get_args(Risk):
            raise ConfigError(f"unknown risk {risk!r}; choose from {', '.join(get_args(Risk))}")
        predicted = np.asarray(self.predicted)
        if risk == "changes":
            return (predicted != predicted[-1]).astype(np.int8)
        if self.labels is None:
            raise ConfigError(f"the risk {risk!r} needs labels and there are none; `changes` needs none")
        correct = (predicted == self.labels).astype(np.int8)
        drop = correct[-1] - correct
        return drop if risk == "accuracy_drop" else np.maximum(drop, 0)

    def at(self, images: np.ndarray) -> "CalibrationSet":
        """Some of the images, by their places or as a mask (n,)."""
        labels = None if self.labels is None else np.asarray(self.labels)[images]
        return CalibrationSet(
            np.asarray(self.scores)[:, images], np.asarray(self.predicted)[:, images], self.costs, labels
        )

    def parts(self, seed: int = 0) -> tuple["CalibrationSet", "CalibrationSet"]:
        """The first part, from which everything is fitted, and the second, which nothing has seen when it is tested."""
        order = np.random.default_rng(seed).permutation(np.shape(self.scores)[1])
        first, second = np.split(order, [round(FIRST_SHARE * len(order))])
        return self.at(first), self.at(second)


def exits_taken(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """(P, n) exit at which each image leaves, for scores (K, n) and P rows of thresholds (P, K)."""
    exits = np.full((len(thresholds), scores.shape[1]), len(scores) - 1, np.int64)
    for k in range(len(scores) - 2, -1, -1):
        np.putmask(exits, scores[k] >= thresholds[:, k : k + 1], k)
    return exits


class Candidates(NamedTuple):
    """P candidates from dear to cheap, with what the first part leads to expect of them."""

    thresholds: np.ndarray  # (P, K)
    worse: np.ndarray  # (P,) share of the images
    better: np.ndarray  # (P,) share of the images


def find_candidates(first: CalibrationSet, risk: Risk, limit: float, tested: int) -> Candidates:
    """Candidates for a limit, 0..1, from the first part; `tested` images will judge them.

    Of all combinations on a grid of quantiles those are kept that no other one beats in cost and in expected loss. So
    that the luckiest is not preferred, an image's loss is replaced by what a smooth model expects from its scores, and
    the sum is raised by some standard errors of both parts, since a loss that varies less passes its test sooner.
    """
    scores, losses, costs = np.asarray(first.scores), first.losses(risk), np.asarray(first.costs, np.float64)
    scores = scores.astype(np.result_type(scores, np.float32), copy=False)  # NEVER is beyond float16
    num_exits, n = scores.shape
    size = int(np.clip(round(_CELLS ** (1 / (num_exits - 1))), 2, _FINEST))
    levels = [np.unique(np.quantile(row, np.linspace(0, 1, size), method="lower")) for row in scores[:-1]]
    bins = [np.searchsorted(grid, row, side="right") for grid, row in zip(levels, scores, strict=False)]
    grids = [np.append(grid, scores.dtype.type(NEVER)) for grid in levels]
    shape = tuple(len(grid) for grid in grids)
    place = np.ravel_multi_index(bins, shape)

    def leaving_at(k: int, values: np.ndarray | None) -> np.ndarray:
        """(G_1, .., G_K-1) mean over the images of their values where they leave at exit k, for each combination.

        An image whose bin is b at an exit reaches the thresholds 0..b-1 there.
        """
        total = np.bincount(place, values, minlength=int(np.prod(shape))).reshape(shape) / n
        for axis in range(len(shape)):
            stays = np.cumsum(total, axis=axis)
            everything = np.take(stays, [-1], axis=axis)
            total = stays if axis < k else everything - stays if axis == k else np.broadcast_to(everything, shape)
        return total

    cost = sum(each * leaving_at(k, None) for k, each in enumerate(costs)).ravel()
    worse, better = (
        sum(leaving_at(k, _expected(scores, k, sign * losses[k] > 0)) for k in range(num_exits - 1)).ravel()
        for sign in (1, -1)
    )
    raised = np.maximum(worse - better, 0) + _CAUTION * np.sqrt((worse + better + 1 / n) * (1 / n + 1 / tested))

    order = np.lexsort((cost, raised))
    order = order[cost[order] < costs[-1] * (1 - 1e-9)]  # what never leaves early needs no test
    least = np.minimum.accumulate(cost[order])
    order = order[np.append(True, least[1:] < least[:-1])]
    order = order[raised[order] <= max(_BEYOND * limit, raised[order[0]])]
    spread = np.linspace(raised[order[0]], raised[order[-1]], MOST)
    kept = order[np.unique(np.searchsorted(raised[order], spread, side="right") - 1)]
    rows = np.stack([grid[index] for grid, index in zip(grids, np.unravel_index(kept, shape), strict=True)], axis=1)
    rows = np.concatenate([rows, np.full((len(rows), 1), ALWAYS, rows.dtype)], axis=1)
    return Candidates(rows, worse[kept], better[kept])


def _expected(scores: np.ndarray, exit_index: int, event: np.ndarray) -> np.ndarray:
    """(n,) chance of an event, (n,) bool, by logistic regression on the scores of the exits up to this one.

    A score between 0 and 1 enters as the logarithm of its odds, any other as it is; both standardised.
    """
    n = len(event)
    if not event.any():
        return np.zeros(n)
    columns = []
    for row in scores[: exit_index + 1].astype(np.float64):
        if row.min() >= 0 and row.max() <= 1:
            row = np.clip(row, 1e-6, 1 - 1e-6)
            row = np.log(row / (1 - row))
        columns.append(np.clip((row - row.mean()) / (row.std() + 1e-9), -5, 5))
    design = np.stack([np.ones(n), *columns, columns[-1] ** 2], axis=1)
    ridge = np.array([1e-3] + [1.0] * (design.shape[1] - 1))
    share = event.mean()
    weights = np.zeros(len(ridge))
    weights[0] = np.log(share / (1 - share + 1 / n))
    for _ in range(8):  # Newton's method; the penalty keeps it stable
        chance = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        slope = design.T @ (event - chance) - ridge * weights * (np.arange(len(ridge)) > 0)
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design + np.diag(ridge)
        weights += np.linalg.solve(curvature, slope)
    return 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
