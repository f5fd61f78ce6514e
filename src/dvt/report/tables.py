"""The tables of the report page, as HTML; nothing where there are no rows. What comes from data is escaped here."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from dvt.report.figures import exit_colour
from dvt.report.results import Results
from dvt.report.words import number, percent, share, speed, threshold_list

MOST_CLASSES = 20  # rows of the table of classes; results.json has all
GROUP_UNITS = {"item_size": " px"}
FACTS = {"memory_gib": "memory (GiB)", "image_size": "image size (pixels)"}  # with their units


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
    """Tokens, cost and accuracy of every exit, and the share of the images that leave there."""
    chosen = results.recommended
    rows = [
        [exit_name(k), f"{grid} × {grid} + 1", number(gmacs), percent(accuracy)]
        + ([share(chosen.exit_fractions[k])] if chosen else [])
        for k, (grid, gmacs, accuracy) in enumerate(results.exits)
    ]
    heads = ["exit", "tokens", "GMACs per image", "accuracy", *(["leave there"] if chosen else [])]
    caption = "Exits. Tokens: grid and class token. GMACs include the exits before; accuracy: every image taken there."
    return table(caption, heads, rows)


def groups(results: Results) -> str:
    """Where images leave, by what the data set knows of them besides the class."""
    rows = [
        [
            text(f"{name.replace('_', ' ')} {value}{GROUP_UNITS.get(name, '')}"),
            f"{group.count:,}",
            percent(group.accuracy),
        ]
        + [share(fraction) for fraction in group.exit_fractions]
        for name, values in results.groups.items()
        for value, group in values.items()
    ]
    heads = ["", "images", "accuracy", *(f"leave at {exit_name(k)}" for k in range(results.num_exits))]
    return table("Where images leave, with the recommended thresholds.", heads, rows)


def classes(results: Results) -> str:
    """The classes that pay most for leaving early: the average of a certificate can hide one."""
    drops = results.recommended.class_drops[:MOST_CLASSES] if results.recommended else []
    rows = [
        [
            text(results.class_names[each.label]),
            f"{each.images:,}",
            percent(each.accuracy),
            f"{each.drop:+.2f}",
            f"{each.low:+.2f} to {each.high:+.2f}",
        ]
        for each in drops
    ]
    caption = "What classes lose against the last exit, in points, the largest first; each interval holds with 95 %."
    return table(caption, ["class", "images", "accuracy", "loses", "interval"], rows)


def throughput(results: Results) -> str:
    """Measured images/s of all exits and with the recommended thresholds, and the ratio that GMACs promise."""
    if not ((measured := results.throughput) and (chosen := results.recommended)):
        return ""
    rows = [
        [
            "all exits on every image",
            percent(results.anytime_accuracy[-1]),
            number(results.cumulative_gmacs[-1]),
            speed(measured.all_exits_images_per_second),
            *("1.00", "1.00"),
        ],
        [
            f'early exits: <span class="exit">{threshold_list(chosen.thresholds)}</span>',
            percent(chosen.accuracy),
            number(chosen.expected_gmacs),
            speed(measured.adaptive_images_per_second),
            *(f"{measured.speed_up:.2f}", f"{measured.gmac_ratio:.2f}"),
        ],
    ]
    heads = ["thresholds", "accuracy", "GMACs per image", "images/s, measured", "times as fast, measured", "by GMACs"]
    rounds = "1 round" if measured.rounds == 1 else f"{measured.rounds} rounds"
    return table(f"Speed: {measured.num_images:,} images in batches of {measured.batch_size}, {rounds}.", heads, rows)
