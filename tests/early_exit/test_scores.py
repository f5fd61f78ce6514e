"""Exit rules against their definitions, and temperatures against logits divided by them."""

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from dvt.early_exit.scores import RULES, ExitRule, at_temperature, describe
from dvt.errors import ConfigError

LOGITS = np.random.default_rng(0).standard_normal((3, 50, 7)) * 3
PROBABILITIES = softmax(LOGITS, axis=2)


def test_scores_are_those_of_the_definitions():
    ordered = np.sort(PROBABILITIES[0], axis=1)
    np.testing.assert_allclose(ExitRule().scores(0, PROBABILITIES[0]), ordered[:, -1])
    np.testing.assert_allclose(ExitRule("margin").scores(0, PROBABILITIES[0]), ordered[:, -1] - ordered[:, -2])
    expected = 1 - entropy(PROBABILITIES[0], axis=1, base=7)
    np.testing.assert_allclose(ExitRule("entropy").scores(0, PROBABILITIES[0]), expected, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_scores_rise_from_no_idea_to_certain(name: str):
    no_idea, certain = np.full(10, 0.1, np.float32), np.eye(10, dtype=np.float32)[3]
    between = 0.5 * no_idea + 0.5 * certain
    low, middle, high = ExitRule(name).scores(0, np.stack([no_idea, between, certain]))
    assert low < middle < high
    assert high == pytest.approx(1, abs=1e-6)
    assert low == pytest.approx(0.1 if name == "confidence" else 0, abs=1e-6)
    assert ExitRule(name).scores(0, np.stack([no_idea])).dtype == np.float32


def test_one_class_is_certain():
    for name in RULES:
        assert ExitRule(name).scores(0, np.ones((2, 1))).tolist() == [1, 1]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature_divides_logits(temperature: float):
    expected = softmax(LOGITS / temperature, axis=2)
    np.testing.assert_allclose(at_temperature(PROBABILITIES, temperature), expected, atol=1e-12)
    rule = ExitRule("confidence", (1.0, temperature, 1.0))
    np.testing.assert_allclose(rule.scores(1, PROBABILITIES[1]), expected[1].max(axis=1))
    scores = np.stack([rule.scores(k, each) for k, each in enumerate(PROBABILITIES)])
    np.testing.assert_allclose(scores[[0, 2]], PROBABILITIES[[0, 2]].max(axis=2))


def test_probabilities_of_zero_stay_zero():
    assert at_temperature(np.float32([1, 0, 0]), 2.0).tolist() == pytest.approx([1, 0, 0], abs=1e-15)


def test_rules_survive_json_and_mistakes_are_named():
    rule = ExitRule("margin", (1.5, 2.0))
    assert ExitRule.from_dict(rule.to_dict()) == rule and ExitRule.from_dict(None) == ExitRule()
    assert describe(rule) == "margin at temperatures 1.5, 2" and describe(ExitRule()) == "confidence"
    with pytest.raises(ConfigError, match="unknown exit rule 'guess'; choose from confidence, entropy, margin"):
        ExitRule("guess")
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="must be above 0"):
            ExitRule("confidence", (1.0, bad))
    with pytest.raises(ConfigError, match="2 temperatures for 3 exits"):
        rule.check_exits(3)
