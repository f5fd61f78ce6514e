"""docs/tutorial.ipynb: what it shows is what comes out, in a kernel of its own."""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def modules() -> tuple[Any, Any]:
    reason = "Jupyter is optional: pip install -r requirements-notebook.txt"
    pytest.importorskip("ipykernel", reason=reason)
    return pytest.importorskip("nbformat", reason=reason), pytest.importorskip("nbclient", reason=reason)


def printed(notebook: Any) -> list[str]:
    """What each cell printed; nothing of warnings and progress bars."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    texts = ([output.text for output in cell.outputs if output.get("name") == "stdout"] for cell in cells)
    return ["".join(text).strip() for text in texts]


def figures(notebook: Any) -> list[int]:
    """How many figures each cell drew."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [sum("image/png" in output.get("data", {}) for output in cell.outputs) for cell in cells]


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+\.?\d*(?:e-\d+)?", text)]


def test_the_notebook_is_kept_tidy():
    nbformat, _ = modules()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))  # run from top to bottom
    assert all(output.get("name") != "stderr" for cell in notebook.cells for output in cell.get("outputs", []))
    assert "/home/" not in NOTEBOOK.read_text(encoding="utf-8")
    assert sum(figures(notebook)) == 3


@pytest.mark.slow
def test_the_notebook_runs_and_prints_what_it_shows(monkeypatch: pytest.MonkeyPatch):
    nbformat, nbclient = modules()
    shown = nbformat.read(NOTEBOOK, as_version=4)
    again = nbformat.read(NOTEBOOK, as_version=4)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(again, timeout=600, kernel_name="python3", resources=resources).execute()
    assert figures(again) == figures(shown)
    *before, last = printed(shown)
    *before_again, last_again = printed(again)
    for text, text_again in zip(before, before_again, strict=True):
        # Rounding differs from processor to processor, so an image in 2,000 may leave elsewhere.
        assert re.sub(r"[\d.]+", "#", text_again) == re.sub(r"[\d.]+", "#", text)
        assert numbers(text_again) == pytest.approx(numbers(text), rel=0.02)
    same_exit, difference = numbers(last_again.split("same exit")[1])
    assert same_exit > 99.8 and difference < 1e-4
    assert last_again.splitlines()[0] == last.splitlines()[0]
