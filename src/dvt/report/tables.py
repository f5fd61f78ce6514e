"""The tables of the report page, as HTML. Axis letters: K exits."""

from typing import Any

from dvt.report.figures import group_title
from dvt.report.html import exit_name, table
from dvt.report.words import (
    batches,
    exit_rows,
    number,
    other_settings,
    percent,
    ratio,
    share,
    speed,
    text,
    threshold_list,
)

MOST_CLASSES = 20  # the class table shows all of so many, else the best and the worst `EXTREME_CLASSES`
EXTREME_CLASSES = 10


def exit_table(results: dict[str, Any]) -> str:
    """Tokens, cost and accuracy of every exit."""
    grids = results["model"]["grid_sizes"]
    rows = [
        [exit_name(k), f"{grids[k]} × {grids[k]} + 1", number(gmacs), percent(accuracy)]
        for k, (_, gmacs, accuracy) in enumerate(exit_rows(results))
    ]
    caption = "Exits, each taken by every image. Tokens: grid and class token; GMACs include the exits before."
    return table(caption, ["exit", "tokens", "GMACs per image", "accuracy"], rows)


def group_tables(results: dict[str, Any]) -> list[str]:
    """One table per attribute that the data set knows of its images."""
    tables = []
    for name, values in results["groups"].items():
        title = text(group_title(name))
        rows = [_share_row(value, row) for value, row in values.items()]
        heads = [title, *_share_heads(len(results["cumulative_gmacs"]))]
        tables.append(table(f"By {title}, with the recommended thresholds.", heads, rows))
    return tables


def throughput_table(results: dict[str, Any]) -> str:
    """Measured images/s, what moving images between exits took of the time, and the ratio that GMACs promise."""
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
            "–",
        ]
    ]
    settings = other_settings(results)
    if chosen:
        recommended = chosen | {"images_per_second": measured["adaptive_images_per_second"], "name": "recommended: "}
        recommended |= {key: measured.get(key) for key in ("moving_fraction", "gmac_ratio", "speed_up")}
        settings.insert(0, recommended)
    for setting in settings:
        cost, measured_speed = setting["expected_gmacs"], setting["images_per_second"]
        name = f'{setting.get("name", "")}<span class="exit">{text(threshold_list(setting["thresholds"]))}</span>'
        promised = setting.get("gmac_ratio")
        faster = setting.get("speed_up")
        times = ratio(measured_speed, base) if faster is None else f"{faster:.2f}"
        ratios = [times, ratio(full, cost) if promised is None else f"{promised:.2f}"]
        moving = share(setting.get("moving_fraction"))
        rows.append([name, percent(setting["accuracy"]), number(cost), speed(measured_speed), *ratios, moving])
    heads = ["thresholds", "accuracy", "GMACs per image", "images/s, measured", "times as fast, measured", "by GMACs"]
    heads.append("of the time, gathering and scattering")
    rounds = "1 round" if measured["rounds"] == 1 else f"{measured['rounds']} rounds"
    caption = f"Speed: {measured['num_images']:,} images in {batches(measured)}, {rounds}."
    return table(caption, heads, rows)


def class_table(per_class: dict[str, Any], num_exits: int) -> str:
    """Accuracy and exits per class."""
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
    return table(caption, ["class", *_share_heads(num_exits)], rows)


def budget_table(results: dict[str, Any]) -> str:
    """The budget asked for beside what is used: on the calibration images, and on these."""
    budget = results["recommended"]["budget"]
    measured = results["throughput"]
    rows = [
        ["asked for", number(budget["asked"])],
        ["on the calibration images", number(budget["calibration"])],
        ["on these held-out images", number(budget["held_out"])],
    ]
    if budget["kind"] == "images_per_second" and measured:
        rows.append(["measured while running", number(measured["adaptive_images_per_second"])])
    return table(f"Budget, in {budget['unit']}.", ["", budget["unit"]], rows)


def searches_table(rows: list[dict[str, Any]]) -> str:
    """The published sweep against the optimised thresholds, at the same budgets."""
    cells = []
    for row in rows:
        one, other = row["published"], row["optimised"]
        gain = other["accuracy"] - one["accuracy"]
        on_calibration = other["calibration_accuracy"] - one["calibration_accuracy"]
        cells.append(
            [
                number(row["budget_gmacs"]),
                f"{percent(one['accuracy'])} ({number(one['expected_gmacs'])})",
                f"{percent(other['accuracy'])} ({number(other['expected_gmacs'])})",
                f"{gain:+.2f}",
                f"{on_calibration:+.2f}",
            ]
        )
    heads = ["budget, GMACs", "published sweep (GMACs used)", "optimised (GMACs used)", "gain, points", "calibration"]
    return table("Thresholds chosen on the calibration images at the same budgets, tried on these.", heads, cells)


def rules_table(rules: list[dict[str, Any]]) -> str:
    """Accuracy of each exit rule at a few budgets."""
    budgets = sorted({point["budget_gmacs"] for rule in rules for point in rule["points"] if point})
    cells = []
    for rule in rules:
        found = {point["budget_gmacs"]: point for point in rule["points"] if point}
        accuracies = [percent(found[budget]["accuracy"]) if budget in found else "–" for budget in budgets]
        cells.append([text(rule["rule"]), *accuracies])
    heads = ["rule", *(f"{number(budget)} GMACs" for budget in budgets)]
    return table("Exit rules: accuracy on these images at a budget, thresholds of the published sweep.", heads, cells)


def calibration_table(rows: list[dict[str, Any]]) -> str:
    """Expected calibration error per exit, before and, where it was used, after temperature scaling."""
    scaled = any("temperature" in row for row in rows)
    heads = ["exit", "expected calibration error"] + (["temperature", "error at it"] if scaled else [])
    cells = []
    for k, row in enumerate(rows):
        cells.append([exit_name(k), share(row["expected_calibration_error"])])
        if scaled:
            cells[-1] += [number(row["temperature"]), share(row["scaled_expected_calibration_error"])]
    return table(
        "Expected calibration error: how far confidence and accuracy are apart, averaged over the images.", heads, cells
    )


def _share_heads(num_exits: int) -> list[str]:
    return ["images", "accuracy", *(f"leave at {exit_name(k)}" for k in range(num_exits))]


def _share_row(name: str, row: dict[str, Any]) -> list[str]:
    return [text(name), f"{row['count']:,}", percent(row["accuracy"]), *map(share, row["exit_fractions"])]
