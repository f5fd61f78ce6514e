"""What a certificate is made from: the outcomes on calibration images, and candidates found on the first part of them.

Poor candidates, or a poor order, only cost more. Plain NumPy. Axis letters: K exits, n images, P candidates.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np

from dvt.early_exit.decisions import assign_exits
from dvt.early_exit.search import ThresholdGrid, undominated
from dvt.errors import ConfigError, DataError

Risk = Literal["accuracy_drop", "regressions", "changes"]
FIRST_SHARE = 0.35  # of the images, to find candidates on
MOST = 40  # candidates by what is expected, and as many by what is observed
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
        shape = np.shape(self.scores)
        wanted = {"predicted": shape, "costs": shape[:1]} | ({} if self.labels is None else {"labels": shape[1:]})
        shapes = {name: np.shape(getattr(self, name)) for name in wanted}
        if len(shape) != 2 or shapes != wanted:
            raise DataError(f"scores have shape {shape}, which must be (exits, images), and {shapes}; give {wanted}")
        if not np.isfinite(self.scores).all():
            raise DataError(
                "the scores hold NaN or infinity; leave these images out, or look for the fault in the model"
            )
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

    def lost(self, risk: Risk, thresholds: np.ndarray) -> np.ndarray:
        """(n,) what each image loses with thresholds (K,): 1, 0 or -1, as in `losses`."""
        taken = assign_exits(self.scores, thresholds)
        return self.losses(risk)[taken, np.arange(len(taken))]

    def at(self, images: np.ndarray) -> "CalibrationSet":
        """Some of the images, by their places or as a mask (n,)."""
        return replace(
            self,
            scores=np.asarray(self.scores)[:, images],
            predicted=np.asarray(self.predicted)[:, images],
            labels=None if self.labels is None else np.asarray(self.labels)[images],
        )


def parts(images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Places of the first part, from which everything is fitted, and of the second, which nothing but the test sees."""
    first, second = np.split(np.random.default_rng(seed).permutation(images), [round(FIRST_SHARE * images)])
    return first, second


class Candidates(NamedTuple):
    """P candidates from dear to cheap, with what the first part leads to expect of them."""

    thresholds: np.ndarray  # (P, K)
    worse: np.ndarray  # (P,) share of the images
    better: np.ndarray  # (P,)


def find_candidates(first: CalibrationSet, risk: Risk, limit: float, tested: int) -> Candidates:
    """Candidates for a limit, 0..1, from the first part; `tested` images will judge them.

    They are those on a grid that no other one beats in cost and in expected loss: what a smooth model expects from an
    image's scores, so that luck is not preferred, raised by some standard errors of both parts, since a loss that
    varies less passes its test sooner. If the last of them shows less than the limit all the same, the model does not
    fit, and cheaper ones follow by the losses that are observed.
    """
    scores, losses, costs = np.asarray(first.scores), first.losses(risk), np.asarray(first.costs, np.float64)
    scores = scores.astype(np.result_type(scores, np.float32), copy=False)  # NEVER is beyond float16
    n, early = scores.shape[1], range(len(scores) - 1)
    grid = ThresholdGrid(scores, _CELLS, _FINEST)
    cost = sum(each * grid.leaving_at(k) / n for k, each in enumerate(costs))

    def shares(chance: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of every combination: worse, better, and the loss raised by some standard errors of both parts."""
        worse, better = (
            sum(grid.leaving_at(k, chance(scores[: k + 1], sign * losses[k] > 0)) / n for k in early)
            for sign in (1, -1)
        )
        error = np.sqrt((worse + better + 1 / n) * (1 / n + 1 / tested))
        return worse, better, worse - better + _CAUTION * error

    worse, better, raised = shares(_expected)
    order = undominated(-cost, raised)
    order = order[cost[order] < costs[-1] * (1 - 1e-9)]  # what never leaves early needs no test
    order = order[raised[order] <= max(_BEYOND * limit, raised[order[0]])]
    spread = np.linspace(raised[order[0]], raised[order[-1]], MOST)
    kept = order[np.unique(np.searchsorted(raised[order], spread, side="right") - 1)]

    observed = shares(lambda _, event: event)[2]
    if observed[kept[-1]] <= limit:
        more = undominated(-cost, observed)
        more = more[(cost[more] < cost[kept[-1]]) & (observed[more] <= _BEYOND * limit)]
        kept = np.append(kept, more[np.unique(np.linspace(0, len(more) - 1, MOST).astype(int))] if len(more) else more)
    return Candidates(grid.rows(kept), worse[kept], better[kept])


def _expected(scores: np.ndarray, event: np.ndarray) -> np.ndarray:
    """(n,) chance of an event, (n,) bool, by logistic regression on scores (exits, n), or on their log odds in 0..1."""
    n, share = len(event), event.mean()
    if share == 0:
        return np.zeros(n)
    columns = []
    for row in scores.astype(np.float64):
        if row.min() >= 0 and row.max() <= 1:
            row = np.clip(row, 1e-6, 1 - 1e-6)
            row = np.log(row / (1 - row))
        columns.append(np.clip((row - row.mean()) / (row.std() + 1e-9), -5, 5))
    design = np.stack([np.ones(n), *columns, columns[-1] ** 2], axis=1)
    weights = np.array([np.log(share / (1 - share + 1 / n)), *np.zeros(design.shape[1] - 1)])
    ridge = np.diag([1e-3, *np.ones(len(weights) - 1)])
    for _ in range(8):  # Newton's method; the penalty keeps it stable
        chance = _logistic(design @ weights)
        slope = design.T @ (event - chance) - np.append(0, weights[1:])
        weights += np.linalg.solve((design * (chance * (1 - chance))[:, None]).T @ design + ridge, slope)
    return _logistic(design @ weights)


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))
