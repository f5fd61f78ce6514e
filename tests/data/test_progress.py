"""Progress bars: on a terminal, not in a file; and all of them come from one function."""

import os
import pty
import sys
from pathlib import Path

import pytest

from dvt.data.progress import progress

PACKAGE = Path(__file__).parents[2] / "src" / "dvt"


def test_bars_are_for_terminals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    with (tmp_path / "log").open("w+") as log, os.fdopen(terminal, "w") as screen:
        for stream in (log, screen):
            monkeypatch.setattr(sys, "stderr", stream)
            assert list(progress(range(3), desc="made up")) == [0, 1, 2]
    assert (tmp_path / "log").read_text() == ""
    assert b"\r" in os.read(controller, 1000)
    os.close(controller)


def test_no_other_module_draws_bars() -> None:
    drawing = {path.name for path in PACKAGE.rglob("*.py") if " tqdm(" in path.read_text(encoding="utf-8")}
    assert drawing == {"progress.py"}
