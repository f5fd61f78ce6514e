"""From a budget to thresholds, the file that keeps what is needed for it, and `dvt thresholds` on that file."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from dvt.cli import main as cli
from dvt.config import EvalSection
from dvt.early_exit import assign_exits
from dvt.early_exit.budgets import (
    Choice,
    Costs,
    choose_thresholds,
    compare_rules,
    compare_searches,
    evaluate_thresholds,
    frontier_curve,
    recommend,
    requested_budget,
    setting,
)
from dvt.early_exit.outcomes import Outcomes, Predictions, StoredPredictions
from dvt.early_exit.scores import ExitRule
from dvt.early_exit.search import Budget, Frontier, find_frontier
from dvt.errors import ConfigError, DataError

REFERENCE = np.load(Path(__file__).parents[1] / "reference" / "budgeted.npz")
CALIBRATION = Outcomes.of(REFERENCE["calibration_probs"], REFERENCE["calibration_labels"])
VAL = Outcomes.of(REFERENCE["eval_probs"], REFERENCE["eval_labels"])
COSTS = Costs(REFERENCE["flops"], REFERENCE["flops"] / 50)


def stored(**changes: object) -> StoredPredictions:
    return dataclasses.replace(StoredPredictions(VAL, COSTS.gmacs, CALIBRATION, COSTS.seconds), **changes)


@pytest.mark.parametrize(
    ("keys", "budget"),
    [
        ({}, Budget("accuracy_drop", 0.5)),
        ({"budget_gmacs": 1.5}, Budget("gmacs", 1.5)),
        ({"budget_images_per_second": 30.0}, Budget("images_per_second", 30.0)),
    ],
)
def test_the_configuration_says_which_budget(keys: dict, budget: Budget):
    assert requested_budget(EvalSection(**keys)) == budget


@pytest.mark.parametrize("rule", ["confidence", "entropy", "margin"])
@pytest.mark.parametrize("search", ["optimised", "published"])
def test_a_budget_is_met_and_what_is_said_of_it_is_so(rule: str, search: str):
    settings = EvalSection(budget_gmacs=1.5, exit_rule=rule, threshold_search=search)
    choice = choose_thresholds(CALIBRATION, COSTS, settings)
    found = recommend(choice, CALIBRATION, VAL, COSTS)
    assert (found.budget.asked, found.budget.unit) == (1.5, "GMACs/image")
    for outcomes, name in ((CALIBRATION, "calibration"), (VAL, "held_out")):
        exits = assign_exits(outcomes.scores_of(rule), choice.thresholds)
        assert getattr(found.budget, name) == pytest.approx(COSTS.gmacs[exits].mean())
    assert found.budget.calibration <= 1.5 and found.budget.held_out == pytest.approx(1.5, rel=0.1)
    exits = assign_exits(VAL.scores_of(rule), choice.thresholds)
    right = VAL.predicted[exits, np.arange(len(exits))] == VAL.labels
    assert found.accuracy == pytest.approx(100 * right.mean())
    assert found.expected_images_per_second == pytest.approx(50 / found.expected_gmacs)
    assert "1.5 GMACs" in found.rule and rule in found.rule
    here = evaluate_thresholds(VAL, COSTS, choice.thresholds, rule)
    assert setting(VAL, COSTS, choice.thresholds, rule) == vars(here)  # its name and form in 0.1.0


def test_images_per_second_and_accuracy_drop():
    choice = choose_thresholds(CALIBRATION, COSTS, EvalSection(budget_images_per_second=30.0))
    budget = recommend(choice, CALIBRATION, VAL, COSTS).budget
    assert budget.calibration >= 30 and budget.held_out == pytest.approx(30, rel=0.1)
    choice = choose_thresholds(CALIBRATION, COSTS, EvalSection(max_accuracy_drop=2.0))
    assert recommend(choice, CALIBRATION, VAL, COSTS).budget.calibration <= 2.0
    with pytest.raises(ConfigError, match="needs measured times"):
        choose_thresholds(CALIBRATION, Costs(COSTS.gmacs), EvalSection(budget_images_per_second=30.0))


def test_a_checkpoint_keeps_thresholds_with_their_rule():
    for rule in ("confidence", "margin"):
        choice = choose_thresholds(CALIBRATION, COSTS, EvalSection(budget_gmacs=1.5, exit_rule=rule))
        metadata = json.loads(json.dumps(choice.to_metadata(recommend(choice, CALIBRATION, VAL, COSTS))))
        again = Choice.from_metadata(metadata)
        assert recommend(again, None, VAL, COSTS).budget is None  # what was asked for is not known any more
        assert again.rule == choice.rule
        np.testing.assert_array_equal(again.thresholds, choice.thresholds)
        # Readers of the plain row compare confidences, so it is there for that rule alone.
        assert (metadata["thresholds"] is None) == (rule == "margin")
    assert Choice.from_metadata({}) is None
    assert Choice.from_metadata({"thresholds": [0.5, 0.0]}).rule == ExitRule()  # files of earlier versions


def test_rules_and_searches_are_compared_at_the_same_budgets():
    rules = {row.rule: row.points for row in compare_rules(CALIBRATION, VAL, COSTS)}
    assert list(rules) == ["confidence", "entropy", "margin", "random"]
    at_1 = {name: points[1] for name, points in rules.items()}
    assert at_1["confidence"].accuracy > at_1["random"].accuracy + 2
    for row in compare_searches(CALIBRATION, VAL, COSTS, "confidence"):
        assert row.optimised.calibration_accuracy >= row.published.calibration_accuracy


def test_an_evaluation_searches_each_frontier_once(monkeypatch: pytest.MonkeyPatch):
    searched = []

    def counted(*arguments: object) -> Frontier:
        searched.append(arguments)
        return find_frontier(*arguments)

    monkeypatch.setattr("dvt.early_exit.outcomes.find_frontier", counted)
    calibration = Outcomes.of(REFERENCE["calibration_probs"], REFERENCE["calibration_labels"])
    for _ in range(2):
        choose_thresholds(calibration, COSTS, EvalSection(budget_gmacs=1.5))
        frontier_curve(calibration, VAL, COSTS, "confidence")
        compare_rules(calibration, VAL, COSTS)
        compare_searches(calibration, VAL, COSTS, "confidence")
    assert len(searched) == 5  # optimised, and the published sweep of four rules


def test_the_file_keeps_everything(tmp_path: Path):
    outcomes = Outcomes.of(REFERENCE["eval_probs"], REFERENCE["eval_labels"], [1.5, 1.2, 0.9])
    kept = stored(val=outcomes, temperatures=np.array([1.5, 1.2, 0.9]), exit_index=np.zeros(len(outcomes.labels), int))
    kept.save(tmp_path / "predictions.npz")
    assert Predictions is StoredPredictions  # its name in 0.1.0
    for path in (tmp_path / "predictions.npz", tmp_path):
        loaded = StoredPredictions.load(path)
        np.testing.assert_array_equal(loaded.val.correct, outcomes.correct)
        for name, scores in outcomes.scores.items():
            np.testing.assert_array_equal(loaded.val.scores[name], scores)
        np.testing.assert_array_equal(loaded.calibration.scores["margin"], CALIBRATION.scores["margin"])
        assert loaded.temperatures.tolist() == [1.5, 1.2, 0.9] and loaded.thresholds is None
    assert sorted(file.name for file in tmp_path.iterdir()) == ["predictions.npz"]


def test_files_that_cannot_be_used_are_named(tmp_path: Path):
    with pytest.raises(DataError, match="there is no .*predictions.npz; `dvt eval` writes"):
        StoredPredictions.load(tmp_path)
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match=r"torn.npz is not a predictions file"):
        StoredPredictions.load(tmp_path / "torn.npz")
    np.savez(tmp_path / "other.npz", labels=np.zeros(3))
    with pytest.raises(DataError, match="lacks"):
        StoredPredictions.load(tmp_path / "other.npz")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        stored().save(tmp_path / "file" / "predictions.npz")


def test_thresholds_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    stored().save(tmp_path / "predictions.npz")
    file = str(tmp_path / "predictions.npz")
    assert cli.main(["thresholds", file, "--budget-gmacs", "1.5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    exits = assign_exits(VAL.scores_of("confidence"), np.float32(found["thresholds"]))
    assert found["expected_gmacs"] == pytest.approx(COSTS.gmacs[exits].mean())
    assert found["budget"]["asked"] == 1.5
    assert cli.main(["thresholds", str(tmp_path), "--budget-images-per-second", "30", "--exit-rule", "entropy"]) == 0
    text = capsys.readouterr().out
    assert "images/s: asked for 30," in text and "exit rule: entropy" in text
    assert cli.main(["thresholds", file, "--budget-gmacs", "0.01"]) == 2
    assert "cannot be met" in capsys.readouterr().err
    stored(calibration=None).save(tmp_path / "predictions.npz")
    assert cli.main(["thresholds", file]) == 2
    assert "no calibration images" in capsys.readouterr().err
