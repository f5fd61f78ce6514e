"""What people read who join or cite: it parses and agrees with the package. Links are looked at by test_docs.py."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import dvt

ROOT = Path(__file__).parents[1]
BACKBONE_GUIDE = ROOT / "docs" / "adding_a_backbone.md"
FORMS = ["bug_report", "feature_request", "question"]


def parsed(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_citation_is_of_this_version_and_of_the_paper():
    citation = parsed(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert {"message", "title", "authors"} <= set(citation)  # what the format requires
    assert citation["version"] == dvt.__version__
    assert citation["license"] == "Apache-2.0"
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors"} <= set(paper) and paper["year"] == 2021
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert paper["title"] in readme
    names = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert f"author    = {{{names}}}" in readme


@pytest.mark.parametrize("name", FORMS)
def test_issue_forms_have_what_github_requires(name: str):
    form = parsed(ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml")
    assert all(isinstance(form[key], str) and form[key] for key in ("name", "description"))
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert fields and {part["type"] for part in fields} <= {"input", "textarea", "dropdown", "checkboxes"}
    ids = [part["id"] for part in fields]
    assert len(ids) == len(set(ids)) and all(re.fullmatch(r"[\w-]+", each) for each in ids)
    for part in fields:
        assert part["attributes"]["label"]
        options = part["attributes"].get("options", [])
        assert bool(options) == (part["type"] in ("dropdown", "checkboxes"))
        labels = [option["label"] if part["type"] == "checkboxes" else option for option in options]
        assert all(isinstance(label, str) for label in labels) and len(labels) == len(set(labels))


def test_the_backbone_guide_names_what_is_there():
    guide = BACKBONE_GUIDE
    rows = re.findall(r"^\| \[`[^`]+`\]\(([^)]+)\),? ?((?:`\w+`(?:, )?)*) \|", guide.read_text("utf-8"), re.MULTILINE)
    assert len(rows) == 15
    for link, names in rows:
        source = (guide.parent / link).read_text(encoding="utf-8")
        assert [name for name in re.findall(r"\w+", names) if name not in source] == [], link


def test_the_backbone_guide_shows_the_change_that_was_made():
    blocks = re.findall(r"```diff\n(.*?)```", BACKBONE_GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        path = re.search(r"^\+\+\+ b/(.+)$", block, re.MULTILINE)[1]
        for hunk in re.split(r"^@@.*$", block, flags=re.MULTILINE)[1:]:
            after = [line[1:] for line in hunk.strip("\n").splitlines() if not line.startswith("-")]
            assert "\n".join(after) in (ROOT / path).read_text(encoding="utf-8"), path
