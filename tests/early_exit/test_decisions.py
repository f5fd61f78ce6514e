"""Early exit against the published numbers, against a slow reading of the specification, and against its own laws."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dvt import early_exit
from dvt.early_exit import assign_exits, budget_shares, confidence, evaluate, find_thresholds, sweep
from dvt.errors import ConfigError, DataError

REFERENCE = np.load(Path(__file__).parents[1] / "reference" / "budgeted.npz")


@pytest.fixture(scope="module")
def calibration():
    return confidence(REFERENCE["calibration_probs"])


# ---------------------------------------------------------------------------------------------- published numbers


def test_confidence_is_the_largest_probability(calibration):
    np.testing.assert_array_equal(calibration, REFERENCE["calibration_confidence"])


@pytest.mark.parametrize("p", range(1, 60))
def test_thresholds_and_results_equal_the_published_ones(calibration, p):
    thresholds = find_thresholds(calibration, budget_shares(p, 3))
    np.testing.assert_array_equal(thresholds, REFERENCE["thresholds"][p - 1])
    accuracy, cost = evaluate(REFERENCE["eval_probs"], REFERENCE["eval_labels"], REFERENCE["flops"], thresholds)
    assert accuracy == REFERENCE["accuracy"][p - 1]
    assert cost == pytest.approx(REFERENCE["expected_flops"][p - 1], rel=1e-6)


def test_sweep_equals_the_single_evaluations(calibration):
    result = sweep(REFERENCE["eval_probs"], REFERENCE["eval_labels"], REFERENCE["flops"], calibration)
    np.testing.assert_array_equal(result.thresholds, REFERENCE["thresholds"])
    np.testing.assert_array_equal(result.accuracy, REFERENCE["accuracy"])
    np.testing.assert_allclose(result.expected_cost, REFERENCE["expected_flops"], rtol=1e-6)
    np.testing.assert_allclose(result.exit_fractions.sum(axis=1), 1)
    np.testing.assert_allclose(result.exit_fractions @ REFERENCE["flops"], result.expected_cost)


def test_stored_thresholds_survive_a_list(calibration):
    stored = json.loads(json.dumps(REFERENCE["thresholds"].tolist()))
    result = early_exit.evaluate_many(
        REFERENCE["eval_probs"], REFERENCE["eval_labels"], REFERENCE["flops"].tolist(), stored
    )
    np.testing.assert_array_equal(result.accuracy, REFERENCE["accuracy"])


# ---------------------------------------------------------------------------- the specification, one image at a time


def slow_thresholds(conf, shares):
    num_exits, num_images = conf.shape
    thresholds = [np.float32(1e8)] * num_exits
    marked = [False] * num_images
    for k in range(num_exits - 1):
        wanted = math.floor(np.float32(num_images) * np.float32(shares[k]))
        met = 0
        for image in sorted(range(num_images), key=lambda i: -conf[k, i]):
            if marked[image]:
                continue
            met += 1
            if met == wanted:
                thresholds[k] = conf[k, image]
                break
        for image in range(num_images):
            if conf[k, image] >= thresholds[k]:
                marked[image] = True
    thresholds[-1] = np.float32(-1e8)
    return np.array(thresholds, dtype=conf.dtype)


def slow_exits(conf, thresholds):
    num_exits, num_images = conf.shape
    result = []
    for image in range(num_images):
        for k in range(num_exits):
            if conf[k, image] >= thresholds[k] or k == num_exits - 1:
                result.append(k)
                break
    return result


# Few distinct values, so that ties are the rule.
coarse = st.sampled_from([np.float32(v) / 8 for v in range(1, 9)])
confidences = st.tuples(st.integers(1, 4), st.integers(1, 40)).flatmap(
    lambda shape: hnp.arrays(np.float32, shape, elements=coarse)
)


@settings(max_examples=150, deadline=None)
@given(conf=confidences, p=st.integers(1, 59))
def test_thresholds_follow_the_specification(conf, p):
    shares = budget_shares(p, conf.shape[0])
    np.testing.assert_array_equal(find_thresholds(conf, shares), slow_thresholds(conf, shares))


@settings(max_examples=150, deadline=None)
@given(conf=confidences, data=st.data())
def test_thresholds_of_any_shares_follow_the_specification(conf, data):
    shares = data.draw(hnp.arrays(np.float32, conf.shape[0], elements=st.floats(0, 1.5, width=32)))
    np.testing.assert_array_equal(find_thresholds(conf, shares), slow_thresholds(conf, shares))


@settings(max_examples=150, deadline=None)
@given(conf=confidences, data=st.data())
def test_every_image_takes_exactly_one_exit(conf, data):
    thresholds = data.draw(hnp.arrays(np.float32, conf.shape[0], elements=coarse))
    exit_index = assign_exits(conf, thresholds)
    assert exit_index.shape == conf.shape[1:]
    assert exit_index.dtype.kind == "i"
    assert exit_index.tolist() == slow_exits(conf, thresholds)


@settings(max_examples=150, deadline=None)
@given(conf=confidences, data=st.data())
def test_a_higher_threshold_never_moves_an_image_to_an_earlier_exit(conf, data):
    thresholds = data.draw(hnp.arrays(np.float32, conf.shape[0], elements=coarse))
    raised = thresholds.copy()
    raised[data.draw(st.integers(0, len(raised) - 1))] += data.draw(coarse)
    assert (assign_exits(conf, raised) >= assign_exits(conf, thresholds)).all()


# ------------------------------------------------------------------------------------------------------ corner cases


def test_threshold_extremes():
    conf = np.random.default_rng(0).random((3, 50), dtype=np.float32)
    assert (assign_exits(conf, [0, 0, 0]) == 0).all()
    assert (assign_exits(conf, [1e8, 1e8, -1e8]) == 2).all()
    assert (assign_exits(conf, [1e8, 1e8, 1e8]) == 2).all()  # the last takes the rest whatever its threshold
    assert (assign_exits(conf, [1e300, -np.inf, np.inf]) == 1).all()


def test_equal_confidence_leaves():
    conf = np.array([[0.7, 0.6999999, 0.7000001]], dtype=np.float32).repeat(2, axis=0)
    np.testing.assert_array_equal(assign_exits(conf, [0.7, 0]), [0, 1, 0])  # 0.7 is not a float32


def test_checked_thresholds_compare_as_assigned_ones():
    conf = np.array([[0.7, 0.6999999, 0.7000001]], dtype=np.float32).repeat(2, axis=0)
    checked = early_exit.check_thresholds([0.7, -1e8], 2)
    assert checked.dtype == np.float32
    np.testing.assert_array_equal(conf[0] >= checked[0], assign_exits(conf, [0.7, -1e8]) == 0)
    with pytest.raises(ConfigError, match="2 exits"):
        early_exit.check_thresholds([0.7], 2)


def test_ties_beyond_the_count_have_left_too():
    conf = np.array([[0.9, 0.9, 0.9, 0.5], [0.6, 0.7, 0.8, 0.4], [1, 1, 1, 1]], dtype=np.float32)
    # One image wanted at exit 0; all three of 0.9 leave, so exit 1 has only the last image to choose from.
    np.testing.assert_array_equal(find_thresholds(conf, [0.25, 0.25, 0.5]), np.float32([0.9, 0.4, -1e8]))
    np.testing.assert_array_equal(find_thresholds(conf, [0.25, 0.5, 0.25]), np.float32([0.9, 1e8, -1e8]))


def test_a_share_of_less_than_one_image_closes_the_exit():
    conf = np.full((3, 10), 0.5, dtype=np.float32)
    np.testing.assert_array_equal(find_thresholds(conf, [0.09, 0.09, 0.82]), np.float32([1e8, 1e8, -1e8]))


def test_one_exit_takes_all():
    np.testing.assert_array_equal(find_thresholds([[0.2, 0.9]], [1.0]), [-1e8])
    np.testing.assert_array_equal(assign_exits([[0.2, 0.9]], [5.0]), [0, 0])


def test_float64_confidence_keeps_its_precision():
    conf = np.random.default_rng(0).random((3, 100))
    thresholds = find_thresholds(conf, budget_shares(20, 3))
    assert thresholds.dtype == np.float64
    assert thresholds[0] in conf[0]
    assert np.count_nonzero(assign_exits(conf, thresholds) == 0) == 33


def test_shares():
    np.testing.assert_allclose(budget_shares(20, 3), [1 / 3] * 3, rtol=1e-6)
    np.testing.assert_allclose(budget_shares(40, 3), [2 / 14, 4 / 14, 8 / 14], rtol=1e-6)
    np.testing.assert_allclose(budget_shares(10, 2), [2 / 3, 1 / 3], rtol=1e-6)
    assert budget_shares(7, 1).tolist() == [1]
    assert budget_shares(7, 3).dtype == np.float32
    for wrong in (0, -1, np.nan, [10, 20, 30]):
        with pytest.raises(ConfigError, match="it must be one number above 0"):
            budget_shares(wrong, 3)


def test_evaluation_counts_by_hand():
    probabilities = np.array([[[0.9, 0.1], [0.4, 0.6]], [[0.2, 0.8], [0.7, 0.3]]])
    accuracy, cost = evaluate(probabilities, [0, 0], [1.0, 4.0], [0.8, -1e8])
    assert (accuracy, cost) == (100.0, 2.5)
    result = evaluate(probabilities, [0, 0], [1.0, 4.0], [0.5, -1e8])
    assert result == (50.0, 1.0)
    assert result.accuracy == 50.0 and result.expected_cost == 1.0


# --------------------------------------------------------------------------------------------------------- wrong use

CONF = np.full((3, 4), 0.5, dtype=np.float32)
PROBS = np.full((3, 4, 2), 0.5, dtype=np.float32)
LABELS = np.zeros(4, dtype=np.int64)
COST = [1.0, 2.0, 3.0]
SHARES = [0.3, 0.3, 0.4]
OPEN = [0.5, 0.5, -1e8]


def with_nan(array):
    array = array.copy()
    array.flat[1] = np.nan
    return array


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: budget_shares(0, 3), ConfigError, "p is 0"),
        (lambda: budget_shares(-1, 3), ConfigError, "above 0"),
        (lambda: budget_shares(float("nan"), 3), ConfigError, "above 0"),
        (lambda: budget_shares(1e30, 3), ConfigError, "beyond float32"),
        (lambda: budget_shares(5, 0), ConfigError, "num_exits"),
        (lambda: budget_shares(5, 2.5), ConfigError, "num_exits"),
        (lambda: confidence(with_nan(PROBS)), DataError, "NaN"),
        (lambda: confidence(PROBS[:, :0]), DataError, "at least one image"),
        (lambda: confidence(PROBS * 30), DataError, "logits"),
        (lambda: confidence(PROBS - 30), DataError, "logits"),
        (lambda: confidence(PROBS.astype(str)), DataError, "type"),
        (lambda: find_thresholds(with_nan(CONF), SHARES), DataError, "NaN"),
        (lambda: find_thresholds(CONF[0], SHARES), DataError, r"shape \(4,\)"),
        (lambda: find_thresholds(CONF[:, :0], SHARES), DataError, "at least one"),
        (lambda: find_thresholds([[0.1], [0.1, 0.2]], SHARES), DataError, "rectangular"),
        (lambda: find_thresholds(CONF, SHARES[:2]), ConfigError, "3 exits"),
        (lambda: find_thresholds(CONF, [0.5, float("nan"), 0.5]), ConfigError, "NaN"),
        (lambda: find_thresholds(CONF, [0.5, -0.5, 1]), ConfigError, "negative"),
        (lambda: assign_exits(with_nan(CONF), OPEN), DataError, "NaN"),
        (lambda: assign_exits(CONF, [0.5, float("nan"), 0]), ConfigError, "NaN"),
        (lambda: assign_exits(CONF, [0.5]), ConfigError, "3 exits"),
        (lambda: assign_exits(CONF, 0.5), ConfigError, "3 exits"),
        (lambda: assign_exits(CONF, None), ConfigError, "3 exits"),
        (lambda: assign_exits(CONF, "high"), ConfigError, "one number per exit"),
        (lambda: assign_exits(CONF, [True, 0.5, 0.5]), ConfigError, "one number per exit"),
        (lambda: assign_exits(CONF, ["0.5", "0.5", "0"]), ConfigError, "one number per exit"),
        (lambda: evaluate(PROBS[0], LABELS, COST, OPEN), DataError, "exits, images, classes"),
        (lambda: evaluate(with_nan(PROBS), LABELS, COST, OPEN), DataError, "NaN"),
        (lambda: evaluate(PROBS, LABELS[:3], COST, OPEN), DataError, "4 images"),
        (lambda: evaluate(PROBS, LABELS + 0.5, COST, OPEN), DataError, "whole numbers"),
        (lambda: evaluate(PROBS, LABELS + 2, COST, OPEN), DataError, "2 classes"),
        (lambda: evaluate(PROBS, LABELS - 1, COST, OPEN), DataError, "counted from 0"),
        (lambda: evaluate(PROBS, LABELS, COST[:2], OPEN), ConfigError, "cumulative_cost"),
        (lambda: evaluate(PROBS, LABELS, [1, float("inf"), 2], OPEN), ConfigError, "finite"),
        (lambda: evaluate(PROBS, LABELS, COST, OPEN[:2]), ConfigError, "thresholds"),
        (lambda: evaluate(PROBS, LABELS, COST, None), ConfigError, "thresholds"),
        (lambda: early_exit.evaluate_many(PROBS, LABELS, COST, OPEN), ConfigError, "thresholds"),
        (lambda: early_exit.evaluate_many(PROBS, LABELS, COST, []), ConfigError, "at least one row"),
        (lambda: early_exit.find_sweep_thresholds(CONF, []), ConfigError, "no points"),
    ],
)
def test_wrong_use_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
