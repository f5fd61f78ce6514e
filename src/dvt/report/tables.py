"""The tables of the report page, as HTML; nothing where there are no rows. What comes from data is escaped here."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from dvt.report.figures import exit_colour
from dvt.report.results import Group, Results
from dvt.report.words import number, percent, share, speed, threshold_list

MOST_CLASSES = 20  # rows of the table of classes; of more classes, half of the rows are the best and half the worst
FACTS = {"memory_gib": "memory (GiB)", "image_size": "image size (pixels)"}  # with their units
GROUP_UNITS = {"item_size": " px"}
ROOM = 0.07  # share of a bar in which there is room for a number


def text(value: Any) -> str:
    """`value` as text that is safe in HTML, attributes included."""
    return html.escape(str(value))


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """`heads` and `rows` are HTML already; the first cell of a row is its heading."""
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heads)
    body = "\n".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    return (
        f'<div class="card" role="region" aria-label="{caption}" tabindex="0"><table{kind}><caption>{caption}</caption>'
        f"\n{f'<thead><tr>{head}</tr></thead>' if heads else ''}\n<tbody>\n{body}\n</tbody></table></div>"
    )


def facts(caption: str, values: Mapping[str, Any]) -> str:
    """Names and values of any kind; what is no text as JSON."""
    rows = []
    for key, value in values.items():
        name, said = FACTS.get(key, key.replace("_", " ")), value if isinstance(value, str) else json.dumps(value)
        rows.append([text(name), text(said)])
    return table(caption, [], rows, ' class="facts"')


def exit_name(exit_index: int) -> str:
    """ "exit 2" with its colour."""
    chip = f'<span class="chip" style="background:{exit_colour(exit_index)}"></span>'
    return f'<span class="exit">{chip}exit&nbsp;{exit_index + 1}</span>'


def exits(results: Results) -> str:
    """Tokens, cost and accuracy of every exit."""
    rows = [
        [exit_name(k), f"{grid} × {grid} + 1", number(gmacs), percent(accuracy)]
        for k, (grid, gmacs, accuracy) in enumerate(results.exits)
    ]
    caption = "Exits, each taken by every image. Tokens: grid and class token; GMACs include the exits before."
    return table(caption, ["exit", "tokens", "GMACs per image", "accuracy"], rows)


def groups(results: Results) -> str:
    """All images, and the values of what the data set knows of them besides the class."""
    shown = {}
    if chosen := results.recommended:
        shown["all images"] = Group(results.num_images, chosen.accuracy, chosen.exit_fractions)
        for name, values in results.groups.items():
            head, unit = name.replace("_", " "), GROUP_UNITS.get(name, "")
            shown |= {f"{head} {value}{unit}": group for value, group in values.items()}
    return _share_table("Where images leave", results.num_exits, shown)


def classes(results: Results) -> str:
    """Accuracy and exits per class."""
    caption, shown = "Classes", results.per_class
    if len(shown) > MOST_CLASSES:
        names, half = sorted(shown, key=lambda name: -shown[name].accuracy), MOST_CLASSES // 2
        caption = f"The {half} best and worst of {len(shown)} classes (results.json has all)"
        shown = {name: shown[name] for name in names[:half] + names[-half:]}
    return _share_table(caption, results.num_exits, shown)


def class_drops(results: Results) -> str:
    """The classes that pay most for leaving early: the average of a certificate can hide one."""
    drops = results.recommended.class_drops[: MOST_CLASSES // 2] if results.recommended else []
    rows = [
        [text(results.class_names[d.label]), f"{d.images:,}", f"{d.drop:+.2f}", f"{d.low:+.2f} to {d.high:+.2f}"]
        for d in drops
    ]
    caption = "What classes lose against the last exit, in points, the largest first; each interval holds with 95 %."
    return table(caption, ["class", "images", "loses", "interval"], rows)


def _share_table(caption: str, num_exits: int, groups: Mapping[str, Group]) -> str:
    """How many images, how accurate, and the share of them that leaves at each exit, as a bar."""
    rows = [
        [text(name), f"{group.count:,}", percent(group.accuracy), _bar(group.exit_fractions)]
        for name, group in groups.items()
    ]
    heads = ["", "images", "accuracy", f"leave at {', '.join(map(exit_name, range(num_exits)))} (%)"]
    return table(f"{caption}, with the recommended thresholds.", heads, rows)


def _bar(exit_fractions: Sequence[float]) -> str:
    parts = []
    for k, fraction in enumerate(exit_fractions):
        look = f"width:{100 * fraction:.2f}%;background:{exit_colour(k)}"
        shown = f"{100 * fraction:.0f} " if fraction >= ROOM else ""
        parts.append(f'<span style="{look}" title="exit {k + 1}: {share(fraction)}">{shown}</span>')
    return f'<div class="bar">{"".join(parts)}</div>'


def throughput(results: Results) -> str:
    """Measured images/s, what moving images between exits took of the time, and the ratio that GMACs promise."""
    if not (measured := results.throughput):
        return ""
    accuracy, gmacs = percent(results.anytime_accuracy[-1]), number(results.cumulative_gmacs[-1])
    all_exits = speed(measured.all_exits_images_per_second)
    rows = [["all exits on every image", accuracy, gmacs, all_exits, "1.00", "1.00", "–"]]
    for place, setting in enumerate(measured.settings):
        name = "recommended: " if results.recommended and place == 0 else ""
        name += f'<span class="exit">{threshold_list(setting.thresholds)}</span>'
        numbers = [percent(setting.accuracy), number(setting.expected_gmacs), speed(setting.images_per_second)]
        ratios = [f"{setting.speed_up:.2f}", f"{setting.gmac_ratio:.2f}", share(setting.moving_fraction)]
        rows.append([name, *numbers, *ratios])
    heads = ["thresholds", "accuracy", "GMACs per image", "images/s, measured", "times as fast, measured", "by GMACs"]
    heads.append("of the time, gathering and scattering")
    rounds = "1 round" if measured.rounds == 1 else f"{measured.rounds} rounds"
    return table(f"Speed: {measured.num_images:,} images in batches of {measured.batch_size}, {rounds}.", heads, rows)
