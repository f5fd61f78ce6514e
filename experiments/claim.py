"""What a claim is: recipes whose runs it needs, a computation, a figure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.runs import Run

Cell = str | dict[str, Any]
"""Of a table: a text, or what `experiments.analysis.measured` gives."""
Result = dict[str, Any]
"""`tables`, and `figure`, the numbers that the figure shows; plain values."""
Runs = dict[str, list[Run]]
Timings = list[dict[str, Any]]


@dataclass(frozen=True)
class Claim:
    """One claim.

    Args:
        name: Of the files, and on the command line.
        title: Heading on the page.
        recipes: What must have been run, for the same seeds.
        compute: Runs by recipe, and speeds by seed -> the result.
        draw: A result -> the PNG.
        timed: Recipes whose speeds are compared, the dynamic one first; empty for none.
        trial: It shows that the machinery works and says nothing; only run when asked for by name.
    """

    name: str
    title: str
    recipes: tuple[str, ...]
    compute: Callable[[Runs, Timings], Result]
    draw: Callable[[Result], bytes]
    timed: tuple[str, ...] = ()
    trial: bool = False


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> dict[str, Any]:
    """A table of a result."""
    return {"title": title, "columns": list(columns), "rows": [list(row) for row in rows]}
