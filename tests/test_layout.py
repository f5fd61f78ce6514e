"""The layout of the package, from its source: imports go down the floors, nothing goes in circles, files stay short."""

from graphlib import CycleError, TopologicalSorter

import floors
import pytest
from floors import FLOORS, NEIGHBOURS, PACKAGE, folder, folder_imports, imports, modules, resolved

NO_MINDSPORE = (
    *("early_exit", "report", "config", "errors", "value_checks", "signals", "safe_files", "cost", "moved"),
    *("models.variants", "models.names", "models.grids", "models.cost"),
)
MAY_USE_MINDSPORE = ("early_exit.classifier",)
MOST_AT_THE_ROOT = 9
MOST_LINES = 420


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
    refuse_circles(folder_imports())


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
    """The first sentence of its docstring stands in docs/architecture.md."""
    assert not [module for module in all_but_root() if not floors.summary(module)]


def test_the_page_and_the_picture_are_up_to_date():
    """`python docs/floors.py` makes both."""
    assert floors.PICTURE.read_text(encoding="utf-8") == floors.picture()
    assert floors.PAGE.read_text(encoding="utf-8") == floors.page()


def test_the_helpers_see_what_is_wrong():
    assert resolved("dvt.early_exit.loop.run_cascade") == "early_exit.loop" and resolved("numpy.linalg") == ":numpy"
    assert "device" in imports("early_exit.classifier") and ":mindspore" in imports("early_exit.classifier")
    assert way_to_mindspore("evaluation.speed")
    with pytest.raises(pytest.fail.Exception):
        refuse_circles({"a": {"b"}, "b": {"a"}})
