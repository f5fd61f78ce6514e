"""Bounds that hold at a stated level for every sample size: binomial shares, net losses, average costs. Plain NumPy.

All are exact. A level is the chance of a wrong statement, 0.05 for a confidence of 95 %. Shares lie in 0..1.

Sources: Clopper and Pearson, Biometrika 1934 (shares); Berger and Boos, JASA 1994 (a nuisance parameter is confined to
an interval, whose own level is added); Barnard, Biometrika 1947 (why the edge of the null hypothesis is its worst
point).
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

_NUISANCE_SHARE = 0.02  # of the level, spent on the interval of the share of images that count
_CELLS = 120  # into which that interval is cut
_HALVINGS = 40


@lru_cache(maxsize=4)
def _log_factorials(size: int) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, size + 1)))])


def _log_choose(n: int | np.ndarray, k: np.ndarray, most: int) -> np.ndarray:
    table = _log_factorials(1 << most.bit_length())  # few sizes, so that the table is made once
    return table[n] - table[k] - table[n - k]


def share_at_most(count: int, n: int, share: float) -> float:
    """P(X <= count) for X binomial with n images, each counting with probability `share`."""
    if count >= n or share <= 0:
        return 1.0
    if share >= 1:
        return 0.0
    k = np.arange(count + 1)
    return min(float(np.exp(_log_choose(n, k, n) + k * np.log(share) + (n - k) * np.log1p(-share)).sum()), 1.0)


@lru_cache(maxsize=1 << 14)
def share_upper(count: int, n: int, level: float) -> float:
    """Upper bound of the share in the population when `count` of n images counted (Clopper and Pearson)."""
    if count >= n:
        return 1.0
    return edge(lambda share: share_at_most(count, n, share) <= level, count / n, 1.0, _HALVINGS)


def share_lower(count: int, n: int, level: float) -> float:
    """Lower bound of the share in the population."""
    return 1.0 - share_upper(n - count, n, level)


def edge(holds: Callable[[float], bool], start: float, end: float, halvings: int) -> float:
    """From where on it holds, on the way from `start`, where it does not, to `end`, where it does."""
    for _ in range(halvings):
        middle = (start + end) / 2
        start, end = (start, middle) if holds(middle) else (middle, end)
    return end


@lru_cache(maxsize=1 << 16)
def net_loss_below(worse: int, better: int, n: int, limit: float, level: float) -> bool:
    """Whether n images prove that the net loss of the population, share worse less share better, is below `limit`.

    The sum of the two shares, that of images that count, lies in an interval [low, high] with all but a fiftieth of the
    level. It is cut into cells; in each, the chance of a result at least as good as this one is bounded by that at the
    corner with fewest worse and most better. The largest of these chances must stay below the rest of the level.
    """
    counted, least = worse + better, abs(limit)
    spent = _NUISANCE_SHARE * level
    low, high = max(share_lower(counted, n, spent / 2), least), share_upper(counted, n, spent / 2)
    if high <= low:
        return True  # so few images count that a loss of `limit` is out of the question
    edges = np.linspace(low, high, _CELLS + 1)
    p_worse = (edges[:-1] + limit) / 2
    p_better = np.maximum((edges[1:] - limit) / 2, 0)
    p_counted = np.minimum(p_worse + p_better, 1 - 1e-15)
    p_of_counted = np.clip(p_worse / p_counted, 1e-15, 1 - 1e-15)

    # At least as good is (worse - better - n limit) / sqrt(counted + n |limit| / 2 + 1/2) at most as large as here. It
    # rises with `worse` and falls with `better`, so for m images that count there is a largest number of worse ones.
    here = (worse - better - n * limit) / np.sqrt(counted + n * least / 2 + 0.5)
    margin = 6 * np.sqrt(n * high) + 20  # what lies beyond is added to the chance below
    m = np.arange(max(0, int(n * low - margin)), min(n, int(n * high + margin)) + 1)
    most = np.floor((m + n * limit + here * np.sqrt(m + n * least / 2 + 0.5)) / 2 + 1e-9)
    most = np.clip(np.maximum.accumulate(most), -1, m)
    most = (m + np.minimum.accumulate(most - m)).astype(int)  # rises by 0 or 1, as it must, whatever the rounding

    def chance(k: np.ndarray, of: np.ndarray, p: np.ndarray) -> np.ndarray:
        """(len(k), cells) binomial probability of k among `of`; 0 where k is none of 0..of."""
        kept = np.clip(k, 0, of)
        found = _log_choose(of, kept, n)[:, None] + kept[:, None] * np.log(p) + (of - kept)[:, None] * np.log1p(-p)
        return np.where((k == kept)[:, None], np.exp(found), 0.0)

    first = np.arange(most[0] + 1)
    start = chance(first, np.full(len(first), m[0]), p_of_counted).sum(axis=0)
    steps = -p_of_counted * chance(most[:-1], m[:-1], p_of_counted)
    steps += np.where((np.diff(most) > 0)[:, None], chance(most[:-1] + 1, m[1:], p_of_counted), 0.0)
    at_most = start + np.concatenate([np.zeros((1, _CELLS)), np.cumsum(steps, axis=0)])  # P(worse <= most | m)
    weights = chance(m, np.full(len(m), n), p_counted)
    worst = (weights * at_most).sum(axis=0) + np.maximum(1 - weights.sum(axis=0), 0)
    return bool(worst.max() <= level - spent)


def net_loss_upper(worse: int, better: int, n: int, level: float) -> float:
    """The limit from which on `net_loss_below` holds."""
    here = (worse - better) / n
    return edge(lambda limit: net_loss_below(worse, better, n, limit, level), here, 1.0, _HALVINGS // 2)


def cost_upper(leaving: np.ndarray, costs: np.ndarray, level: float) -> float:
    """Upper bound of the average cost in the population: `leaving` (K,) images leave at exits that cost `costs` (K,).

    The average is the first exit's cost plus, for each later exit, what it adds times the share of images that come so
    far; each share has its bound at an equal part of the level.
    """
    steps, n = np.diff(costs), int(leaving.sum())
    going_on = n - np.cumsum(leaving)[:-1]
    shares = [share_upper(int(count), n, level / len(steps)) for count in going_on]
    return float(costs[0] + steps @ shares)
