"""README_CN.md says the same as README.md in everything that can be compared: commands, code and numbers."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+(?:[.,x/-]\d+)*")


def blocks(text: str, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(text) if found == language]


def commands(text: str) -> set[str]:
    """Lines of the shell blocks, without their comments."""
    lines = [line.partition("  #")[0].strip() for body in blocks(text, "bash") for line in body.splitlines()]
    return {re.sub(r"\s+", " ", line) for line in lines if line}


def programs(text: str) -> list[str]:
    return [re.sub(r" +#.*", "", body) for body in blocks(text, "python")]


def tables(text: str) -> list[list[list[str]]]:
    """Of each table the numbers in each row; rows and tables without any are left out."""
    found = [re.findall(r"^ *\|.*\|$", table, re.MULTILINE) for table in re.split(r"\n\s*\n", FENCE.sub("", text))]
    numbers = [[NUMBER.findall(row) for row in table] for table in found]
    return [rows for table in numbers if (rows := [row for row in table if row])]


def contradictions(english: str, chinese: str) -> list[str]:
    """What the Chinese text says otherwise."""
    wrong = [f"only in one: {command}" for command in sorted(commands(english) ^ commands(chinese))]
    wrong += [f"another program:\n{program}" for program in programs(chinese) if program not in programs(english)]
    wrong += [f"other numbers: {table}" for table in tables(chinese) if table not in tables(english)]
    known = set(NUMBER.findall(english))
    wrong += [f"unknown number {number}" for number in NUMBER.findall(FENCE.sub("", chinese)) if number not in known]
    return wrong


@pytest.fixture(scope="module")
def texts() -> tuple[str, str]:
    return tuple((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README_CN.md"))


def test_commands_programs_and_numbers_are_the_same(texts: tuple[str, str]):
    assert contradictions(*texts) == []


def test_what_matters_is_in_both(texts: tuple[str, str]):
    """Models, versions, the quick start's accuracy and speed."""
    assert all(len(tables(text)) >= 4 for text in texts)
    assert all(len(programs(text)) == 2 for text in texts)


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("bash scripts/run_tests.sh", "bash scripts/run_test.sh"),
        ("79.75 @ 2.0", "79.57 @ 2.0"),
        ("num_classes=10", "num_classes=100"),
        ("10,000", "10,001"),
        ("| 11.2 |", "| 12.2 |"),
    ],
)
def test_a_difference_is_seen(texts: tuple[str, str], was: str, becomes: str):
    english, chinese = texts
    assert was in chinese
    assert contradictions(english, chinese.replace(was, becomes))
