import json

import numpy as np
import pytest

from dvt.early_exit import assign_exits
from dvt.early_exit.candidates import CalibrationSet
from dvt.early_exit.certify import (
    Certificate,
    NotCertifiedError,
    certify,
    class_drops,
    cost_bound,
    joint_confidence,
    try_candidates,
)
from dvt.errors import ConfigError, DataError

COSTS = np.array([1.0, 3.0, 9.0])


def images(n: int, seed: int = 0, exits: int = 3) -> CalibrationSet:
    """An early exit errs more, above all where its score is low; later ones share most of its errors."""
    rng = np.random.default_rng(seed)
    hard = rng.random(n)
    labels = rng.integers(10, size=n)
    predicted, scores = [], []
    for k in range(exits):
        wrong = hard > 0.75 + 0.2 * k / exits + 0.05 * rng.standard_normal(n)
        predicted.append(np.where(wrong, (labels + 1 + k % 2) % 10, labels))
        scores.append(np.clip(1 - hard + 0.15 * rng.standard_normal(n), 0.01, 0.99))
    costs = COSTS if exits == 3 else np.arange(1.0, exits + 1)
    return CalibrationSet(np.array(scores, np.float32), np.array(predicted), costs, labels)


def population_loss(pool: CalibrationSet, thresholds: np.ndarray, risk: str) -> float:
    taken = assign_exits(pool.scores, thresholds)
    return 100 * float(pool.losses(risk)[taken, np.arange(len(taken))].mean())


@pytest.mark.parametrize(("risk", "limit"), [("accuracy_drop", 1.5), ("regressions", 3), ("changes", 6)])
def test_few_draws_lose_more_than_asked(risk, limit):
    pool, rng, violations, spent = images(6000, seed=9), np.random.default_rng(3), 0, []
    for draw in range(60):
        tried = try_candidates(pool.at(rng.integers(6000, size=900)), risk, limit, 0.05, seed=draw)
        row = tried.candidates.thresholds[tried.passed - 1]
        spent.append(1.0)
        if tried.passed:
            violations += population_loss(pool, row, risk) > limit
            spent[-1] = COSTS[assign_exits(pool.scores, row)].mean() / COSTS[-1]
    assert violations <= 7  # 5 % of 60 and two and a half standard errors
    assert np.mean(spent) < 0.8


@pytest.mark.parametrize(
    ("risk", "limit", "worse", "better"),
    [("accuracy_drop", 5, 0.05, 0), ("accuracy_drop", 5, 0.12, 0.07), ("regressions", 5, 0.05, 0)],
)
def test_a_candidate_exactly_at_the_limit_is_seldom_certified(risk, limit, worse, better):
    """All images leave together or none does, so that there is one candidate, and its risk is the limit."""
    rng, certified = np.random.default_rng(5), 0
    for draw in range(150):
        chance = rng.random(600)
        predicted = np.stack([chance < worse, chance > 1 - better]).astype(int)  # 0 is right
        one = CalibrationSet(np.full((2, 600), 0.5), predicted, np.array([1.0, 2.0]), np.zeros(600, int))
        certified += try_candidates(one, risk, limit, 0.05, seed=draw).passed > 0
    assert 1 <= certified <= 15


def test_what_a_certificate_says():
    calibration = images(4000)
    found = certify(calibration, "accuracy_drop", 1.5)
    assert found.loss <= found.bound <= found.limit == 1.5
    assert found.images == 4000 and found.tested == 2600 and found.confidence == 0.95
    assert COSTS[0] <= found.cost <= found.cost_bound < COSTS[-1]
    assert found.thresholds[-1] == -1e8
    assert population_loss(images(50_000, seed=1), found.thresholds, "changes") <= found.change_bound
    stored = json.loads(json.dumps(found.to_json()))
    assert Certificate.from_json(stored) == found
    for wrong in ({"confidence": 95}, {"risk": "speed"}, {"images": 3.5}, {"bound": None}, {"thresholds": "0.5"}):
        with pytest.raises(ConfigError, match=f"certificate.{next(iter(wrong))}"):
            Certificate.from_json(stored | wrong)
    with pytest.raises(ConfigError, match="certificate.limit is missing"):
        Certificate.from_json({key: value for key, value in stored.items() if key != "limit"})
    assert certify(calibration, "accuracy_drop", 1.5) == found


def test_more_confidence_and_joint_answers_cost_more():
    calibration = images(4000)
    alone, joint = (
        certify(calibration, "accuracy_drop", 2, confidence) for confidence in (0.9, joint_confidence(0.9, 20))
    )
    assert joint.confidence == pytest.approx(0.995) and joint.cost >= alone.cost
    assert certify(calibration, "accuracy_drop", 4).cost < certify(calibration, "accuracy_drop", 1).cost


def test_candidates_see_the_first_part_only():
    calibration = images(2000)
    order = np.random.default_rng(0).permutation(2000)
    labels = calibration.labels.copy()
    labels[order[700:]] = 0  # 35 % are the first part
    scores = calibration.scores.copy()
    scores[:, order[700:]] = 0.5
    other = CalibrationSet(scores, calibration.predicted, COSTS, labels)
    one, two = (try_candidates(each, "regressions", 2, 0.05) for each in (calibration, other))
    assert np.array_equal(one.candidates.thresholds, two.candidates.thresholds)
    assert not np.array_equal(one.worse, two.worse)


def test_scores_that_a_smooth_model_does_not_fit():
    """Rounded scores below which answers change, and above which none does: the limit is used up all the same."""
    rng, spent = np.random.default_rng(3), []
    labels, scores = rng.integers(10, size=8000), np.round(rng.random((3, 8000)), 1)
    changed = (scores < 0.45) & (rng.random((3, 8000)) < 0.8) & (np.arange(3) < 2)[:, None]
    pool = CalibrationSet(scores, np.where(changed, (labels + 1) % 10, labels), COSTS, labels)
    for draw in range(10):
        tried = try_candidates(pool.at(rng.integers(8000, size=2000)), "changes", 5, 0.05, seed=draw)
        row = tried.candidates.thresholds[tried.passed - 1]
        costs = [COSTS[assign_exits(pool.scores, each)].mean() for each in tried.candidates.thresholds]
        assert costs[0] < COSTS[-1] and np.diff(costs).max() < 0.05 * COSTS[-1]  # from dear to cheap
        assert population_loss(pool, row, "changes") <= 5
        spent.append(costs[tried.passed - 1] / COSTS[-1])
    assert np.mean(spent) < 0.4  # 0.55 with the candidates of the model alone


def test_early_answers_that_are_better_than_the_last():
    """A limit of 0 is certified cheaply: the first candidates are those that gain, not those that change nothing."""
    rng = np.random.default_rng(0)
    easy, right = rng.random(4000) < 0.7, rng.random(4000)
    correct = np.stack([np.where(easy, right < 0.97, right < 0.3), right < 0.88])
    images = CalibrationSet(
        scores=np.stack([np.where(easy, 0.9, 0.3) + 0.05 * rng.random(4000), np.ones(4000)]),
        predicted=np.where(correct, 0, 1),
        costs=np.array([1.0, 6.0]),
        labels=np.zeros(4000, int),
    )
    found = certify(images, "accuracy_drop", 0)
    assert found.cost < 0.5 * 6


def test_changes_need_no_labels():
    calibration = images(1000)
    plain = CalibrationSet(calibration.scores, calibration.predicted, COSTS)
    found = certify(plain, "changes", 10)
    assert found == certify(calibration, "changes", 10) and found.change_bound == 10
    assert f"({found.loss:.2f} % of answers changed on the 650 for the test)" in found.evidence()
    with pytest.raises(ConfigError, match="needs labels"):
        certify(plain, "accuracy_drop", 1)


@pytest.mark.parametrize("exits", [2, 5])
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_networks(exits, dtype):
    """Any number of exits, any precision, and scores on any scale: logits, say."""
    calibration = images(1500, exits=exits)
    scores = (1000 * (calibration.scores - 0.7)).astype(dtype)
    found = certify(CalibrationSet(scores, calibration.predicted, calibration.costs, calibration.labels), "changes", 8)
    assert len(found.thresholds) == exits and found.cost < calibration.costs[-1]
    assert np.isfinite(found.thresholds).all()


@pytest.mark.parametrize("risk", ["accuracy_drop", "regressions"])
def test_what_cannot_be_certified_says_what_can(risk):
    limit, certified = 0.3, 0
    counted = {"accuracy_drop": "0.3 points of accuracy lost", "regressions": "0.3 % of answers made wrong"}[risk]
    with pytest.raises(NotCertifiedError, match=f"a limit of {counted} at .* needs about") as refused:
        certify(images(400), risk, limit)
    assert refused.value.smallest > limit
    assert certify(images(400), risk, refused.value.smallest).limit == refused.value.smallest
    for seed in range(10):
        certified += try_candidates(images(refused.value.images, seed + 1), risk, limit, 0.05).passed > 0
    assert certified >= 5
    with pytest.raises(NotCertifiedError, match="no number of images"):
        certify(images(400), risk, 0)


def test_wrong_input_is_refused():
    calibration = images(100)
    scores, predicted, labels = calibration.scores, calibration.predicted, calibration.labels
    for limit, confidence in ((-1, 0.95), (101, 0.95), (np.nan, 0.95), (1, 95), (1, 0), (1, np.nan)):
        with pytest.raises(ConfigError):
            certify(calibration, "accuracy_drop", limit, confidence)
    with pytest.raises(ConfigError, match="unknown risk"):
        certify(calibration, "accuracy", 1)
    with pytest.raises(DataError, match="20 or more"):
        certify(images(19), "changes", 50)
    for wrong in (
        (scores[:2], predicted, COSTS, labels),
        (scores, predicted[:, 1:], COSTS, labels),
        (scores, predicted, COSTS[:2], labels),
        (scores, predicted, COSTS, labels[1:]),
        (np.where(scores > 0.5, np.nan, scores), predicted, COSTS, labels),
    ):
        with pytest.raises(DataError):
            CalibrationSet(*wrong)
    for costs in ([3.0, 1.0, 9.0], [2.0, 2.0, 2.0], [1.0, np.nan, 3.0]):
        with pytest.raises(ConfigError):
            CalibrationSet(scores, predicted, np.array(costs), labels)


def test_bound_of_the_cost_of_thresholds_chosen_elsewhere():
    thresholds = np.array([0.7, 0.6, -1e8], np.float32)
    pool = images(50_000, seed=2)
    mean = COSTS[assign_exits(pool.scores, thresholds)].mean()
    assert mean < cost_bound(images(2000), thresholds) < 1.1 * mean


def test_drops_per_class():
    calibration = images(3000)
    thresholds = np.array([0.5, 0.5, -1e8], np.float32)
    rows = class_drops(calibration, thresholds)
    assert sorted(row.label for row in rows) == list(range(10)) and sum(row.images for row in rows) == 3000
    assert all(row.low <= row.drop <= row.high for row in rows)
    assert [row.drop for row in rows] == sorted((row.drop for row in rows), reverse=True)
    average = sum(row.images * row.drop for row in rows) / 3000
    assert average == pytest.approx(population_loss(calibration, thresholds, "accuracy_drop"))
