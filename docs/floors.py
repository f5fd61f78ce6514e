"""The floors of the package, from the imports in its source: `python docs/floors.py` draws docs/figures/floors.svg and
writes the list of folders into docs/architecture.md. tests/test_layout.py keeps the rules and that both are up to date.

Nothing of the package is imported.
"""

import ast
import re
from functools import cache
from pathlib import Path

DOCS = Path(__file__).resolve().parent
PACKAGE = DOCS.parent / "src" / "dvt"
PICTURE = DOCS / "figures" / "floors.svg"
PAGE = DOCS / "architecture.md"

FLOORS: tuple[tuple[str, ...], ...] = (
    ("cli", "convert", "cost"),
    ("training", "evaluation", "deploy"),
    ("cluster", "data", "report"),
    ("checkpoint",),
    ("early_exit",),
    ("config",),
    ("models",),
    ("device", "safe_files"),
    ("value_checks", "errors", "signals", "moved"),
)
"""Folders and root modules of `dvt`, top to bottom; imports go down only."""

NEIGHBOURS = {("value_checks", "errors"): "every check raises one"}
"""Imports within one floor, each with its reason."""

BOX, GAP, ROW, BAR, WIDTH = 184, 16, 66, 48, 840  # pixels


@cache
def modules() -> dict[str, Path]:
    """Module names below `dvt` ("cli.main"; "" is the root) and their files."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """What a module imports, in functions too but not for type checkers: modules of `dvt` as `modules()` names them,
    others by their first name with a colon in front."""
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {resolved(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {resolved(f"{node.module}.{alias.name}") for alias in node.names}
    return frozenset(found - {"", module})


def resolved(dotted: str) -> str:
    """The module that an imported name stands for or is in."""
    first, _, rest = dotted.partition(".")
    if first != "dvt":
        return f":{first}"
    while rest and rest not in modules():
        rest = rest.rpartition(".")[0]
    return rest


def folder(module: str) -> str:
    """The folder or root module that a module belongs to, as in FLOORS."""
    return module.partition(".")[0]


def folder_imports() -> dict[str, set[str]]:
    """Which folders and root modules each of them imports."""
    graph: dict[str, set[str]] = {name: set() for floor in FLOORS for name in floor}
    for module in modules():
        if module:
            own = {folder(target) for target in imports(module) if not target.startswith(":")}
            graph.setdefault(folder(module), set()).update(own - {folder(module)})
    return graph


def direct(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The imports that are shown: those that no longer way implies."""

    def below(name: str) -> set[str]:
        return graph[name].union(*(below(target) for target in graph[name]))

    return {
        name: {target for target in targets if not any(target in below(other) for other in targets - {target})}
        for name, targets in graph.items()
    }


def picture() -> str:
    """The floors as SVG: a box for each folder and root module, and below its name what it imports."""
    height = len(FLOORS) * ROW + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" text-anchor="middle">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    graph = direct(folder_imports())
    for row, floor in enumerate(FLOORS):
        top = GAP + row * ROW
        parts.append(f'<rect y="{top + BAR}" width="{WIDTH}" height="5" fill="#d5dae1"/>')
        left = (WIDTH - len(floor) * BOX - (len(floor) - 1) * GAP) / 2
        for column, name in enumerate(floor):
            x = left + column * (BOX + GAP)
            below = ", ".join(sorted(graph[name]))
            parts += [
                f'<rect x="{x:g}" y="{top}" width="{BOX}" height="{BAR}" rx="4" fill="#f3f5f8" stroke="#1c2024"/>',
                f'<text x="{x + BOX / 2:g}" y="{top + 20}" font-size="15" fill="#1c2024">{name}</text>',
                f'<text x="{x + BOX / 2:g}" y="{top + 38}" font-size="11" fill="#59626d">{below}</text>',
            ]
    return "\n".join([*parts, "</svg>\n"])


def summary(module: str) -> str:
    """The first sentence of a module's docstring."""
    text = " ".join((ast.get_docstring(ast.parse(modules()[module].read_text(encoding="utf-8"))) or "").split())
    return re.match(r".*?[.](?=\s|$)|.*", text)[0].removesuffix(".")


def folder_list() -> str:
    """One line per folder and root module, floor by floor, as Markdown."""
    lines = ["| folder or module | what is in it |", "|---|---|"]
    for floor in FLOORS:
        for name in floor:
            path = f"{name}/" if modules()[name].name == "__init__.py" else f"{name}.py"
            lines.append(f"| [`{path}`](../src/dvt/{path}) | {summary(name)} |")
    return "\n".join(lines)


def page() -> str:
    """docs/architecture.md with the list of folders as it should be."""
    start, end = "<!-- folders: written by docs/floors.py -->\n", "\n<!-- end of folders -->"
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(start)
    return before + start + folder_list() + end + rest.partition(end)[2]


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
