"""The files of a report: `report.html`, which is `template.html` filled, its figures as PNG, and `results.json`.

The page is self-contained: figures are embedded, nothing is loaded from elsewhere, and what comes from data is escaped.
In the template stands `$name` for a value, and `<!-- if name -->` to `<!-- end -->` around what is left out where that
value is empty.
"""

import base64
import json
import re
from contextlib import ExitStack
from importlib import resources
from pathlib import Path
from string import Template

from dvt.errors import ConfigError, work_begun
from dvt.report import tables
from dvt.report.figures import DARK, FIGURES, draw_all
from dvt.report.results import Results
from dvt.report.tables import text
from dvt.report.words import budget_use, calibration_errors, headline, restricted, threshold_list
from dvt.safe_files import explained, replacing

PAGE = "report.html"
NUMBERS = "results.json"
OF_EARLIER_VERSIONS = ("accuracy_speed.png", "exit_share.png", "attention.png", "examples.png", "extremes.png")
MODES = {1: "with the thresholds stored in the checkpoint", 2: "with thresholds found on calibration images"}


@work_begun()
def write_report(results: Results, folder: Path) -> Path:
    """Writes `results.json`, the figures and `report.html` into `folder` and returns the path of the page.

    No file takes its place before all are written, and the page comes last; figures that only an earlier report has are
    removed. Raises ConfigError for a folder that cannot be written.
    """
    figures, folder = draw_all(results), Path(folder)
    html = page(results, figures, draw_all(results, DARK))
    files = {PAGE: html.encode(), NUMBERS: results.to_json().encode(), **figures}
    with explained(folder, ConfigError):
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as moved_at_the_end:  # in reverse order
            for name, content in files.items():
                moved_at_the_end.enter_context(replacing(folder / name)).write_bytes(content)
        for name in {*FIGURES, *OF_EARLIER_VERSIONS} - set(files):
            (folder / name).unlink(missing_ok=True)
    return folder / PAGE


def page(results: Results, light: dict[str, bytes], dark: dict[str, bytes]) -> str:
    """The whole page; PNGs by file name, for light and for dark windows."""
    name = f"{results.model['name']} on {results.dataset}"
    early = results.recommended if results.num_exits > 1 else None
    values = {
        "title": text(f"{name}: early exits"),
        "kicker": text(f"Dynamic Vision Transformer {name}, {results.num_images:,} images, {results.date}"),
        "headline": text(headline(results)).replace(" %", "&nbsp;%"),
        "thresholds": text(threshold_list(early.thresholds)) if early else "",
        "reason": text(early.rule) if early else "",
        "budget": text(budget_use(early.budget)) if early and early.budget else "",
        "exits": tables.exits(results),
        "groups": tables.groups(results),
        "speed": tables.throughput(results) + tables.class_drops(results) + tables.classes(results),
        "errors": calibration_errors(results),
        "run": tables.facts("Run", _run(results)),
        "machine": tables.facts("Machine", results.machine),
        "model": tables.facts("Model", results.model),
        "config": text(json.dumps(results.config, indent=2, ensure_ascii=False)) if results.config else "",
    }
    for figure in FIGURES:
        key = figure.removesuffix(".png")
        for shade, drawn in (("", light), ("_dark", dark)):
            content = base64.b64encode(drawn.get(figure, b"")).decode()
            values[key + shade] = content and f"data:image/png;base64,{content}"
    template = resources.files("dvt.report").joinpath("template.html").read_text(encoding="utf-8")
    optional = re.compile(r"<!-- if (\w+) -->\n(.*?)<!-- end -->\n", re.DOTALL)
    return Template(optional.sub(lambda part: part[2] if values[part[1]] else "", template)).substitute(values)


def _run(results: Results) -> dict[str, str]:
    run = {
        "checkpoint": results.checkpoint,
        "data set": f"{results.dataset}, {results.num_images:,} images, {len(results.class_names)} classes",
        **({"classes": restricted(results)} if results.classes_present else {}),
        **{f"unreadable images of {split}": f"{count:,}, left out" for split, count in results.images_left_out.items()},
        "evaluated": f"{results.date}, {MODES.get(results.mode, f'mode {results.mode}')}",
    }
    return run | {"published curve": results.published.source} if results.published else run
