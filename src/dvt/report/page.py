"""The HTML of the report page.

Self-contained: figures are embedded, nothing is loaded from elsewhere, and everything that comes from data is escaped.
Axis letters: K exits.
"""

import io
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import Any

from PIL import Image

from dvt.report.figures import exit_colour, share_bars
from dvt.report.html import columns, data_uri, details, exit_name, facts_table, section, stack
from dvt.report.pictures import ClassExtremes, Example
from dvt.report.tables import (
    budget_table,
    calibration_table,
    class_table,
    exit_table,
    group_tables,
    rules_table,
    searches_table,
    throughput_table,
)
from dvt.report.words import early_exit_speed, exit_rows, number, percent, share, speed, text, threshold_list

EXAMPLE_SIDE = 192  # larger example images are made this small, in pixels

_MODES = {1: "with the thresholds stored in the checkpoint", 2: "with thresholds found on calibration images"}

_UNITS_NOTE = (
    "GMACs are billions of multiply-adds per image, computed from the model's shapes (papers often write GFLOPs for "
    "them); an image that leaves at an exit has cost that exit and all before it. Images/s are measured on the machine "
    "named below, with images really leaving early."
)
_CAPTIONS = {
    "accuracy_gmacs.png": "Accuracy against the average cost of an image. Diamonds: every image taken at one exit.",
    "accuracy_speed.png": "Accuracy against measured speed: medians of the rounds. Square: all exits run on every "
    "image. Bars behind points: slowest to fastest round.",
    "exit_share.png": "Where images leave, with the recommended thresholds.",
    "reliability.png": "Reliability: of the images with some confidence, the share that is right. On the dashed line "
    "confidence can be believed; below it the exit is too sure of itself.",
    "attention.png": "What the class token of each exit's last block attends to, averaged over its heads: brighter is "
    "more. A frame marks the exit that the image took.",
}


def page(
    results: dict[str, Any],
    headline: str,
    figures: dict[str, tuple[bytes, bytes]],
    examples: Sequence[Example],
    extremes: Sequence[ClassExtremes] = (),
) -> str:
    """The whole page; `results` must have been checked, `figures` are PNGs for light and dark windows by file name."""
    chosen = results["recommended"]
    lead = f'<p class="note">{_UNITS_NOTE}</p>'
    if chosen and len(results["cumulative_gmacs"]) > 1:
        lead = (
            "<p>An image leaves at the first exit whose confidence reaches its threshold: "
            f"{text(threshold_list(chosen['thresholds']))}. Chosen: {text(chosen['rule'])}.</p>\n{lead}"
        )
    sections = [
        _figures(results, figures),
        _budget(results),
        _tables(results),
        _calibration(results, figures),
        _examples(examples, len(results["cumulative_gmacs"]), chosen),
        _extremes(extremes),
        _attention(results, figures),
        _facts(results),
    ]
    template = Template(resources.files("dvt.report").joinpath("template.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=text(f"{results['model']['name']} on {results['dataset']}: early exits"),
        kicker=text(
            f"Dynamic Vision Transformer {results['model']['name']} on {results['dataset']}, "
            f"{results['num_images']:,} images, {results['date']}"
        ),
        headline=text(headline).replace(" %", "&nbsp;%"),
        lead=lead,
        sections="\n".join(section for section in sections if section),
    )


def _figures(results: dict[str, Any], pngs: dict[str, tuple[bytes, bytes]]) -> str:
    names = [name for name in ("accuracy_gmacs.png", "accuracy_speed.png", "exit_share.png") if name in pngs]
    figures = [_figure(name, pngs[name], _alternatives(results)[name]) for name in names]
    return section(
        "Accuracy, cost and speed", columns([*figures, stack([exit_table(results), *group_tables(results)])])
    )


def _figure(name: str, pngs: tuple[bytes, bytes], alternative: str) -> str:
    light, dark = map(data_uri, pngs)
    return (
        f'<figure><picture><source srcset="{dark}" media="(prefers-color-scheme: dark)">'
        f'<img src="{light}" alt="{text(alternative)}"></picture>'
        f"<figcaption>{_CAPTIONS[name]}</figcaption></figure>"
    )


def _alternatives(results: dict[str, Any]) -> dict[str, str]:
    """What the figures show, in words, for those who cannot see them."""
    exits = "; ".join(
        f"exit {k + 1} {percent(accuracy)} at {number(gmacs)} GMACs"
        for k, (_, gmacs, accuracy) in enumerate(exit_rows(results))
    )
    texts = {"accuracy_gmacs.png": f"Chart of accuracy in percent against GMACs per image. Single exits: {exits}."}
    chosen, measured = results["recommended"], results["throughput"]
    if chosen:
        texts["accuracy_gmacs.png"] += (
            f" Recommended: {percent(chosen['accuracy'])} at {number(chosen['expected_gmacs'])} GMACs."
        )
        texts["exit_share.png"] = "Stacked bars of the share of images that leave at each exit. " + "; ".join(
            f"{label}: {', '.join(share(f) for f in fractions)}" for _, label, fractions in share_bars(results)
        )
    if measured:
        texts["accuracy_speed.png"] = (
            "Chart of accuracy in percent against measured images per second. All exits on every image: "
            f"{percent(results['anytime_accuracy'][-1])} at {speed(measured['all_exits_images_per_second'])}; "
            f"early exits {early_exit_speed(results)}, in images per second."
        )
    return texts


def _budget(results: dict[str, Any]) -> str:
    parts = [
        budget_table(results) if (results["recommended"] or {}).get("budget") else "",
        searches_table(results["searches"]) if results["searches"] else "",
        rules_table(results["rules"]) if results["rules"] else "",
    ]
    parts = [part for part in parts if part]
    return section("Budget, thresholds and exit rules", stack(parts)) if parts else ""


def _tables(results: dict[str, Any]) -> str:
    parts = [throughput_table(results)] if results["throughput"] else []
    if results["per_class"]:
        parts.append(class_table(results["per_class"], len(results["cumulative_gmacs"])))
    return section("Speed and classes", "\n".join(parts)) if parts else ""


def _calibration(results: dict[str, Any], pngs: dict[str, tuple[bytes, bytes]]) -> str:
    if "reliability.png" not in pngs:
        return ""
    errors = "; ".join(
        f"exit {k + 1} {share(row['expected_calibration_error'])}" for k, row in enumerate(results["reliability"])
    )
    alternative = f"Chart of accuracy against confidence per exit. Expected calibration errors: {errors}."
    figure = _figure("reliability.png", pngs["reliability.png"], alternative)
    return section("How far confidence can be believed", columns([figure, calibration_table(results["reliability"])]))


def _examples(examples: Sequence[Example], num_exits: int, chosen: dict[str, Any] | None) -> str:
    if not examples:
        return ""
    parts = [
        '<p class="note">Class, and the confidence at the exit taken; ✗ and an outline mark wrong ones, with the class '
        "predicted instead. These few say nothing about shares or accuracy.</p>"
    ]
    for k in range(num_exits):
        taken = f": {share(chosen['exit_fractions'][k])} of all images" if chosen else ""
        items = "\n".join(_example(example) for example in examples if example.exit_index == k)
        shown = f'<ul class="examples">\n{items}\n</ul>' if items else "<p>None to show.</p>"
        parts.append(f"<h3>{exit_name(k)}{taken}</h3>\n{shown}")
    return section("Images by the exit they took", "\n".join(parts))


def _example(example: Example) -> str:
    image = Image.fromarray(example.image)
    image.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    verdict = f"✗ {text(example.predicted)}" if example.wrong else "✓"
    words = f"wrongly predicted as {example.predicted}" if example.wrong else "predicted rightly"
    alternative = f"{example.label}, {words}, left at exit {example.exit_index + 1}"
    mark = ' class="wrong"' if example.wrong else ""
    return (
        f'<li><figure{mark} style="border-top-color:{exit_colour(example.exit_index)}">'
        f'<img src="{data_uri(buffer.getvalue())}" alt="{text(alternative)}">'
        f"<figcaption>{text(example.label)}<br>{verdict} {example.confidence:.2f}</figcaption></figure></li>"
    )


def _extremes(rows: Sequence[ClassExtremes]) -> str:
    if not rows:
        return ""
    parts = [
        '<p class="note">Of each class the images that leave first and most surely, and those that go furthest and '
        "were least sure at the first exit. The coloured edge is the exit taken.</p>"
    ]
    for row in rows:
        halves = [
            f'<div><p class="note">{title}</p><ul class="examples">{"".join(map(_example, images))}</ul></div>'
            for title, images in (("easiest", row.easiest), ("hardest", row.hardest))
        ]
        parts.append(f"<h3>{text(row.name)}</h3>\n{columns(halves)}")
    return section("Easiest and hardest images", "\n".join(parts))


def _attention(results: dict[str, Any], pngs: dict[str, tuple[bytes, bytes]]) -> str:
    if "attention.png" not in pngs:
        return ""
    grids = ", ".join(f"{grid} x {grid}" for grid in results["model"]["grid_sizes"])
    alternative = f"Images, each with one map per exit of the class token's attention over grids of {grids}."
    figure = _figure("attention.png", pngs["attention.png"], alternative).replace(
        "<figure>", '<figure class="wide">', 1
    )
    return section("What the class token attends to", figure)


def _facts(results: dict[str, Any]) -> str:
    run = {
        "checkpoint": results["checkpoint"],
        "data set": f"{results['dataset']}, {results['num_images']:,} images, {len(results['class_names'])} classes",
        **{
            f"unreadable images of {name}": f"{count:,}, left out" for name, count in results["images_left_out"].items()
        },
        "evaluated": f"{results['date']}, {_MODES.get(results['mode'], 'mode ' + str(results['mode']))}",
    }
    if results["published"]:
        run["published curve"] = results["published"]["source"]
    left = stack([facts_table("Run", run), facts_table("Machine", results["machine"])])
    parts = [columns([left, facts_table("Model", results["model"])])]
    if results["config"]:
        tables = [facts_table(name, values) for name, values in results["config"].items() if isinstance(values, dict)]
        others = {key: value for key, value in results["config"].items() if not isinstance(value, dict)}
        parts.append(details("Configuration of the evaluation", columns([*tables, facts_table("run", others)])))
    return section("Run, machine and model", "\n".join(parts))
