"""From a budget to thresholds, the file that keeps what is needed for it, and `dvt thresholds` on that file."""

import dataclasses
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dvt.cli import main as cli
from dvt.config import EvalSection
from dvt.early_exit import assign_exits
from dvt.early_exit.budgets import (
    Choice,
    Costs,
    certainty,
    choose_thresholds,
    evaluate_thresholds,
    recommend,
    requested_budget,
)
from dvt.early_exit.candidates import CalibrationSet, parts
from dvt.early_exit.certify import Certificate, certify
from dvt.early_exit.decisions import thresholds_text
from dvt.early_exit.outcomes import Outcomes, Predictions, StoredPredictions
from dvt.early_exit.scores import ExitRule
from dvt.early_exit.search import Budget
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
    settings = EvalSection(budget_gmacs=1.5, exit_rule=rule, threshold_search=search, confidence="none")
    choice = choose_thresholds(CALIBRATION, COSTS, settings)
    found = recommend(choice, CALIBRATION, VAL, COSTS)
    assert (found.budget.asked, found.budget.unit) == (1.5, "GMACs/image")
    for outcomes, name in ((CALIBRATION, "calibration"), (VAL, "held_out")):
        exits = assign_exits(outcomes.scores[rule], choice.thresholds)
        assert getattr(found.budget, name) == pytest.approx(COSTS.gmacs[exits].mean())
    assert found.budget.calibration <= 1.5 and found.budget.held_out == pytest.approx(1.5, rel=0.1)
    exits = assign_exits(VAL.scores[rule], choice.thresholds)
    right = VAL.predicted[exits, np.arange(len(exits))] == VAL.labels
    assert found.accuracy == pytest.approx(100 * right.mean())
    assert found.expected_images_per_second == pytest.approx(50 / found.expected_gmacs)
    assert "1.5 GMACs" in found.rule and rule in found.rule


def test_images_per_second_and_accuracy_drop():
    choice = choose_thresholds(CALIBRATION, COSTS, EvalSection(budget_images_per_second=30.0, confidence="none"))
    budget = recommend(choice, CALIBRATION, VAL, COSTS).budget
    assert budget.calibration >= 30 and budget.held_out == pytest.approx(30, rel=0.1)
    choice = choose_thresholds(CALIBRATION, COSTS, EvalSection(max_accuracy_drop=2.0, confidence="none"))
    assert recommend(choice, CALIBRATION, VAL, COSTS).budget.calibration <= 2.0
    with pytest.raises(ConfigError, match="needs measured times"):
        choose_thresholds(CALIBRATION, Costs(COSTS.gmacs), EvalSection(budget_images_per_second=30.0))


def test_a_checkpoint_keeps_thresholds_with_their_rule():
    for rule, more in (("confidence", {"budget_gmacs": 1.5}), ("margin", {"max_accuracy_drop": 8.0})):
        choice = choose_thresholds(CALIBRATION, COSTS, EvalSection(exit_rule=rule, **more))
        metadata = json.loads(json.dumps(choice.to_metadata(recommend(choice, CALIBRATION, VAL, COSTS))))
        again = Choice.from_metadata(metadata)
        assert recommend(again, None, VAL, COSTS).budget is None  # what was asked for is not known any more
        assert again.rule == choice.rule
        assert (again.certificate, again.gmacs_bound) == (choice.certificate, choice.gmacs_bound)
        assert again.not_certified is None and again.describe() == choice.describe()
        np.testing.assert_array_equal(again.thresholds, choice.thresholds)
        # Readers of the plain row compare confidences, so it is there for that rule alone.
        assert (metadata["thresholds"] is None) == (rule == "margin")
    metadata["early_exit"]["thresholds"][0] += 0.1
    assert "of other thresholds" in Choice.from_metadata(metadata).not_certified
    assert Choice.from_metadata({}) is None
    earlier = Choice.from_metadata({"thresholds": [0.5, 0.0]})
    assert earlier.rule == ExitRule() and earlier.describe()[1] == "not certified: stored without a certificate"


def test_what_is_certified_and_what_is_called_so(caplog: pytest.LogCaptureFixture):
    certified = choose_thresholds(CALIBRATION, COSTS, EvalSection(max_accuracy_drop=8.0))
    assert certified.certificate.limit == 8 and certified.not_certified is None
    assert certified.certificate.thresholds == tuple(map(float, certified.thresholds))
    found = recommend(certified, CALIBRATION, VAL, COSTS)
    assert found.budget.held_out == pytest.approx(VAL.accuracy[-1] - found.accuracy) and found.budget.held_out < 8
    assert sum(each.images for each in found.class_drops) == len(VAL.labels)
    average = sum(each.images * each.drop for each in found.class_drops) / len(VAL.labels)
    assert average == pytest.approx(found.budget.held_out)

    changes = EvalSection(max_accuracy_drop=20.0, risk="changes")
    found = recommend(choose_thresholds(CALIBRATION, COSTS, changes), CALIBRATION, VAL, COSTS)
    exits = assign_exits(VAL.scores["confidence"], np.float32(found.thresholds))
    differ = VAL.predicted[exits, np.arange(len(exits))] != VAL.predicted[-1]
    assert found.budget.held_out == pytest.approx(100 * differ.mean()) and found.budget.unit == "% of answers changed"

    plain = choose_thresholds(CALIBRATION, COSTS, EvalSection(max_accuracy_drop=8.0, confidence="none"))
    for settings, unfit, why in (
        (EvalSection(max_accuracy_drop=8.0), "trained on these images", "trained on these images"),
        (EvalSection(max_accuracy_drop=8.0, confidence="none"), None, "no confidence was asked for"),
        (EvalSection(max_accuracy_drop=0.1), None, "The smallest limit that these images can certify"),
        (EvalSection(max_accuracy_drop=8.0, threshold_search="published"), None, "published sweep"),
    ):
        choice = choose_thresholds(CALIBRATION, COSTS, settings, unfit=unfit)
        assert choice.certificate is None and why in choice.not_certified
        assert settings.confidence == "none" or choice.not_certified in caplog.text
        if settings.max_accuracy_drop == 8 and settings.threshold_search == "optimised":
            np.testing.assert_array_equal(choice.thresholds, plain.thresholds)
    advice = "; --confidence none chooses without a certificate"  # which other risks do not take
    for settings, end in ((EvalSection(on_uncertified="fail"), advice), (changes, "")):
        with pytest.raises(ConfigError, match=f"not certified: trained on these images{end}$"):
            choose_thresholds(CALIBRATION, COSTS, settings, unfit="trained on these images")
    with pytest.raises(ConfigError, match="needs eval.max_accuracy_drop with a confidence, and no budget"):
        EvalSection(risk="changes", budget_gmacs=1.5)


def test_a_budget_is_chosen_on_one_part_and_its_cost_bounded_on_the_other():
    choice = choose_thresholds(CALIBRATION, COSTS, EvalSection(budget_gmacs=1.5))
    first, second = parts(len(CALIBRATION.labels))
    same = choose_thresholds(CALIBRATION.chosen(first), COSTS, EvalSection(budget_gmacs=1.5, confidence="none"))
    np.testing.assert_array_equal(choice.thresholds, same.thresholds)
    exits = assign_exits(CALIBRATION.scores["confidence"][:, second], choice.thresholds)
    assert COSTS.gmacs[exits].mean() < choice.gmacs_bound.gmacs < 1.3 * COSTS.gmacs[exits].mean()
    assert choose_thresholds(CALIBRATION, COSTS, EvalSection(budget_gmacs=1.5), unfit="no").gmacs_bound is None


def test_a_single_exit_needs_no_certificate():
    alone = Outcomes.of(REFERENCE["calibration_probs"][:1], REFERENCE["calibration_labels"])
    costs = Costs(REFERENCE["flops"][:1])
    choice = choose_thresholds(alone, costs, EvalSection())
    found = recommend(choice, alone, alone, costs)
    assert found.certificate is None and found.not_certified is None and not found.class_drops


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
    np.save(tmp_path / "plain.npy", np.zeros(3))
    for name in ("torn.npz", "plain.npy"):
        with pytest.raises(DataError, match=f"{name} is not a predictions file"):
            StoredPredictions.load(tmp_path / name)
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
    exits = assign_exits(VAL.scores["confidence"], np.float32(found["thresholds"]))
    assert found["expected_gmacs"] == pytest.approx(COSTS.gmacs[exits].mean())
    assert found["budget"]["asked"] == 1.5
    assert cli.main(["thresholds", str(tmp_path), "--budget-images-per-second", "30", "--exit-rule", "entropy"]) == 0
    text = capsys.readouterr().out
    assert "images/s: asked for 30.00," in text and "exit rule: entropy" in text
    assert cli.main(["thresholds", file, "--budget-gmacs", "0.01"]) == 2
    assert "cannot be met" in capsys.readouterr().err
    stored(calibration=None).save(tmp_path / "predictions.npz")
    assert cli.main(["thresholds", file]) == 2
    assert "no calibration images" in capsys.readouterr().err


def test_thresholds_command_certifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = str(tmp_path / "predictions.npz")
    stored().save(tmp_path / "predictions.npz")
    assert cli.main(["thresholds", file, "--max-accuracy-drop", "8"]) == 0
    assert "not certified: the file does not say whether the model was trained" in capsys.readouterr().out
    stored(unfit="").save(tmp_path / "predictions.npz")
    assert cli.main(["thresholds", file, "--max-accuracy-drop", "8"]) == 0
    assert "certified: with a confidence of 95 %, images of this kind lose at most 8 points" in capsys.readouterr().out
    assert cli.main(["thresholds", file, "--max-accuracy-drop", "8", "--confidence", "0.99", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["certificate"]["confidence"] == 0.99 and found["not_certified"] is None
    assert cli.main(["thresholds", file, "--max-accuracy-drop", "0.1", "--on-uncertified", "fail"]) == 2
    assert "needs about" in capsys.readouterr().err
    assert cli.main(["thresholds", file, "--confidence", "none", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["not_certified"] == "no confidence was asked for"
    assert cli.main(["thresholds", file, "--budget-gmacs", "1.5"]) == 0
    assert "with a confidence of 95 %" in capsys.readouterr().out


ANY = {"confidence": CALIBRATION.scores["confidence"], "predicted": CALIBRATION.predicted, "cost": COSTS.gmacs}
ANY |= {"labels": CALIBRATION.labels}


def test_thresholds_of_any_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "any.npz"
    np.savez(file, **ANY)
    assert cli.main(["thresholds", str(file), "--max-accuracy-drop", "8", "--json"]) == 0
    found = Certificate.from_json(json.loads(capsys.readouterr().out))
    images = CalibrationSet(ANY["confidence"], ANY["predicted"], ANY["cost"], ANY["labels"])
    assert found == certify(images, "accuracy_drop", 8)
    assert cli.main(["thresholds", str(file), "--max-accuracy-drop", "8"]) == 0
    assert thresholds_text(found.thresholds) in capsys.readouterr().out
    np.savez(file, **{name: array for name, array in ANY.items() if name != "labels"})
    assert cli.main(["thresholds", str(file), "--risk", "changes", "--max-accuracy-drop", "30"]) == 0
    assert cli.main(["thresholds", str(file)]) == 2
    assert "needs labels" in capsys.readouterr().err


def test_a_search_for_any_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The same as for an own network, whatever the precision of the scores."""
    file = tmp_path / "any.npz"
    for options, settings in (
        (["--confidence", "none", "--max-accuracy-drop", "2"], EvalSection(confidence="none", max_accuracy_drop=2.0)),
        (["--budget-gmacs", "1.5"], EvalSection(budget_gmacs=1.5)),
    ):
        np.savez(file, **ANY | {"confidence": ANY["confidence"].astype(np.float64)})
        assert cli.main(["thresholds", str(file), *options, "--json"]) == 0
        found, expected = json.loads(capsys.readouterr().out), choose_thresholds(CALIBRATION, COSTS, settings)
        assert found["thresholds"] == expected.thresholds.tolist() and found["not_certified"] == expected.not_certified
        reached = evaluate_thresholds(CALIBRATION, COSTS, expected.thresholds)
        assert (found["accuracy"], found["cost"]) == (reached.accuracy, reached.expected_gmacs)
        assert found["gmacs_bound"] == (expected.gmacs_bound and dataclasses.asdict(expected.gmacs_bound))
        np.savez(file, **ANY | {"confidence": ANY["confidence"].astype(np.float16)})
        assert cli.main(["thresholds", str(file), *options]) == 0
        said = capsys.readouterr().out
        assert ("with a confidence of 95 %" if settings.has_budget else "\nnot certified: no confidence") in said


def test_a_bound_above_the_budget_is_called_so():
    choice = choose_thresholds(CALIBRATION, COSTS, EvalSection(budget_gmacs=1.5))
    assert choice.gmacs_bound.gmacs > 1.5 and choice.gmacs_bound.budget == 1.5
    metadata = choice.to_metadata(recommend(choice, CALIBRATION, VAL, COSTS))
    for found in (choice, recommend(choice, CALIBRATION, VAL, COSTS), Choice.from_metadata(metadata)):
        [said] = certainty(found)
        assert said.endswith(f"at most {choice.gmacs_bound.gmacs:.4g} GMACs/image, which is above the budget of 1.5")
    roomy = dataclasses.replace(choice, gmacs_bound=dataclasses.replace(choice.gmacs_bound, budget=1.9))
    assert "above" not in certainty(roomy)[0]


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"cost": None}, [], "lacks cost: it holds confidence, predicted, labels, not confidence (K exits"),
        (
            {"confidence": None, "predicted": None},
            [],
            "lacks confidence, predicted: it holds cost, labels, not",
        ),
        ({"predicted": ANY["predicted"].astype(float)}, [], "predicted has type float64"),
        ({"labels": ANY["labels"].astype(str)}, [], "labels has type <U"),
        ({"labels": ANY["labels"][1:]}, [], "'labels': ("),
        ({"confidence": ANY["confidence"].T}, [], "the file needs confidence (K exits, n images)"),
        ({"confidence": ANY["confidence"][0]}, [], "the file needs confidence (K exits, n images)"),
        ({"cost": ANY["cost"] - 5}, [], "no exit costs less than nothing"),
        ({"labels": ANY["labels"] - 1}, [], "labels are below 0, as no class is; leave these images out"),
        ({"cost": ANY["cost"][::-1]}, [], "that rise from exit to exit"),
        ({"confidence": ANY["confidence"] * np.nan}, [], "NaN"),
        ({}, ["--max-accuracy-drop", "200"], "at least 0 and at most 100"),
        ({}, ["--budget-images-per-second", "1"], "--budget_images_per_second has no effect"),
        ({}, ["--budget-gmacs", "0.01"], "cannot be met"),
        ({"labels": None}, ["--confidence", "none"], "has no labels, which a search needs"),
        ({}, ["--on-uncertified", "warn"], "certified thresholds or none"),
        ({}, ["--max-accuracy-drop", "0.01", "--on-uncertified", "fail"], "cannot certify a limit of 0.01 points"),
        ({}, ["--confidence", "95"], "eval.confidence is 95.0"),
    ],
)
def test_files_of_other_networks_that_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arrays: dict, options: list[str], message: str
):
    kept = {name: array for name, array in (ANY | arrays).items() if array is not None}
    np.savez(tmp_path / "any.npz", **kept)
    assert cli.main(["thresholds", str(tmp_path / "any.npz"), *options]) == 2
    assert message in capsys.readouterr().err


def test_files_that_are_no_arrays_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "any.npz"
    np.savez(file, **ANY)
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("cost.npy", archive.read("cost.npy"))
    assert cli.main(["thresholds", str(file)]) == 2
    assert "holds cost more than once" in capsys.readouterr().err
    np.save(tmp_path / "one.npy", ANY["cost"])
    np.savez(tmp_path / "objects.npz", **ANY | {"labels": np.array([None, {}], object)})
    (tmp_path / "text").write_text("thresholds")
    for name in ("one.npy", "objects.npz", "text"):
        assert cli.main(["thresholds", str(tmp_path / name)]) == 2
        assert "is not a predictions file" in capsys.readouterr().err
