"""What people read who join or cite: it parses and agrees with the package. Links are looked at by test_docs.py."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import dvt

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "adding_a_backbone.md"
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
    rows = re.findall(r"^\| \[`[^`]+`\]\(([^)]+)\),? ?((?:`\w+`(?:, )?)*) \|", GUIDE.read_text("utf-8"), re.MULTILINE)
    assert rows
    for link, names in rows:
        source = (GUIDE.parent / link).read_text(encoding="utf-8")
        assert [name for name in re.findall(r"\w+", names) if name not in source] == [], link
