"""The tables of the report page, as HTML; nothing where there are no rows. What comes from data is escaped here.

Axis letter: K exits.
"""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from dvt.report.figures import exit_colour
from dvt.report.results import Group, Results
from dvt.report.words import number, percent, share, speed, threshold_list

MOST_CLASSES = 20  # the class table shows all of so many, else the best and the worst `EXTREME_CLASSES`
EXTREME_CLASSES = 10
FACTS = {"memory_gib": "memory (GiB)", "image_size": "image size (pixels)"}  # with their units
GROUP_UNITS = {"item_size": " px"}
ROOM = 0.07  # share of a bar in which there is room for a number


def text(value: Any) -> str:
    """`value` as text that is safe in HTML, attributes included."""
    return html.escape(str(value), quote=True)


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
        names = sorted(shown, key=lambda name: -shown[name].accuracy)
        caption = f"The {EXTREME_CLASSES} best and worst of {len(shown)} classes (results.json has all)"
        shown = {name: shown[name] for name in names[:EXTREME_CLASSES] + names[-EXTREME_CLASSES:]}
    return _share_table(caption, results.num_exits, shown)


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
        rows.append(
            [
                f'{name}<span class="exit">{text(threshold_list(setting.thresholds))}</span>',
                percent(setting.accuracy),
                number(setting.expected_gmacs),
                speed(setting.images_per_second),
                f"{setting.speed_up:.2f}",
                f"{setting.gmac_ratio:.2f}",
                share(setting.moving_fraction),
            ]
        )
    heads = ["thresholds", "accuracy", "GMACs per image", "images/s, measured", "times as fast, measured", "by GMACs"]
    heads.append("of the time, gathering and scattering")
    rounds = "1 round" if measured.rounds == 1 else f"{measured.rounds} rounds"
    return table(f"Speed: {measured.num_images:,} images in batches of {measured.batch_size}, {rounds}.", heads, rows)


def budget(results: Results) -> str:
    """The budget asked for beside what is used: on the calibration images, and on these."""
    use = results.recommended and results.recommended.budget
    if not use:
        return ""
    amounts = [use.asked, use.calibration, use.held_out]
    if use.kind == "images_per_second" and results.throughput:
        amounts.append(results.throughput.adaptive_images_per_second)
    names = ("asked for", "on the calibration images", "on these held-out images", "measured while running")
    rows = [[name, number(amount)] for name, amount in zip(names, amounts, strict=False)]
    return table(f"Budget, in {use.unit}.", ["", use.unit], rows)


def searches(results: Results) -> str:
    """The published sweep against the optimised thresholds, at the same budgets."""
    rows = [
        [
            number(each.budget_gmacs),
            *(f"{percent(p.accuracy)} ({number(p.expected_gmacs)})" for p in (each.published, each.optimised)),
            f"{each.optimised.accuracy - each.published.accuracy:+.2f}",
            f"{each.optimised.calibration_accuracy - each.published.calibration_accuracy:+.2f}",
        ]
        for each in results.searches
    ]
    heads = ["budget, GMACs", "published sweep (GMACs used)", "optimised (GMACs used)", "gain, points", "calibration"]
    return table("Thresholds chosen on the calibration images at the same budgets, tried on these.", heads, rows)


def rules(results: Results) -> str:
    """Accuracy of each exit rule at a few budgets."""
    found = [(row.rule, {point.budget_gmacs: point.accuracy for point in row.points if point}) for row in results.rules]
    budgets = sorted(set().union(*(accuracy for _, accuracy in found)))
    rows = [[text(rule), *(percent(accuracy.get(each)) for each in budgets)] for rule, accuracy in found]
    heads = ["rule", *(f"{number(each)} GMACs" for each in budgets)]
    return table("Exit rules: accuracy on these images at a budget, thresholds of the published sweep.", heads, rows)


def calibration(results: Results) -> str:
    """Expected calibration error per exit, before and, where it was used, after temperature scaling."""
    heads, rows = ["exit", "expected calibration error"], []
    for k, row in enumerate(results.reliability):
        rows.append([exit_name(k), share(row.expected_calibration_error)])
        if row.temperature is not None:
            heads[2:] = ["temperature", "error at it"]
            rows[-1] += [number(row.temperature), share(row.scaled_expected_calibration_error)]
    caption = "Expected calibration error: how far confidence and accuracy are apart, averaged over the images."
    return table(caption, heads, rows)
