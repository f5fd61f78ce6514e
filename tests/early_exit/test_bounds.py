import numpy as np
import pytest
from scipy import stats

from dvt.early_exit.bounds import (
    cost_upper,
    net_loss_below,
    net_loss_upper,
    share_at_most,
    share_lower,
    share_upper,
)


@pytest.mark.parametrize(("count", "n", "share"), [(0, 50, 0.02), (7, 500, 0.03), (49, 50, 0.9), (300, 20_000, 0.016)])
def test_binomial_chances(count, n, share):
    assert share_at_most(count, n, share) == pytest.approx(stats.binom.cdf(count, n, share), rel=1e-9)


def test_bounds_of_a_share():
    assert share_upper(0, 100, 0.05) == pytest.approx(1 - 0.05**0.01)
    assert share_upper(8, 100, 0.05) == pytest.approx(stats.beta.ppf(0.95, 9, 92))
    assert share_lower(8, 100, 0.05) == pytest.approx(stats.beta.ppf(0.05, 8, 93))
    assert share_upper(5, 5, 0.05) == 1.0 and share_lower(0, 5, 0.05) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("level", [0.05, 0.005])
@pytest.mark.parametrize("limit", [0.2, 0.05, 0.0, -0.1])
def test_the_paired_test_is_exact(limit, level):
    """All results of 20 images are counted: nowhere on the edge of "loses `limit`" does it reject too often."""
    n = 20
    results = np.array([(i, j) for i in range(n + 1) for j in range(n + 1 - i)])
    rejected = np.array([net_loss_below(int(i), int(j), n, limit, level) for i, j in results])
    sizes = []
    for counted in np.linspace(abs(limit), 1, 60):
        worse, better = max(counted + limit, 0) / 2, max(counted - limit, 0) / 2
        chance = stats.multinomial.pmf(np.c_[results, n - results.sum(axis=1)], n, [worse, better, 1 - worse - better])
        sizes.append(np.nansum(chance[rejected]))
    assert max(sizes) <= level
    assert max(sizes) > 0.5 * level  # most of what is allowed is used

    table = np.zeros((n + 1, n + 1), bool)
    table[tuple(results.T)] = rejected
    for i, j in results[rejected]:  # fewer worse ones, or more better ones, prove it as well
        assert i == 0 or table[i - 1, j]
        assert i + j == n or table[i, j + 1]


def test_the_paired_bound_is_nearly_that_of_large_samples():
    assert net_loss_upper(60, 40, 3000, 0.05) == pytest.approx((20 + 1.645 * 10) / 3000, rel=0.04)
    assert net_loss_upper(0, 0, 300, 0.05) == pytest.approx(share_upper(0, 300, 0.05), rel=0.02)
    assert net_loss_upper(5, 30, 100, 0.05) < 0


def test_bound_of_the_cost():
    costs, shares = np.array([1.0, 4.0, 10.0]), np.array([0.5, 0.3, 0.2])
    rng = np.random.default_rng(0)
    bounds = np.array([cost_upper(rng.multinomial(400, shares), costs, 0.1) for _ in range(300)])
    assert np.mean(bounds < shares @ costs) <= 0.1
    assert bounds.mean() < shares @ costs * 1.15
    assert cost_upper(np.array([50, 0, 0]), costs, 0.05) < 2
