"""The HTML of the report page.

Self-contained: figures are embedded, nothing is loaded from elsewhere, and everything that comes from data is escaped.
"""

import base64
import io
from collections.abc import Sequence
from importlib import resources
from string import Template

from PIL import Image

from dvt.report import tables
from dvt.report.figures import exit_colour, share_bars
from dvt.report.pictures import ClassExtremes, Example
from dvt.report.results import Results
from dvt.report.tables import exit_name, text
from dvt.report.words import early_exit_speed, headline, number, percent, share, speed, threshold_list

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

Figures = dict[str, tuple[bytes, bytes]]  # file name -> PNGs for light and for dark windows


def page(
    results: Results, figures: Figures, examples: Sequence[Example] = (), extremes: Sequence[ClassExtremes] = ()
) -> str:
    """The whole page."""
    chosen = results.recommended
    lead = f'<p class="note">{_UNITS_NOTE}</p>'
    if chosen and results.num_exits > 1:
        lead = (
            "<p>An image leaves at the first exit whose confidence reaches its threshold: "
            f"{text(threshold_list(chosen.thresholds))}. Chosen: {text(chosen.rule)}.</p>\n{lead}"
        )
    sections = {
        "Accuracy, cost and speed": _accuracy(results, figures),
        "Budget, thresholds and exit rules": _budget(results),
        "Speed and classes": _speed_and_classes(results),
        "How far confidence can be believed": _calibration(results, figures),
        "Images by the exit they took": _examples(results, examples),
        "Easiest and hardest images": _extremes(extremes),
        "What the class token attends to": _attention(results, figures),
        "Run, machine and model": _facts(results),
    }
    template = Template(resources.files("dvt.report").joinpath("template.html").read_text(encoding="utf-8"))
    name = f"{results.model['name']} on {results.dataset}"
    return template.substitute(
        title=text(f"{name}: early exits"),
        kicker=text(f"Dynamic Vision Transformer {name}, {results.num_images:,} images, {results.date}"),
        headline=text(headline(results)).replace(" %", "&nbsp;%"),
        lead=lead,
        sections="\n".join(
            f"<section>\n<h2>{title}</h2>\n{content}\n</section>" for title, content in sections.items() if content
        ),
    )


# Each section returns its HTML, or nothing where the results have nothing to show.


def _accuracy(results: Results, figures: Figures) -> str:
    names = [name for name in ("accuracy_gmacs.png", "accuracy_speed.png", "exit_share.png") if name in figures]
    drawn = [_figure(name, figures, _alternatives(results)[name]) for name in names]
    by_group = [tables.group(name, groups) for name, groups in results.groups.items()]
    return _columns([*drawn, _stack([tables.exits(results), *by_group])])


def _alternatives(results: Results) -> dict[str, str]:
    """What the figures show, in words, for those who cannot see them."""
    exits = "; ".join(
        f"exit {k + 1} {percent(accuracy)} at {number(gmacs)} GMACs"
        for k, (_, gmacs, accuracy) in enumerate(results.exits)
    )
    texts = {"accuracy_gmacs.png": f"Chart of accuracy in percent against GMACs per image. Single exits: {exits}."}
    if chosen := results.recommended:
        texts["accuracy_gmacs.png"] += (
            f" Recommended: {percent(chosen.accuracy)} at {number(chosen.expected_gmacs)} GMACs."
        )
        texts["exit_share.png"] = "Stacked bars of the share of images that leave at each exit. " + "; ".join(
            f"{label}: {', '.join(map(share, fractions))}" for _, label, fractions in share_bars(results)
        )
    if measured := results.throughput:
        texts["accuracy_speed.png"] = (
            "Chart of accuracy in percent against measured images per second. All exits on every image: "
            f"{percent(results.anytime_accuracy[-1])} at {speed(measured.all_exits_images_per_second)}; "
            f"early exits {early_exit_speed(results, measured)}, in images per second."
        )
    return texts


def _budget(results: Results) -> str:
    parts = []
    if results.recommended and results.recommended.budget:
        parts.append(tables.budget(results.recommended.budget, results.throughput))
    if results.searches:
        parts.append(tables.searches(results.searches))
    if results.rules:
        parts.append(tables.rules(results.rules))
    return _stack(parts) if parts else ""


def _speed_and_classes(results: Results) -> str:
    parts = [tables.throughput(results, results.throughput)] if results.throughput else []
    parts += [tables.classes(results.per_class)] if results.per_class else []
    return "\n".join(parts)


def _calibration(results: Results, figures: Figures) -> str:
    if not results.reliability:
        return ""
    errors = "; ".join(
        f"exit {k + 1} {share(row.expected_calibration_error)}" for k, row in enumerate(results.reliability)
    )
    alternative = f"Chart of accuracy against confidence per exit. Expected calibration errors: {errors}."
    return _columns([_figure("reliability.png", figures, alternative), tables.calibration(results.reliability)])


def _examples(results: Results, examples: Sequence[Example]) -> str:
    if not examples:
        return ""
    parts = [
        '<p class="note">Class, and the confidence at the exit taken; ✗ and an outline mark wrong ones, with the class '
        "predicted instead. These few say nothing about shares or accuracy.</p>"
    ]
    for k in range(results.num_exits):
        taken = f": {share(results.recommended.exit_fractions[k])} of all images" if results.recommended else ""
        items = "\n".join(_example(example) for example in examples if example.exit_index == k)
        shown = f'<ul class="examples">\n{items}\n</ul>' if items else "<p>None to show.</p>"
        parts.append(f"<h3>{exit_name(k)}{taken}</h3>\n{shown}")
    return "\n".join(parts)


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
        parts.append(f"<h3>{text(row.name)}</h3>\n{_columns(halves)}")
    return "\n".join(parts)


def _attention(results: Results, figures: Figures) -> str:
    if "attention.png" not in figures:
        return ""
    grids = ", ".join(f"{grid} x {grid}" for grid in results.model["grid_sizes"])
    alternative = f"Images, each with one map per exit of the class token's attention over grids of {grids}."
    return _figure("attention.png", figures, alternative, ' class="wide"')


def _facts(results: Results) -> str:
    run = {
        "checkpoint": results.checkpoint,
        "data set": f"{results.dataset}, {results.num_images:,} images, {len(results.class_names)} classes",
        **{f"unreadable images of {split}": f"{count:,}, left out" for split, count in results.images_left_out.items()},
        "evaluated": f"{results.date}, {_MODES.get(results.mode, f'mode {results.mode}')}",
    }
    if results.published:
        run["published curve"] = results.published.source
    left = _stack([tables.facts("Run", run), tables.facts("Machine", results.machine)])
    facts = _columns([left, tables.facts("Model", results.model)])
    if not results.config:
        return facts
    sections = [tables.facts(name, keys) for name, keys in results.config.items() if isinstance(keys, dict)]
    others = {key: value for key, value in results.config.items() if not isinstance(value, dict)}
    configuration = _columns([*sections, tables.facts("run", others)])
    return f"{facts}\n<details><summary>Configuration of the evaluation</summary>\n{configuration}\n</details>"


def _figure(name: str, figures: Figures, alternative: str, attributes: str = "") -> str:
    light, dark = map(_data_uri, figures[name])
    return (
        f'<figure{attributes}><picture><source srcset="{dark}" media="(prefers-color-scheme: dark)">'
        f'<img src="{light}" alt="{text(alternative)}"></picture>'
        f"<figcaption>{_CAPTIONS[name]}</figcaption></figure>"
    )


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
        f'<img src="{_data_uri(buffer.getvalue())}" alt="{text(alternative)}">'
        f"<figcaption>{text(example.label)}<br>{verdict} {example.confidence:.2f}</figcaption></figure></li>"
    )


def _data_uri(png: bytes) -> str:
    """The image itself as an address."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _columns(parts: Sequence[str]) -> str:
    """Side by side where there is room."""
    return '<div class="columns">\n' + "\n".join(parts) + "\n</div>"


def _stack(parts: Sequence[str]) -> str:
    """One below the other, as one column."""
    return "<div>\n" + "\n".join(parts) + "\n</div>"
