"""The HTML of the report page: `template.html`, filled.

Self-contained: figures are embedded, nothing is loaded from elsewhere, and everything that comes from data is escaped.
In the template stands `$name` for a value, and `<!-- if name -->` to `<!-- end -->` around what is left out where that
value is empty.
"""

import base64
import json
import re
from collections.abc import Mapping
from importlib import resources
from string import Template

from dvt.report import tables
from dvt.report.results import Results
from dvt.report.tables import text
from dvt.report.words import early_exit_speed, headline, number, percent, share, speed, threshold_list

MODES = {1: "with the thresholds stored in the checkpoint", 2: "with thresholds found on calibration images"}


def page(results: Results, figures: Mapping[str, tuple[bytes, bytes]]) -> str:
    """The whole page; `figures` are PNGs by file name, for light and for dark windows."""
    name = f"{results.model['name']} on {results.dataset}"
    early = results.recommended if results.num_exits > 1 else None
    config = json.dumps(results.config, indent=2, ensure_ascii=False) if results.config else ""
    values = {
        "title": text(f"{name}: early exits"),
        "kicker": text(f"Dynamic Vision Transformer {name}, {results.num_images:,} images, {results.date}"),
        "headline": text(headline(results)).replace(" %", "&nbsp;%"),
        "thresholds": text(threshold_list(early.thresholds)) if early else "",
        "reason": text(early.rule) if early else "",
        "exits": tables.exits(results),
        "groups": tables.groups(results),
        "budget": tables.budget(results) + tables.searches(results) + tables.rules(results),
        "speed": tables.throughput(results) + tables.classes(results),
        "calibration": tables.calibration(results),
        "run": tables.facts("Run", _run(results)),
        "machine": tables.facts("Machine", results.machine),
        "model": tables.facts("Model", results.model),
        "config": text(config),
    }
    for figure, words in _alternatives(results).items():
        light, dark = map(_data_uri, figures.get(f"{figure}.png", (b"", b"")))
        values |= {figure: light, f"{figure}_dark": dark, f"{figure}_words": text(words)}
    template = resources.files("dvt.report").joinpath("template.html").read_text(encoding="utf-8")
    optional = re.compile(r"<!-- if (\w+) -->\n(.*?)<!-- end -->\n", re.DOTALL)
    return Template(optional.sub(lambda part: part[2] if values[part[1]] else "", template)).substitute(values)


def _alternatives(results: Results) -> dict[str, str]:
    """What each figure shows, in words, for those who cannot see it."""
    chosen, measured = results.recommended, results.throughput
    exits = "; ".join(
        f"exit {k + 1} {percent(accuracy)} at {number(gmacs)} GMACs"
        for k, (_, gmacs, accuracy) in enumerate(results.exits)
    )
    errors = "; ".join(
        f"exit {k + 1} {share(row.expected_calibration_error)}" for k, row in enumerate(results.reliability)
    )
    words = {
        "accuracy_gmacs": f"Chart of accuracy in percent against GMACs per image. Single exits: {exits}.",
        "accuracy_speed": "",
        "reliability": f"Chart of accuracy against confidence per exit. Expected calibration errors: {errors}.",
    }
    if chosen:
        words["accuracy_gmacs"] += f" Recommended: {percent(chosen.accuracy)} at {number(chosen.expected_gmacs)} GMACs."
    if measured:
        words["accuracy_speed"] = (
            "Chart of accuracy in percent against measured images per second. All exits on every image: "
            f"{percent(results.anytime_accuracy[-1])} at {speed(measured.all_exits_images_per_second)}; "
            f"early exits {early_exit_speed(results, measured)}, in images per second."
        )
    return words


def _run(results: Results) -> dict[str, str]:
    run = {
        "checkpoint": results.checkpoint,
        "data set": f"{results.dataset}, {results.num_images:,} images, {len(results.class_names)} classes",
        **{f"unreadable images of {split}": f"{count:,}, left out" for split, count in results.images_left_out.items()},
        "evaluated": f"{results.date}, {MODES.get(results.mode, f'mode {results.mode}')}",
    }
    return run | {"published curve": results.published.source} if results.published else run


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode() if png else ""
