"""Fixtures shared by all tests. MindSpore is imported only by those that need it."""

import logging
from collections.abc import Iterator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Of the fuzzing that is part of the soak tests."""
    group = parser.getgroup("fuzzing (with -m soak)")
    group.addoption("--fuzz-seconds", type=float, default=600.0, help="seconds per target (default: 600)")
    group.addoption("--fuzz-seed", type=int, default=0, help="which cases are made (default: 0)")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Commands that other tests ran in this process set the level for good, as in a process of their own."""
    logging.getLogger("dvt").setLevel(logging.NOTSET)


def _in_mode(name: str) -> Iterator[None]:
    import mindspore as ms

    before = ms.get_context("mode")
    ms.set_context(mode=getattr(ms, name))
    yield
    ms.set_context(mode=before)


@pytest.fixture
def graph_mode() -> Iterator[None]:
    """Cells are compiled, as users run them."""
    yield from _in_mode("GRAPH_MODE")


@pytest.fixture
def pynative_mode() -> Iterator[None]:
    """Cells run operator by operator, as users debug them."""
    yield from _in_mode("PYNATIVE_MODE")
