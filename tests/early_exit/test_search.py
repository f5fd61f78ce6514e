"""The search against trying everything, against the published sweep, and on held-out images."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from dvt.early_exit import ALWAYS, NEVER, confidence, evaluate_scores
from dvt.early_exit.search import Budget, choose, find_frontier
from dvt.errors import ConfigError

REFERENCE = np.load(Path(__file__).parents[1] / "reference" / "budgeted.npz")
COST = REFERENCE["flops"]


def made_up(num_exits: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores and hits: later exits are better, and a high score is more often right."""
    rng = np.random.default_rng(seed)
    scores = rng.random((num_exits, count)).astype(np.float32)
    right = rng.random((num_exits, count)) < 0.3 + 0.5 * scores * np.linspace(0.7, 1.2, num_exits)[:, None]
    return scores, right


@pytest.fixture(scope="module")
def calibration() -> tuple[np.ndarray, np.ndarray]:
    probabilities = REFERENCE["calibration_probs"]
    return confidence(probabilities), probabilities.argmax(axis=2) == REFERENCE["calibration_labels"]


@pytest.mark.parametrize("num_exits", [2, 3])
def test_small_cases_equal_trying_everything(num_exits: int):
    scores, correct = made_up(num_exits, 12)
    cost = np.cumsum([1.0, 2.0, 4.0])[:num_exits]
    frontier = find_frontier(scores, correct, cost)
    choices = [[*np.unique(scores[k]), NEVER] for k in range(num_exits - 1)]
    rows = [[*row, ALWAYS] for row in itertools.product(*choices)]
    everything = evaluate_scores(scores, correct, cost, rows)
    for budget in np.linspace(cost[0], cost[-1], 40):
        best = everything.accuracy[everything.expected_cost <= budget + 1e-9].max()
        assert frontier.accuracy[frontier.cost <= budget + 1e-9].max() == pytest.approx(best)


@pytest.mark.parametrize("num_exits", [1, 2, 3, 4, 5])
def test_a_frontier_is_what_it_says(num_exits: int):
    scores, correct = made_up(num_exits, 400)
    cost = np.cumsum(np.arange(1.0, num_exits + 1))
    frontier = find_frontier(scores, correct, cost)
    again = evaluate_scores(scores, correct, cost, frontier.thresholds)
    np.testing.assert_allclose(frontier.accuracy, again.accuracy)
    np.testing.assert_allclose(frontier.cost, again.expected_cost)
    assert (np.diff(frontier.accuracy) > 0).all() and (np.diff(frontier.cost) > 0).all()
    assert frontier.accuracy[-1] >= 100 * correct[-1].mean()
    assert (frontier.thresholds[:, -1] <= ALWAYS).all()


def test_never_worse_than_the_published_sweep_where_it_was_searched(calibration):
    optimised, published = (find_frontier(*calibration, COST, name) for name in ("optimised", "published"))
    gains = []
    for budget in np.linspace(COST[0], COST[-1], 60):
        affordable = published.cost <= budget
        if affordable.any():
            best = optimised.accuracy[optimised.cost <= budget].max()
            gains.append(best - published.accuracy[affordable].max())
    assert min(gains) >= 0 and max(gains) > 0.2


def test_held_out_gain_where_the_published_family_does_not_fit():
    """A second exit that knows nothing: the sweep sends images there all the same, the search learns not to."""
    scores, correct = made_up(3, 20000, seed=1)
    correct[1] = np.random.default_rng(2).random(20000) < 0.2
    halves = np.arange(20000) % 2 == 0
    cost = np.array([1.0, 2.0, 4.0])
    reached = {}
    for name in ("published", "optimised"):
        frontier = find_frontier(scores[:, halves], correct[:, halves], cost, name)
        row = frontier.thresholds[frontier.cost <= 2.5][-1]
        held_out = evaluate_scores(scores[:, ~halves], correct[:, ~halves], cost, [row])
        reached[name] = held_out.accuracy[0]
        assert held_out.expected_cost[0] < 2.55
    assert reached["optimised"] > reached["published"] + 2


def test_budgets(calibration):
    frontier = find_frontier(*calibration, COST)
    last = 100 * calibration[1][-1].mean()
    for amount in (COST[0], 1.3, 2.0, 100.0):
        point = choose(frontier, Budget("gmacs", amount), last)
        assert frontier.cost[point] <= amount * (1 + 1e-9)
        assert point == len(frontier.cost) - 1 or frontier.cost[point + 1] > amount
    for drop in (0.0, 0.5, 5.0):
        point = choose(frontier, Budget("accuracy_drop", drop), last)
        assert frontier.accuracy[point] >= last - drop
        assert point == 0 or frontier.accuracy[point - 1] < last - drop
    in_seconds = find_frontier(*calibration, COST / 100)
    point = choose(in_seconds, Budget("images_per_second", 50), last)
    assert 1 / in_seconds.cost[point] >= 50 * (1 - 1e-9)


def test_mistakes(calibration):
    frontier = find_frontier(*calibration, COST)
    with pytest.raises(ConfigError, match=rf"a budget of 0.1 GMACs/image cannot be met.* need at least {COST[0]:.4g}"):
        choose(frontier, Budget("gmacs", 0.1), 80.0)
    with pytest.raises(ConfigError, match="a budget of 5000 images/s cannot be met: these exits reach at most"):
        choose(frontier, Budget("images_per_second", 5000), 80.0)
    for kind, amount in (("gmacs", 0.0), ("images_per_second", -1.0), ("accuracy_drop", -0.1), ("gmacs", np.inf)):
        with pytest.raises(ConfigError, match="give a number above 0"):
            Budget(kind, amount)
    with pytest.raises(ConfigError, match="cannot cost less than an earlier one"):
        find_frontier(*calibration, [1.0, 3.0, 2.0])
