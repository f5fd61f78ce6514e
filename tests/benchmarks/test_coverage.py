"""Certified thresholds on a pool of real outcomes, with fewer draws than docs/certified.md shows."""

import pytest

from benchmarks import coverage

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("risk", "limit"), [("accuracy_drop", 5), ("regressions", 10), ("changes", 10)])
def test_emoji(risk, limit):
    (row,) = coverage.drawn(coverage.emoji(), 400, risk, (limit,), 200)
    assert row["violations_%"] <= 5 + 2.5 * 1.54  # of 200 draws
    assert row["certified_%"] > 80 and row["mean_cost_%"] < 95


@pytest.mark.parametrize(
    ("risk", "limit", "worse", "better"), [("accuracy_drop", 1, 0.03, 0.02), ("changes", 5, 0.05, 0)]
)
def test_a_candidate_exactly_at_the_limit(risk, limit, worse, better):
    row = coverage.made_up(risk, limit, worse, better, 2000, 400, 0)
    assert 1 <= row["violations_%"] <= 5 + 2.5 * 1.09  # of 400 draws
