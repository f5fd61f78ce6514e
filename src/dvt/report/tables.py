"""The tables of the report page, as HTML. What comes from data is escaped here. Axis letter: K exits."""

import html
from collections.abc import Sequence
from typing import Any

from dvt.early_exit.budgets import BudgetUse, RuleComparison, SearchComparison
from dvt.report.figures import GROUP_UNITS, exit_colour
from dvt.report.results import ExitReliability, Group, Results, Throughput
from dvt.report.words import number, percent, share, speed, threshold_list

MOST_CLASSES = 20  # the class table shows all of so many, else the best and the worst `EXTREME_CLASSES`
EXTREME_CLASSES = 10
_FACTS = {"memory_gib": "memory (GiB)", "image_size": "image size (pixels)"}  # with their units


def text(value: Any) -> str:
    """`value` as text that is safe in HTML, attributes included."""
    return html.escape(str(value), quote=True)


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """`rows` are HTML already; their first cell is a heading."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heads)
    body = "\n".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    return (
        f'<div class="card" role="region" aria-label="{caption}" tabindex="0"><table><caption>{caption}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def facts(caption: str, values: dict[str, Any]) -> str:
    """Names and values of any kind."""
    rows = "\n".join(
        f'<tr><th scope="row">{text(_FACTS.get(key, key.replace("_", " ")))}</th><td>{text(_plain(value))}</td></tr>'
        for key, value in values.items()
    )
    return (
        f'<div class="card"><table class="facts"><caption>{caption}</caption>\n<tbody>\n{rows}\n</tbody></table></div>'
    )


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(f"({_plain(v)})" if isinstance(v, list | tuple) else _plain(v) for v in value) or "–"
    return str(value)


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


def group(name: str, groups: dict[str, Group]) -> str:
    """The values of an attribute that the data set knows of its images."""
    title = text(name.replace("_", " ") + (f" ({GROUP_UNITS[name]})" if name in GROUP_UNITS else ""))
    return _share_table(f"By {title}, with the recommended thresholds.", title, groups)


def classes(per_class: dict[str, Group]) -> str:
    """Accuracy and exits per class."""
    if len(per_class) <= MOST_CLASSES:
        return _share_table("Classes, with the recommended thresholds.", "class", per_class)
    names = sorted(per_class, key=lambda name: -per_class[name].accuracy)
    names = names[:EXTREME_CLASSES] + names[-EXTREME_CLASSES:]
    caption = (
        f"The {EXTREME_CLASSES} best and the {EXTREME_CLASSES} worst of {len(per_class)} classes, with the "
        "recommended thresholds; all of them are in results.json."
    )
    return _share_table(caption, "class", {name: per_class[name] for name in names})


def _share_table(caption: str, head: str, groups: dict[str, Group]) -> str:
    """Groups of images: how many, how accurate, and the share of them that leaves at each exit."""
    num_exits = len(next(iter(groups.values())).exit_fractions)
    heads = [head, "images", "accuracy", *(f"leave at {exit_name(k)}" for k in range(num_exits))]
    rows = [
        [text(name), f"{group.count:,}", percent(group.accuracy), *map(share, group.exit_fractions)]
        for name, group in groups.items()
    ]
    return table(caption, heads, rows)


def throughput(results: Results, measured: Throughput) -> str:
    """Measured images/s, what moving images between exits took of the time, and the ratio that GMACs promise."""
    accuracy, gmacs = results.anytime_accuracy[-1], results.cumulative_gmacs[-1]
    all_exits = speed(measured.all_exits_images_per_second)
    rows = [["all exits on every image", percent(accuracy), number(gmacs), all_exits, "1.00", "1.00", "–"]]
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


def budget(use: BudgetUse, measured: Throughput | None) -> str:
    """The budget asked for beside what is used: on the calibration images, and on these."""
    rows = [
        ["asked for", number(use.asked)],
        ["on the calibration images", number(use.calibration)],
        ["on these held-out images", number(use.held_out)],
    ]
    if use.kind == "images_per_second" and measured:
        rows.append(["measured while running", number(measured.adaptive_images_per_second)])
    return table(f"Budget, in {use.unit}.", ["", use.unit], rows)


def searches(compared: Sequence[SearchComparison]) -> str:
    """The published sweep against the optimised thresholds, at the same budgets."""
    rows = [
        [
            number(each.budget_gmacs),
            *(f"{percent(p.accuracy)} ({number(p.expected_gmacs)})" for p in (each.published, each.optimised)),
            f"{each.optimised.accuracy - each.published.accuracy:+.2f}",
            f"{each.optimised.calibration_accuracy - each.published.calibration_accuracy:+.2f}",
        ]
        for each in compared
    ]
    heads = ["budget, GMACs", "published sweep (GMACs used)", "optimised (GMACs used)", "gain, points", "calibration"]
    return table("Thresholds chosen on the calibration images at the same budgets, tried on these.", heads, rows)


def rules(compared: Sequence[RuleComparison]) -> str:
    """Accuracy of each exit rule at a few budgets."""
    budgets = sorted({point.budget_gmacs for rule in compared for point in rule.points if point})
    rows = []
    for rule in compared:
        accuracy = {point.budget_gmacs: point.accuracy for point in rule.points if point}
        rows.append([text(rule.rule), *(percent(accuracy.get(budget)) for budget in budgets)])
    heads = ["rule", *(f"{number(budget)} GMACs" for budget in budgets)]
    return table("Exit rules: accuracy on these images at a budget, thresholds of the published sweep.", heads, rows)


def calibration(reliability: Sequence[ExitReliability]) -> str:
    """Expected calibration error per exit, before and, where it was used, after temperature scaling."""
    scaled = reliability[0].temperature is not None
    rows = []
    for k, row in enumerate(reliability):
        rows.append([exit_name(k), share(row.expected_calibration_error)])
        if scaled:
            rows[-1] += [number(row.temperature), share(row.scaled_expected_calibration_error)]
    heads = ["exit", "expected calibration error"] + (["temperature", "error at it"] if scaled else [])
    caption = "Expected calibration error: how far confidence and accuracy are apart, averaged over the images."
    return table(caption, heads, rows)
