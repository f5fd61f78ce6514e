"""The fuzzing harness finds what it is for: readers that fail on purpose, on cases that can be made again."""

import faulthandler
import os
import time

import numpy as np
import pytest

from fuzz.harness import run_fuzz
from fuzz.mutations import MUTATIONS, mutated, splice

CORPUS = [bytes(range(256)) * 4, b"a short one"]


def watched(target, tmp_path, **limits):
    """Half a second of it, on cases that all have been changed."""
    return run_fuzz(target, CORPUS, (ValueError,), 0.5, seed=1, report_folder=tmp_path, **limits)


def unharmed(data):
    return data in CORPUS


def test_cases_follow_from_the_seed():
    cases = [mutated(CORPUS, 1, number) for number in range(300)]
    assert cases == [mutated(CORPUS, 1, number) for number in range(300)]
    assert len(set(cases)) > 280 and len(set(cases) & {mutated(CORPUS, 2, number) for number in range(300)}) < 20


@pytest.mark.parametrize("mutation", [*MUTATIONS, lambda data, rng: splice(data, CORPUS[1], rng)])
@pytest.mark.parametrize("data", [b"x", *CORPUS])
def test_every_mutation_changes_files_of_any_length(mutation, data):
    changed = [mutation(data, np.random.default_rng(seed)) for seed in range(50)]
    assert all(isinstance(each, bytes) for each in changed)
    assert sum(each != data for each in changed) > 15


def test_what_is_read_and_what_is_refused_is_counted(tmp_path):
    def picky(data):
        if not unharmed(data) and len(data) % 2:
            raise ValueError("odd")

    outcome = watched(picky, tmp_path)
    assert not outcome.failures and not list(tmp_path.iterdir())
    assert outcome.read > 50 and outcome.refused > 50 and outcome.read + outcome.refused == outcome.cases
    expected = sum(len(data) % 2 and not unharmed(data) for data in (mutated(CORPUS, 1, n) for n in range(100)))
    assert 0 < expected < 100 and f"{outcome.cases:,} cases" in str(outcome)


def test_an_exception_that_is_not_allowed_is_reported_and_the_run_goes_on(tmp_path):
    def surprising(data):
        if not unharmed(data) and len(data) % 7 == 3:
            raise KeyError("surprise")

    outcome = watched(surprising, tmp_path)
    assert len(outcome.failures) > 1
    expected = [n for n in range(outcome.cases) if len(mutated(CORPUS, 1, n)) % 7 == 3]
    assert [each.case for each in outcome.failures] == expected[: len(outcome.failures)]
    first = outcome.failures[0]
    assert first.file.read_bytes() == mutated(CORPUS, 1, first.case)
    text = first.file.with_suffix(".txt").read_text()
    assert "surprising" in text and f"seed=1, number={first.case}" in text and "KeyError: 'surprise'" in text


def crash(data):
    if not unharmed(data):
        faulthandler.disable()
        faulthandler._sigsegv()


def hang(data):
    while not unharmed(data):
        time.sleep(0.01)


def leave(data):
    if not unharmed(data):
        os._exit(0)


def devour(data):
    if not unharmed(data):
        np.ones(25_000_000, np.float64).sum()


@pytest.mark.parametrize(
    ("target", "limits", "words"),
    [
        (crash, {}, "ended by SIGSEGV"),
        (hang, {"case_seconds": 0.2}, "not done after 0.2 s"),
        (leave, {}, "ended the process"),
        (devour, {"memory_bytes": 10**8}, "MB were used; 100 MB are allowed"),
        (devour, {"memory_bytes": 3 * 10**7}, "Unable to allocate"),  # refused outright
    ],
)
def test_what_no_exception_tells_is_found(target, limits, words, tmp_path):
    outcome = watched(target, tmp_path, **limits)
    assert outcome.failures and all(words in each.reason for each in outcome.failures)
    assert [each.case for each in outcome.failures] == list(range(outcome.cases))


def test_the_memory_of_the_worst_case_is_told(tmp_path):
    def take(data):
        if not unharmed(data):
            np.ones(5_000_000, np.float64).sum()

    assert 35e6 < watched(take, tmp_path).peak_bytes < 80e6


def test_a_corpus_that_is_not_read_is_no_corpus():
    def refuse(data):
        raise ValueError("no")

    with pytest.raises(AssertionError, match="file 0 of the corpus"):
        run_fuzz(refuse, CORPUS, (ValueError,), 0.1, seed=0)
