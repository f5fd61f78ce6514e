"""docs/results.md, made of the JSONs of claims and runs and of the prose in experiments/prose. Imports no framework.

The prose says what was done and how to read it, the numbers come from the JSONs alone, so the two cannot disagree.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.claim import Cell
from experiments.claims import CLAIMS
from experiments.recipes import FOLDER, RECIPES, ROOT
from experiments.runs import Store

PAGE = ROOT / "docs" / "results.md"
RESULTS = ROOT / "results"
PROSE = FOLDER / "prose"
NOTE = "<!-- Made by `bash scripts/run_experiments.sh --page` of results/ and experiments/prose; edit those. -->"


def render(results: Path = RESULTS) -> str:
    """The text of the page. Raises DVTError for a file that is damaged."""
    parts = [NOTE, "# Results", _prose("intro")]
    found = {name: Store.read_json(results / f"{name}.json") for name, claim in CLAIMS.items() if not claim.trial}
    parts.append(_where(values for values in found.values() if values))
    for name, values in found.items():
        parts += [f"## {CLAIMS[name].title}", _prose(name)]
        if values is None or values["runs"] != {recipe: RECIPES[recipe].identity for recipe in values["runs"]}:
            state = "yet" if values is None else "since its recipes were changed"
            parts.append(f"Not measured {state}: `bash scripts/run_experiments.sh {name}`.")
            continue
        parts.append(f"Seeds {', '.join(map(str, values['seeds']))}; {values['date']}.")
        for table in values["tables"]:
            parts += [f"{table['title']}:", _table(table["columns"], table["rows"])]
        parts.append(f"![{CLAIMS[name].title}](../results/{name}.png)")
    parts += ["## The runs", _prose("runs")]
    return "\n\n".join(part for part in parts if part) + "\n"


def _prose(name: str) -> str:
    path = PROSE / f"{name}.md"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _where(found: Iterable[dict[str, Any]]) -> str:
    """On which machines, and when."""
    machines = list(dict.fromkeys(machine for values in found for machine in values["machines"]))
    return f"Machine: {'; '.join(machines)}." if machines else ""


def describe(machine: dict[str, Any]) -> str:
    """A machine in one line."""
    cores = f"{machine['cores']} core{'s' * (machine['cores'] > 1)}"
    return (
        f"{machine['processor']}, {cores}, {machine['memory_gib']} GiB, {machine['system']}, Python "
        f"{machine['python']}, MindSpore {machine['mindspore']}"
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return cell
    if cell["mean"] is None:
        return "not reached"
    digits = cell["digits"]
    text = f"{cell['mean']:,.{digits}f}"
    return text if cell["std"] is None else f"{text} ± {cell['std']:,.{digits}f}"
