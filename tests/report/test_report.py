"""The report: complete, self-contained, escaped, and never claiming more than the numbers."""

import base64
import errno
import io
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from report_results import made_up, results_of, with_everything

from dvt.early_exit import ALWAYS, NEVER
from dvt.errors import ConfigError
from dvt.report import headline, summary, write_report
from dvt.report.figures import EXIT_COLOURS

VOID_TAGS = {"meta", "link", "img", "br", "source"}


class Page(HTMLParser):
    """Collects text and references, and refuses tags that do not close in order."""

    def __init__(self, markup):
        super().__init__()
        self.open, self.references, self.words, self.alternatives = [], [], [], []
        self.feed(markup)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        if tag not in VOID_TAGS:
            self.open.append(tag)
        for key, value in attrs:
            if key in ("src", "srcset", "href", "data", "action", "poster"):
                self.references.append(value)
        if tag == "img":
            self.alternatives.append(dict(attrs)["alt"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def png_size(png):
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        assert image.format == "PNG"
        return image.size


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def report(request, tmp_path_factory):
    """(number of exits, path of the page)"""
    folder = tmp_path_factory.mktemp("runs") / "new" / "report"
    return request.param, write_report(results_of(made_up(request.param)), folder)


def test_page_is_self_contained_and_has_the_numbers(report):
    num_exits, path = report
    markup = path.read_text(encoding="utf-8")
    page = Page(markup)

    assert path.name == "report.html"
    assert "http://" not in markup and "https://" not in markup
    assert "<script" not in markup and "@import" not in markup and "url(" not in markup
    assert page.references and all(reference.startswith("data:") for reference in page.references)
    assert page.alternatives and all(page.alternatives)
    assert "prefers-color-scheme: dark" in markup and 'name="viewport"' in markup
    for k in range(num_exits):
        assert f"exit {k + 1}" in page.text.replace("\xa0", " ")
        assert f"{61.25 + 6.5 * k:.2f} %" in page.text
        assert EXIT_COLOURS[k] in markup
    for expected in ("1,613", "1.61", "2,048", "10,000", "2025-01-31", "A Processor", "15.6", "70.50 %", "last.ckpt"):
        assert expected in page.text
    for expected in ("Bag", "item size 14 px", "+0.25", "-0.50 to +1.25", "embed dim", "multiply-adds"):
        assert expected in page.text
    assert "exit 0" not in page.text.replace("\xa0", " ")


def test_figures_are_pngs_of_sensible_size(report):
    num_exits, path = report
    names = {"accuracy_gmacs.png"}
    assert {file.name for file in path.parent.iterdir()} == names | {"report.html", "results.json"}
    for name in names:
        width, height = png_size((path.parent / name).read_bytes())
        assert 600 < width < 2500 and 200 < height < 2500
    embedded = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", path.read_text(encoding="utf-8"))
    assert len(embedded) == len(names)
    for data in embedded:
        assert max(png_size(base64.b64decode(data))) < 2500


def test_every_part_is_written_and_shown(tmp_path):
    name = "<b>Bag</b>"
    results = results_of(with_everything(made_up(classes=(name, "Coat", "Dress"))))
    page = Page(write_report(results, tmp_path).read_text(encoding="utf-8"))
    written = {file.name for file in tmp_path.iterdir()}
    assert written == {"accuracy_gmacs.png", "report.html", "results.json"}
    for expected in ("GMACs/image", "0.03990", "0.04040", "a table", '"budget_gmacs": 0.04'):
        assert expected in page.text
    assert name in page.text and not page.text.startswith(name)


def test_shares_stand_beside_the_exits(tmp_path):
    results = results_of(made_up())
    page = Page(write_report(results, tmp_path).read_text(encoding="utf-8"))
    for exit_fraction in results.recommended.exit_fractions:
        assert f" {100 * exit_fraction:.1f} %" in page.text


@pytest.mark.parametrize("missing", ["recommended", "throughput"])
@pytest.mark.parametrize("num_exits", [1, 3])
def test_optional_parts_may_be_missing(tmp_path, missing, num_exits):
    results = results_of(made_up(num_exits) | {missing: None, "groups": {}})
    page = Page(write_report(results, tmp_path).read_text(encoding="utf-8"))
    assert "Images by the exit" not in page.text
    assert summary(results)


def test_of_many_classes_those_are_shown_that_lose_most(tmp_path):
    page = Page(write_report(results_of(made_up(2, [f"class {i:04d}" for i in range(1000)])), tmp_path).read_text())
    assert re.findall(r"class \d{4}", page.text) == [f"class {i:04d}" for i in range(20)]


def test_names_are_escaped(tmp_path):
    name = "<script>alert(\"$x_1$ & 'é' 花\")</script>"
    results = made_up(classes=(name, "$\\frac{", "${title}\n"))
    results["checkpoint"] = results["model"]["name"] = results["recommended"]["rule"] = name
    markup = write_report(results_of(results), tmp_path).read_text(encoding="utf-8")
    page = Page(markup)
    assert "<script" not in markup
    assert name in page.text and "$\\frac{" in page.text and "${title}" in page.text


def test_a_failed_write_leaves_the_earlier_report(tmp_path, monkeypatch):
    path = write_report(results_of(made_up()), tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(Path, "write_bytes", full_disk_after(2, Path.write_bytes))
    with pytest.raises(ConfigError, match="choose another folder"):
        write_report(results_of(made_up() | {"date": "2026-01-31"}), tmp_path)
    assert path.is_file() and {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def full_disk_after(count, write):
    """`write`, for so many files; then the disk is full."""
    left = iter(range(count))

    def write_bytes(path, content):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    return write_bytes


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is a file; choose another folder"):
        write_report(results_of(made_up()), tmp_path / "file")


def test_headline_of_the_good_case():
    results = made_up()
    cost = 100 * results["recommended"]["cost_fraction"]
    assert headline(results_of(results)) == (
        f"Stopping early keeps 74.0 % accuracy (last exit: 74.2 %) at {cost:.1f} % of the cost, and runs 1.61 times as "
        "many images per second (measured)."
    )
    assert "not measured" in headline(results_of(results | {"throughput": None}))


@pytest.mark.parametrize(
    ("speed_up", "says", "never"),
    [(0.7, "but is slower: 0.70 times", "and runs"), (1.01, "but is no faster: 1.01 times", "and runs")],
)
def test_headline_admits_that_it_is_not_faster(tmp_path, speed_up, says, never):
    results = made_up()
    results["throughput"]["speed_up"] = speed_up
    results = results_of(results)
    assert says in headline(results) and never not in headline(results)
    assert says in Page(write_report(results, tmp_path).read_text(encoding="utf-8")).text


def test_headline_admits_losses():
    results = made_up()
    results["recommended"] |= {"accuracy": 70.0, "cost_fraction": 1.0}
    said = headline(results_of(results))
    assert said.startswith("Stopping early loses 4.2 points of accuracy (70.0 %; last exit: 74.2 %) at 100.0 % of the ")
    assert "saves nothing" in said and "keeps" not in said

    results = made_up()
    results["anytime_accuracy"][0] = 80.0
    assert headline(results_of(results)).endswith("Exit 1 alone is as good or better: 80.0 % at 16.0 % of the cost.")
    results = made_up()
    results["anytime_accuracy"][1] = 80.0
    assert headline(results_of(results)).endswith("The last exit is not the best one: exit 2 alone reaches 80.0 %.")


def test_headline_without_early_exits():
    assert "nothing stops early" in headline(results_of(made_up(1)))
    assert "no thresholds were chosen" in headline(results_of(made_up() | {"recommended": None}))


def test_summary_has_the_facts():
    results = with_everything(made_up())
    results["recommended"]["thresholds"] = [0.8125, NEVER, ALWAYS]
    lines = summary(results_of(results)).splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["exit", "tokens", "GMACs/image", "accuracy"],
        ["1", "10", "0.01230", "61.25", "%"],
        ["2", "37", "0.03075", "67.75", "%"],
        ["3", "82", "0.07687", "74.25", "%"],
    ]
    text = "\n".join(lines[4:])
    for expected in ("0.812 / never / all", "cheapest within 0.5 points", "73.95 %", "1,000", "1,613", "1.61", "1.85"):
        assert expected in text
    for expected in ("1 images of val", "0.03990"):
        assert expected in text


def test_the_recommended_setting_is_marked_and_shown_once(tmp_path):
    results = made_up()
    page = Page(write_report(results_of(results), tmp_path).read_text(encoding="utf-8"))
    assert page.text.count("1,613") == 1 and page.text.count("early exits: 0.600") == 1


def test_needs_no_mindspore():
    code = "import sys, dvt.report; sys.exit('mindspore' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0
