"""The HTML of the report page, and the wording of numbers it shares with the console table.

Self-contained: figures are embedded, nothing is loaded from elsewhere, and everything that comes from data is escaped.
Axis letters: K exits.
"""

import base64
import html
import io
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import TYPE_CHECKING, Any

from PIL import Image

from dvt.report_figures import exit_colour, group_title, share_bars

if TYPE_CHECKING:
    from dvt.report import Example

NEVER = 1e8  # thresholds from here on stop no image, those at or below its negative stop every one
EXAMPLE_SIDE = 192  # larger example images are made this small, in pixels
MOST_CLASSES = 20  # the class table shows all of so many, else the best and the worst `EXTREME_CLASSES`
EXTREME_CLASSES = 10

_MODES = {1: "with the thresholds stored in the checkpoint", 2: "with thresholds found on calibration images"}
_UNITS = {"memory_gib": "memory (GiB)", "image_size": "image size (pixels)"}

_UNITS_NOTE = (
    "GMACs are billions of multiply-adds per image, computed from the model's shapes (papers often write GFLOPs for "
    "them); an image that leaves at an exit has cost that exit and all before it. Images/s are measured on the machine "
    "named below, with images really leaving early."
)


def page(
    results: dict[str, Any], headline: str, figures: dict[str, tuple[bytes, bytes]], examples: Sequence["Example"]
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
        _tables(results),
        _examples(examples, len(results["cumulative_gmacs"]), chosen),
        _facts(results),
    ]
    template = Template(resources.files("dvt").joinpath("report_template.html").read_text(encoding="utf-8"))
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
    titles = {
        "accuracy_gmacs.png": "Accuracy against the average cost of an image. Diamonds: every image taken at one exit.",
        "accuracy_speed.png": "Accuracy against measured speed. Square: all exits run on every image.",
        "exit_share.png": "Where images leave, with the recommended thresholds.",
    }
    alternatives = _alternatives(results)
    figures = []
    for name in pngs:
        light, dark = map(_data_uri, pngs[name])
        figures.append(
            f'<figure><picture><source srcset="{dark}" media="(prefers-color-scheme: dark)">'
            f'<img src="{light}" alt="{text(alternatives[name])}"></picture>'
            f"<figcaption>{titles[name]}</figcaption></figure>"
        )
    return _section(
        "Accuracy, cost and speed", _columns([*figures, _stack([_exit_table(results), *_group_tables(results)])])
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


def _exit_table(results: dict[str, Any]) -> str:
    grids = results["model"]["grid_sizes"]
    rows = [
        [_exit_name(k), f"{grids[k]} × {grids[k]} + 1", number(gmacs), percent(accuracy)]
        for k, (_, gmacs, accuracy) in enumerate(exit_rows(results))
    ]
    caption = "Exits, each taken by every image. Tokens: grid and class token; GMACs include the exits before."
    return _table(caption, ["exit", "tokens", "GMACs per image", "accuracy"], rows)


def _group_tables(results: dict[str, Any]) -> list[str]:
    tables = []
    for name, values in results["groups"].items():
        title = text(group_title(name))
        rows = [_share_row(value, row) for value, row in values.items()]
        heads = [title, *_share_heads(len(results["cumulative_gmacs"]))]
        tables.append(_table(f"By {title}, with the recommended thresholds.", heads, rows))
    return tables


def _tables(results: dict[str, Any]) -> str:
    parts = [_throughput_table(results)] if results["throughput"] else []
    if results["per_class"]:
        parts.append(_class_table(results["per_class"], len(results["cumulative_gmacs"])))
    return _section("Speed and classes", "\n".join(parts)) if parts else ""


def _throughput_table(results: dict[str, Any]) -> str:
    measured, chosen, full = results["throughput"], results["recommended"], results["cumulative_gmacs"][-1]
    base = measured["all_exits_images_per_second"]
    rows = [
        [
            "all exits on every image",
            percent(results["anytime_accuracy"][-1]),
            number(full),
            speed(base),
            "1.00",
            "1.00",
        ]
    ]
    settings = other_settings(results)
    if chosen:
        recommended = chosen | {"images_per_second": measured["adaptive_images_per_second"], "name": "recommended: "}
        settings.insert(0, recommended)
    for setting in settings:
        cost, measured_speed = setting["expected_gmacs"], setting["images_per_second"]
        name = f'{setting.get("name", "")}<span class="exit">{text(threshold_list(setting["thresholds"]))}</span>'
        ratios = [ratio(measured_speed, base), ratio(full, cost)]
        rows.append([name, percent(setting["accuracy"]), number(cost), speed(measured_speed), *ratios])
    heads = ["thresholds", "accuracy", "GMACs per image", "images/s, measured", "times as fast, measured", "by GMACs"]
    rounds = "1 round" if measured["rounds"] == 1 else f"{measured['rounds']} rounds"
    caption = f"Speed: {measured['num_images']:,} images in {batches(measured)}, {rounds}."
    return _table(caption, heads, rows)


def batches(measured: dict[str, Any]) -> str:
    """What ran at once when images/s were measured."""
    gathered = measured.get("gathered_batches", 1)
    more = f", leaving early {gathered} of them per call" if gathered > 1 else ""
    return f"batches of {measured['batch_size']}{more}"


def _class_table(per_class: dict[str, Any], num_exits: int) -> str:
    names, caption = list(per_class), "Classes, with the recommended thresholds."
    if len(names) > MOST_CLASSES:
        names = [name for name in names if per_class[name]["accuracy"] is not None]
        names.sort(key=lambda name: -per_class[name]["accuracy"])
        names = names[:EXTREME_CLASSES] + names[-EXTREME_CLASSES:]
        caption = (
            f"The {EXTREME_CLASSES} best and the {EXTREME_CLASSES} worst of {len(per_class)} classes, with the "
            "recommended thresholds; all of them are in results.json."
        )
    rows = [_share_row(name, per_class[name]) for name in names]
    return _table(caption, ["class", *_share_heads(num_exits)], rows)


def _share_heads(num_exits: int) -> list[str]:
    return ["images", "accuracy", *(f"leave at {_exit_name(k)}" for k in range(num_exits))]


def _share_row(name: str, row: dict[str, Any]) -> list[str]:
    return [text(name), f"{row['count']:,}", percent(row["accuracy"]), *map(share, row["exit_fractions"])]


def _examples(examples: Sequence["Example"], num_exits: int, chosen: dict[str, Any] | None) -> str:
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
        parts.append(f"<h3>{_exit_name(k)}{taken}</h3>\n{shown}")
    return _section("Images by the exit they took", "\n".join(parts))


def _example(example: "Example") -> str:
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


def _facts(results: dict[str, Any]) -> str:
    run = {
        "checkpoint": results["checkpoint"],
        "data set": f"{results['dataset']}, {results['num_images']:,} images, {len(results['class_names'])} classes",
        "evaluated": f"{results['date']}, {_MODES.get(results['mode'], 'mode ' + str(results['mode']))}",
    }
    left = _stack([_facts_table("Run", run), _facts_table("Machine", results["machine"])])
    return _section("Run, machine and model", _columns([left, _facts_table("Model", results["model"])]))


# ------------------------------------------------------------------------------------------------- pieces of the page


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>"


def _columns(parts: Sequence[str]) -> str:
    return '<div class="columns">\n' + "\n".join(parts) + "\n</div>"


def _stack(parts: Sequence[str]) -> str:
    return "<div>\n" + "\n".join(parts) + "\n</div>"


def _table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """`rows` are HTML already; their first cell is a heading."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heads)
    body = "\n".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    return (
        f'<div class="card" role="region" aria-label="{caption}" tabindex="0"><table><caption>{caption}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _facts_table(caption: str, facts: dict[str, Any]) -> str:
    names = {key: text(_UNITS.get(key, str(key).replace("_", " "))) for key in facts}
    rows = "\n".join(
        f'<tr><th scope="row">{names[key]}</th><td>{text(_plain(value))}</td></tr>' for key, value in facts.items()
    )
    return (
        f'<div class="card"><table class="facts"><caption>{caption}</caption>\n<tbody>\n{rows}\n</tbody></table></div>'
    )


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(f"({_plain(v)})" if isinstance(v, list) else _plain(v) for v in value) or "–"
    return str(value)


def _exit_name(exit_index: int) -> str:
    chip = f'<span class="chip" style="background:{exit_colour(exit_index)}"></span>'
    return f'<span class="exit">{chip}exit&nbsp;{exit_index + 1}</span>'


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


# ------------------------------------------------------------------------------------------------- wording of numbers


def text(value: Any) -> str:
    """`value` as text that is safe in HTML, attributes included."""
    return html.escape(str(value), quote=True)


def exit_rows(results: dict[str, Any]) -> list[tuple[int, float, float]]:
    """Per exit: tokens (class token included), cumulative GMACs, accuracy in percent over all images."""
    tokens = [grid**2 + 1 for grid in results["model"]["grid_sizes"]]
    return list(zip(tokens, results["cumulative_gmacs"], results["anytime_accuracy"], strict=True))


def other_settings(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The timed settings beside the recommended one, which may be among those in the results."""
    known = results["recommended"]["thresholds"] if results["recommended"] else None
    return [setting for setting in results["throughput"]["settings"] if setting["thresholds"] != known]


def early_exit_speed(results: dict[str, Any]) -> str:
    """Images/s with the recommended thresholds; without any, from the slowest to the fastest setting timed."""
    if results["recommended"]:
        return speed(results["throughput"]["adaptive_images_per_second"])
    rates = sorted(setting["images_per_second"] for setting in results["throughput"]["settings"])
    return f"{speed(rates[0])} to {speed(rates[-1])}, by thresholds" if rates else "–"


def number(value: float | None) -> str:
    """Four significant digits, as for GMACs."""
    return "–" if value is None else f"{value:#.4g}".rstrip(".")


def percent(value: float | None) -> str:
    """A value in percent, two decimals."""
    return "–" if value is None else f"{value:.2f} %"


def share(value: float | None) -> str:
    """A fraction as percent, one decimal."""
    return "–" if value is None else f"{100 * value:.1f} %"


def speed(value: float | None) -> str:
    """Images/s, three digits or more."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def ratio(value: float | None, base: float | None) -> str:
    """value / base, two decimals."""
    return f"{value / base:.2f}" if value is not None and base else "–"


def threshold_list(thresholds: Sequence[float]) -> str:
    """Thresholds of exits 1..K in words: three decimals, "never" where none leaves, "all" where every image does."""
    words = ("–" if t is None else "never" if t >= NEVER else "all" if t <= -NEVER else f"{t:.3f}" for t in thresholds)
    return " / ".join(words)
