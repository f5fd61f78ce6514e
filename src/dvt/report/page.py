"""The files of a report: `report.html`, which is `template.html` filled, its figure as PNG, and `results.json`.

The page is self-contained: the figure is embedded, nothing is loaded from elsewhere, what comes from data is escaped.
In the template `$name` is a value; what stands in `<!-- if name -->` to `<!-- end -->` is left out where it is empty.
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
from dvt.report.figures import FIGURE, draw
from dvt.report.results import Results
from dvt.report.tables import text
from dvt.report.words import budget_use, headline, restricted, threshold_list
from dvt.safe_files import explained, replacing

PAGE = "report.html"
NUMBERS = "results.json"
MODES = {1: "with the thresholds stored in the checkpoint", 2: "with thresholds found on calibration images"}


@work_begun()
def write_report(results: Results, folder: Path) -> Path:
    """Writes `results.json`, the figure and `report.html` into `folder` and returns the path of the page.

    No file takes its place before all are written. Raises ConfigError for a folder that cannot be written.
    """
    figure, folder = draw(results), Path(folder)
    files = {PAGE: page(results, figure).encode(), NUMBERS: results.to_json().encode(), FIGURE: figure}
    with explained(folder, ConfigError):
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as moved_at_the_end:  # in reverse order
            for name, content in files.items():
                moved_at_the_end.enter_context(replacing(folder / name)).write_bytes(content)
    return folder / PAGE


def page(results: Results, figure: bytes) -> str:
    """The whole page with its figure, a PNG."""
    name = f"{results.model['name']} on {results.dataset}"
    early = results.recommended if results.num_exits > 1 else None
    values = {
        "title": text(f"{name}: early exits"),
        "kicker": text(f"Dynamic Vision Transformer {name}, {results.num_images:,} images, {results.date}"),
        "headline": text(headline(results)).replace(" %", "&nbsp;%"),
        "thresholds": text(threshold_list(early.thresholds)) if early else "",
        "reason": text(early.rule) if early else "",
        "budget": text(budget_use(early.budget)) if early and early.budget else "",
        "figure": f"data:image/png;base64,{base64.b64encode(figure).decode()}",
        "exits": tables.exits(results),
        "groups": tables.groups(results),
        "speed": tables.throughput(results) + tables.classes(results),
        "run": tables.facts("Run", _run(results)),
        "machine": tables.facts("Machine", results.machine),
        "model": tables.facts("Model", results.model),
        "config": text(json.dumps(results.config, indent=2, ensure_ascii=False)) if results.config else "",
    }
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
