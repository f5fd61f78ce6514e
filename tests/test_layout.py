"""The layout of the package, from its source: imports go down the floors, nothing goes in circles, files stay short.

docs/architecture.md draws the floors from FLOORS and these helpers.
"""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "dvt"

FLOORS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("training", "deploy", "evaluation"),
    ("cluster", "data"),
    ("convert",),
    ("checkpoint", "early_exit"),
    ("config", "report", "cost"),
    ("models",),
    ("device", "safe_files"),
    ("errors", "value_checks", "signals", "moved"),
)
"""Folders and root modules of `dvt`, top to bottom; imports go down only."""

NEIGHBOURS = {
    ("value_checks", "errors"): "errors is what every check raises",
}
"""Imports within one floor, each with its reason."""

NO_MINDSPORE = (
    *("early_exit", "report", "config", "errors", "value_checks", "signals", "safe_files", "cost", "moved"),
    *("models.variants", "models.names", "models.grids", "models.cost"),
)
MAY_USE_MINDSPORE = ("early_exit.classifier",)
MOST_AT_THE_ROOT = 9
MOST_LINES = 420


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
            assert node.level == 0, f"{module} imports relatively, line {node.lineno}"
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
    """The folder or root module, as in FLOORS."""
    return module.partition(".")[0]


def floor_of(name: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if name in floor)


def own_imports(module: str) -> set[str]:
    return {name for name in imports(module) if not name.startswith(":")}


def all_but_root() -> list[str]:
    return [module for module in modules() if module]


def test_every_folder_and_root_module_has_its_floor():
    assert {folder(module) for module in all_but_root()} == {name for floor in FLOORS for name in floor}


def test_imports_go_down_the_floors():
    wrong = []
    for module in all_but_root():
        for target in own_imports(module):
            here, there = folder(module), folder(target)
            if here != there and floor_of(there) <= floor_of(here) and (here, there) not in NEIGHBOURS:
                wrong.append(f"{module} imports {target}")
    assert not wrong


def test_every_exception_is_needed():
    used = {(folder(module), folder(target)) for module in all_but_root() for target in own_imports(module)}
    assert set(NEIGHBOURS) <= used


def test_no_circles_between_files():
    refuse_circles({module: own_imports(module) for module in all_but_root()})


def test_no_circles_between_folders():
    graph: dict[str, set[str]] = {}
    for module in all_but_root():
        graph.setdefault(folder(module), set()).update(folder(target) for target in own_imports(module))
    refuse_circles({name: targets - {name} for name, targets in graph.items()})


def refuse_circles(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_plain_modules_import_no_mindspore_nor_what_does():
    """In-function imports count; a module that is named is plain with all that it imports in turn."""
    plain = [m for m in all_but_root() if m.startswith(NO_MINDSPORE) and m not in MAY_USE_MINDSPORE]
    assert not {module: path for module in plain if (path := way_to_mindspore(module))}


def way_to_mindspore(module: str) -> list[str] | None:
    """The chain of imports that leads from a module to MindSpore."""
    if ":mindspore" in imports(module):
        return [module]
    ways = (way_to_mindspore(target) for target in own_imports(module))
    return next(([module, *way] for way in ways if way), None)


def test_the_root_is_small():
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_AT_THE_ROOT


def test_no_file_is_long():
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    assert not {name: length for name, length in lengths.items() if length > MOST_LINES}


def test_every_folder_says_what_it_holds():
    """In the docstring of its `__init__`, whose first sentence stands in docs/architecture.md."""
    folders = {path.parent for path in modules().values()} - {PACKAGE}
    assert not [path for path in folders if not ast.get_docstring(ast.parse((path / "__init__.py").read_text("utf-8")))]


def test_the_helpers_see_what_is_wrong():
    assert resolved("dvt.early_exit.loop.run_cascade") == "early_exit.loop" and resolved("numpy.linalg") == ":numpy"
    assert "device" in imports("early_exit.classifier") and ":mindspore" in imports("early_exit.classifier")
    assert way_to_mindspore("evaluation.speed")
    with pytest.raises(pytest.fail.Exception):
        refuse_circles({"a": {"b"}, "b": {"a"}})
