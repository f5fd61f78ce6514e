"""The pages of docs/: their links lead somewhere, and the code that they name is there.

A link whose text is code and whose target is a Python file names a definition in it: [`resize_matrix`](../src/...py).
"""

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from definitions import defined_at
from PIL import Image

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "README_CN.md", ROOT / "CONTRIBUTING.md"])
LINK = re.compile(r"\[([^\[\]]*)\]\(([^()\s]+)\)")
FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"(?:benchmarks|config|docker|docs|examples|experiments|scripts|src|tests)/[\w./-]+\.\w+")
MODULE_NAME = re.compile(r"dvt(?:\.\w+)+")
API_ENTRY = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pages
def test_relative_links_lead_to_files_and_headings(page):
    wrong = []
    for _, target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            wrong.append(target)
    assert not wrong


@pages
def test_definitions_that_links_name_are_in_their_files(page):
    wrong = []
    for text, target in links(page):
        name = re.fullmatch(r"`([A-Za-z_][\w.]*)`", text)
        if name and target.endswith(".py") and "/" not in text and not text.endswith(".py`"):
            file = (page.parent / target).resolve()
            if not defined_at(file, name[1]):
                wrong.append((name[1], target))
    assert not wrong


@pages
def test_paths_and_modules_in_code_exist(page):
    text = prose(page)
    inline = CODE.findall(text)
    wrong = [code for code in inline if PATH.fullmatch(code) and not (ROOT / code).exists()]
    wrong += [code for code in inline if MODULE_NAME.fullmatch(code) and not is_in_package(code)]
    wrong += [name for name in API_ENTRY.findall(text) if not is_in_package(name)]
    assert not wrong


def test_each_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    missing = [str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")]
    assert not [page for page in missing if f": {page}\n" not in navigation]


def test_the_readme_names_every_recipe_and_script():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = [path.stem for path in (ROOT / "config").glob("*.yaml")]
    names += [path.name for path in (ROOT / "scripts").iterdir() if path.suffix and path.name != "smoke_installed.py"]
    assert [name for name in names if name not in text] == []


@pytest.mark.slow
def test_walkthrough_shows_what_its_script_prints(tmp_path):
    """All but the confidences and the class, which depend on the picture."""
    page = (DOCS / "walkthrough.md").read_text(encoding="utf-8")
    shown = page.partition("```text\n")[2].partition("```")[0]
    Image.fromarray(np.arange(300 * 400 * 3, dtype=np.uint8).reshape(300, 400, 3)).save(tmp_path / "photo.jpg")
    command = [sys.executable, ROOT / "examples/shapes.py", "photo.jpg"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    printed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    vague = re.compile(r"confidence [\d.]+|class \d+")
    assert vague.sub("", printed) == vague.sub("", shown)


def test_checks_see_what_is_wrong(tmp_path):
    """The helpers themselves, on things that are not there."""
    assert defined_at(ROOT / "src/dvt/early_exit/decisions.py", "leaving")
    assert not defined_at(ROOT / "src/dvt/early_exit/decisions.py", "leavin")
    assert defined_at(ROOT / "src/dvt/early_exit/classifier.py", "AdaptiveClassifier.predict")
    assert not defined_at(ROOT / "src/dvt/early_exit/classifier.py", "AdaptiveClassifier.predicts")
    assert is_in_package("dvt.early_exit") and is_in_package("dvt.models.grids.resize_matrix")
    assert not is_in_package("dvt.early_exits") and not is_in_package("dvt.models.grids.resize_matrices")
    page = tmp_path / "page.md"
    page.write_text("# What it's for\n[here](#what-its-for)\n```\n[not](a-link)\n```\n[there](https://example.org)\n")
    assert links(page) == [("here", "#what-its-for")]
    assert all(len(links(guide)) > 5 for guide in (ROOT / "CONTRIBUTING.md", DOCS / "adding_a_backbone.md"))
    assert anchors(page) == {"what-its-for"}


def links(page: Path) -> list[tuple[str, str]]:
    """(text, target) of all links of a page into this repository."""
    return [(text, target) for text, target in LINK.findall(prose(page)) if "://" not in target]


@cache
def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@cache
def anchors(page: Path) -> set[str]:
    """Anchors that headings get, on GitHub and on the site."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def is_in_package(dotted: str) -> bool:
    """Whether `dvt.a.b.name` is a module, or a name that a module defines or hands on."""
    path, parts = ROOT / "src", dotted.split(".")
    for position, part in enumerate(parts):
        if (path / part).is_dir():
            path = path / part
            continue
        file, rest = (path / f"{part}.py", parts[position + 1 :])
        if not file.exists():
            file, rest = path / "__init__.py", parts[position:]
        return not rest or defined_at(file, ".".join(rest)) is not None or handed_on(file, rest)
    return (path / "__init__.py").exists()


def handed_on(file: Path, names: list[str]) -> bool:
    """Whether a module offers a name that another one defines: it imports it, or lists it in `__all__`."""
    text = file.read_text(encoding="utf-8")
    imported = (node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom))
    if any(alias.name == names[0] for node in imported for alias in node.names):
        return True
    return f'"{names[0]}"' in text.partition("__all__")[2].partition("]")[0]
