"""The chain from runs to the page, on runs that nobody trained; the chain with training is in test_chain.py."""

import json
from pathlib import Path

import made_up
import numpy as np
import pytest
from PIL import Image

from dvt.cost import cumulative_gmacs
from dvt.early_exit.outcomes import Outcomes
from dvt.errors import ConfigError
from dvt.models.variants import model_config
from experiments import __main__ as command
from experiments import emoji, page
from experiments.analysis import accuracy_within, curve_of, matched, measured
from experiments.claims import CLAIMS, find_claim
from experiments.recipes import RECIPES, Recipe, find_recipe
from experiments.runs import Store, _unpack, pack

EMOJI = "dynamic_vs_static_emoji"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two seeds of every recipe."""
    root = tmp_path_factory.mktemp("experiments")
    made = Store(root / "results", root / "work")
    made_up.fill(made, list(RECIPES), [0, 1])
    return made


def test_the_page_in_the_repository_is_what_the_results_give():
    assert page.PAGE.read_text(encoding="utf-8") == page.render(), "bash scripts/run_experiments.sh --page"


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_is_a_configuration(name: str):
    config = find_recipe(name).config(3, "runs/x")
    assert config.seed == 3 and config.train.eval_every_epochs == 0  # nothing is chosen by test accuracy
    config.model.check()
    assert find_recipe(name).minutes <= 10


@pytest.mark.parametrize("claim", [each for each in CLAIMS.values() if each.timed and not each.trial])
def test_static_models_have_the_training_budget_of_the_dynamic_one(claim):
    def budget(name: str) -> float:
        total = 0.0
        for each in find_recipe(name).chain:
            config = find_recipe(each).config(0, "runs/x")
            images = config.train.epochs * (config.data.train_images or 1)  # None is all there are, for all of a claim
            total += images * cumulative_gmacs(config.model.resolve(10, 1))[-1]
        return total

    dynamic, *statics = claim.timed
    assert sum(map(budget, statics)) == pytest.approx(budget(dynamic), rel=0.01)


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=list(CLAIMS))
def test_every_claim_leaves_numbers_and_a_figure(claim, store: Store):
    assert command.conclude(claim, [0, 1], store)
    values = json.loads((store.results / f"{claim.name}.json").read_text())
    assert values["seeds"] == [0, 1] and values["runs"].keys() == set(claim.recipes)
    for table in values["tables"]:
        assert all(len(row) == len(table["columns"]) for row in table["rows"])
        assert any(not isinstance(cell, str) for row in table["rows"] for cell in row) or "budget" in table["title"]
    with Image.open(store.results / f"{claim.name}.png") as figure:
        assert figure.width > 800 and np.asarray(figure.convert("L")).std() > 10
    assert claim.trial or f"results/{claim.name}.png" in page.render(store.results)


def test_claims_see_what_was_put_into_the_runs(store: Store):
    """Large items are easy by construction: they leave first, and random exits lose."""
    command.conclude(find_claim("item_size"), [0, 1], store)
    first_exit = [row[1]["mean"] for row in _rows(store, "item_size")]
    assert first_exit == sorted(first_exit) and first_exit[-1] > first_exit[0] + 30
    command.conclude(find_claim("exit_rule"), [0, 1], store)
    gain = {row[0]: row[-1]["mean"] for row in _rows(store, "exit_rule")}
    assert gain["random"] == 0 and gain["confidence"] > 5


def test_a_claim_takes_the_seeds_that_all_its_recipes_have(tmp_path: Path):
    store = Store(tmp_path / "results", tmp_path / "work")
    made_up.fill(store, ["baseline"], [0, 1], count=60)
    assert not command.conclude(find_claim("two_exits"), [0, 1], store)
    made_up.fill(store, ["two_exits"], [1, 2], count=60)
    assert command.conclude(find_claim("two_exits"), [0, 1, 2], store)
    assert json.loads((store.results / "two_exits.json").read_text())["seeds"] == [1]


def test_a_run_of_a_recipe_that_was_changed_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = Store(tmp_path / "results", tmp_path / "work")
    made_up.fill(store, ["baseline"], [0], count=60)
    assert command.conclude(find_claim("item_size"), [0], store)
    assert store.is_done(RECIPES["baseline"], 0)
    (store.folder("baseline", 0) / "state.ckpt").write_text("half a training")
    changed = Recipe("baseline", "other", changes={"train.epochs": 11})
    monkeypatch.setitem(RECIPES, "baseline", changed)
    assert not store.is_done(changed, 0) and store.load("baseline", 0) is None
    assert "Not measured since its recipes were changed" in page.render(store.results)
    store.begin(changed, 0)
    assert not (store.folder("baseline", 0) / "state.ckpt").exists()


def test_a_run_without_its_outputs_or_with_a_torn_file_is_not_done(tmp_path: Path):
    store = Store(tmp_path / "results", tmp_path / "work")
    made_up.fill(store, ["baseline"], [0, 1], count=60)
    (store.results / "runs" / "baseline-0.npz").unlink()
    path = store.results / "runs" / "baseline-1.json"
    path.write_text(path.read_text()[:100])
    assert not any(store.is_done(RECIPES["baseline"], seed) for seed in (0, 1))


def test_a_batch_goes_on_in_another_clone_but_for_speeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """What is in the repository is enough for the claims; the trained models are not."""
    made_up.fill(Store(tmp_path / "results", tmp_path / "work"), find_claim(EMOJI).recipes, [0], count=60)
    monkeypatch.setattr(command, "_command", lambda *_: pytest.fail("nothing is to be trained or timed"))
    places = ["--results", str(tmp_path / "results"), "--work", str(tmp_path / "elsewhere")]
    assert command.main([EMOJI, "--seeds", "0", *places]) == 0
    assert (tmp_path / "results" / f"{EMOJI}.json").is_file()
    said = capsys.readouterr().err
    assert "speeds are not measured" in said and "emoji_static_9-0" in said


def test_packed_outputs_decide_like_the_probabilities():
    rng = np.random.default_rng(0)
    logits = 6 * rng.normal(size=(3, 500, 10)).astype(np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    labels = rng.integers(0, 10, 500)
    found = _unpack({f"val_{key}": values for key, values in pack(probabilities, labels).items()}, "val")
    exact = Outcomes.of(probabilities, labels)
    np.testing.assert_array_equal(found.correct, exact.correct)
    for rule, scores in exact.scores.items():
        np.testing.assert_allclose(1 - found.scores[rule], 1 - scores, rtol=1e-3, atol=2e-7)
    mean = _unpack({f"val_{key}": values for key, values in pack(probabilities, labels).items()}, "val", "averaged_")
    np.testing.assert_array_equal(mean.predicted[1], probabilities[:2].sum(axis=0).argmax(axis=1))
    np.testing.assert_array_equal(mean.predicted[0], exact.predicted[0])


def test_the_plan_counts_what_is_left(store: Store):
    claims = [find_claim("two_exits")]
    done = command.plan(claims, [0, 1], store)
    left = command.plan(claims, [0, 1, 2], store)
    assert "about 0 minutes" in done
    assert f"about {RECIPES['baseline'].minutes + RECIPES['two_exits'].minutes:.0f} minutes" in left


def test_refusals(tmp_path: Path):
    with pytest.raises(ConfigError, match="did you mean 'reuse'"):
        find_claim("reus")
    with pytest.raises(ConfigError, match=r"seeds is \[-1\].*at least 0"):
        command.main(["--list", "--seeds", "-1"])
    with pytest.raises(ConfigError, match="jobs is 0"):
        command.main(["--list", "--jobs", "0"])


def test_points_of_a_curve(store: Store):
    run = store.load("baseline", 0)
    curve = curve_of(run)
    place = matched(curve, 80.0)
    assert curve.accuracy[place] >= 80 and not (curve.accuracy[curve.gmacs < curve.gmacs[place]] >= 80).any()
    assert matched(curve, 101.0) is None
    first, last = run.gmacs[[0, -1]]
    within = accuracy_within(run, [first / 2, first, last])
    assert np.isnan(within[0]) and within[1] == pytest.approx(run.val.accuracy[0])
    assert measured([1.0, 3.0, float("nan")]) == {"mean": 2.0, "std": pytest.approx(2**0.5), "n": 2, "digits": 2}


def test_emoji_that_share_a_code_point_stay_together():
    rng = np.random.default_rng(0)
    points = {
        f"1F{first:03X}-200D-{second}": str(first % 2) for first in range(60) for second in range(rng.integers(1, 5))
    }
    sides = emoji.split(points)
    assert sides == emoji.split(dict(reversed(points.items())))
    by_first: dict[str, set[str]] = {}
    for point, side in sides.items():
        by_first.setdefault(point.split("-")[0], set()).add(side)
    assert all(len(found) == 1 for found in by_first.values())
    for category in "01":
        share = np.mean([sides[point] == "val" for point, each in points.items() if each == category])
        assert 0.25 < share <= emoji.VAL_SHARE


def test_another_archive_is_refused(tmp_path: Path):
    from dvt.errors import DataError

    archive = tmp_path / "other.tgz"
    archive.write_bytes(b"something else")
    with pytest.raises(DataError, match="not the archive"):
        emoji.prepare(tmp_path / "emoji", archive)
    assert not (tmp_path / "emoji").exists()


def test_the_models_of_the_recipes_are_those_of_the_quick_start():
    quick = find_recipe("baseline").config(0, "runs/x").model.resolve(10, 1)
    assert quick == model_config("dvt_deit_small", num_classes=10, **_sizes(quick))


def _sizes(config) -> dict:
    from dvt.config.files import load_config

    section = vars(load_config(page.ROOT / "config" / "quickstart.yaml").model)
    return {key: value for key, value in section.items() if key not in ("name", "num_classes")} | {"in_channels": 1}


def _rows(store: Store, name: str) -> list[list]:
    return json.loads((store.results / f"{name}.json").read_text())["tables"][0]["rows"]
