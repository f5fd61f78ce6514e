"""`Results` to JSON and back: nothing is lost, and what does not fit is named."""

import json

import pytest
from report_results import made_up, results_of, with_everything

from dvt.early_exit.scores import ExitRule
from dvt.errors import DataError
from dvt.report import Results, write_report


@pytest.mark.parametrize("plain", [made_up(), made_up(1), with_everything(made_up())])
def test_nothing_is_lost(plain, tmp_path):
    results = results_of(plain)
    write_report(results, tmp_path)
    text = (tmp_path / "results.json").read_text()
    stored = json.loads(text, parse_constant=pytest.fail)
    assert stored | plain | {"recommended": stored["recommended"] | plain["recommended"]} == stored
    assert not any(stored[key] for key in set(stored) - set(plain))  # parts that these results lack
    assert Results.from_json(text) == results and Results.from_json(text).to_json() == text


def test_parts_are_typed():
    results = results_of(with_everything(made_up()))
    assert results.recommended.exit_rule == ExitRule("confidence", (1.31, 1.31, 1.31))
    assert results.recommended.class_drops[1].images == 500 == results.groups["item_size"]["14"].count
    assert results.exits[1] == (6, results.cumulative_gmacs[1], 67.75)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (["sweep"], "results.sweep"),
        (["cumulative_gmacs"], "results.cumulative_gmacs"),
        (["machine"], "results.machine"),
        (["model", "grid_sizes"], "model.grid_sizes"),
        (["sweep", "expected_gmacs"], "results.sweep.expected_gmacs"),
        (["recommended", "rule"], "results.recommended.rule"),
        (["throughput", "speed_up"], "results.throughput.speed_up"),
        (["recommended", "class_drops", 1, "drop"], "results.recommended.class_drops.1.drop"),
    ],
)
def test_a_missing_key_is_named(path, named):
    plain = made_up()
    holder = plain
    for key in path[:-1]:
        holder = holder[key]
    del holder[path[-1]]
    with pytest.raises(DataError, match=named):
        results_of(plain)


def test_other_files_are_refused():
    with pytest.raises(DataError, match="not what an evaluation writes"):
        Results.from_json("{")
    with pytest.raises(DataError, match=r"results\.sweep is \[\]"):
        results_of(made_up() | {"sweep": []})


def test_wrong_numbers_of_exits_are_refused():
    plain = made_up()
    plain["anytime_accuracy"].pop()
    with pytest.raises(DataError, match="2 in anytime_accuracy"):
        results_of(plain)
