"""README_CN.md is for engineers with Ascend cards. Each of its commands and numbers stands in the English docs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+(?:[.,x/-]\d+)*")


def commands(text: str) -> set[str]:
    """Commands of the shell blocks, without their comments."""
    lines = [body.replace("\\\n", " ") for language, body in FENCE.findall(text) if language == "bash"]
    lines = [re.sub(r"(^| )#.*", "", line) for body in lines for line in body.splitlines()]
    return {" ".join(line.split()) for line in lines if line.strip()}


def unknown(english: str, chinese: str) -> list[str]:
    """What only the Chinese text says."""
    numbers = set(NUMBER.findall(english))
    wrong = [f"command {command}" for command in sorted(commands(chinese) - commands(english))]
    return wrong + [f"number {number}" for number in NUMBER.findall(FENCE.sub("", chinese)) if number not in numbers]


@pytest.fixture(scope="module")
def texts() -> tuple[str, str]:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return "\n".join(page.read_text("utf-8") for page in pages), (ROOT / "README_CN.md").read_text("utf-8")


def test_commands_and_numbers_stand_in_the_english_docs(texts: tuple[str, str]):
    assert unknown(*texts) == []
    assert len(commands(texts[1])) >= 10


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("bash scripts/run_tests.sh", "bash scripts/run_test.sh"),
        ("--train.warmup_epochs 1", "--train.warmup_epochs 11"),
        ("79.75 @ 2.0", "79.5731 @ 2.0"),
        ("15.33", "15.331"),
    ],
)
def test_a_difference_is_seen(texts: tuple[str, str], was: str, becomes: str):
    english, chinese = texts
    assert was in chinese
    assert unknown(english, chinese.replace(was, becomes))
