"""Does one model that stops early beat separately trained single ViTs of the same family?

Paper, figure "accuracy against FLOPs": DVT lies above all static models of its family. Those are trained for as many
epochs as DVT; here they are also given as much training, all together, as the dynamic model.
"""

import numpy as np

from dvt.report.figures import LIGHT
from experiments import figures
from experiments.analysis import accuracy_within, budget_curve, curve_of, matched, measured, point
from experiments.claim import Cell, Claim, Result, Runs, Timings, table
from experiments.recipes import RECIPES
from experiments.runs import Run

AT_EQUAL_COST = (
    "static model",
    "M multiply-adds",
    "accuracy (%)",
    "dynamic at this cost (%)",
    "difference (points)",
)
"""Columns of what `_at_equal_cost` gives."""


def claim(
    name: str,
    title: str,
    dynamic: str,
    statics: tuple[str, ...],
    same_epochs: str | None = None,
    trial: bool = False,
) -> Claim:
    """The claim on one dynamic recipe and its static ones, which have its training budget all together.

    `same_epochs` is the dynamic recipe without reuse: its exits have nothing in common, and each by itself is a static
    model that was trained for as many epochs as the dynamic one.
    """

    def compute(runs: Runs, timings: Timings) -> Result:
        return _compute(runs, timings, dynamic, statics, same_epochs)

    others = () if same_epochs is None else (same_epochs,)
    return Claim(name, title, (dynamic, *statics, *others), compute, _draw, (dynamic, *statics), trial)


def _compute(runs: Runs, timings: Timings, dynamic: str, statics: tuple[str, ...], same_epochs: str | None) -> Result:
    matches, budgets = [], []
    for name in statics:
        pairs = list(zip(runs[dynamic], runs[name], strict=True))
        gmacs = runs[name][0].gmacs[-1]
        theirs = [static.val.accuracy[-1] for _, static in pairs]
        costs = [_matched_cost(run, accuracy) for (run, _), accuracy in zip(pairs, theirs, strict=True)]
        matches.append(
            [
                *_at_equal_cost(RECIPES[name].about, gmacs, theirs, runs[dynamic]),
                measured([1000 * cost for cost in costs]),
                measured([gmacs / cost for cost in costs]),
                f"{np.isfinite(costs).sum()} of {len(costs)}",
            ]
        )
        budgets.append(f"{sum(run.record['training_gmacs'] for run in runs[name]) / len(pairs):.0f}")
    total = sum(run.record["training_gmacs"] for run in runs[dynamic]) / len(runs[dynamic])
    exits = [
        [f"exit {k + 1}", f"{1000 * cost:.2f}", measured([run.val.accuracy[k] for run in runs[dynamic]])]
        for k, cost in enumerate(runs[dynamic][0].gmacs)
    ]
    columns = [*AT_EQUAL_COST, "dynamic: cost of this accuracy (M)", "times cheaper", "reached by"]
    title = "Accuracy at equal cost, and cost at equal accuracy; the same total budget of training"
    tables, figure = [table(title, columns, matches)], _figure(runs, dynamic, statics)
    if same_epochs is not None:
        rows, figure["same_epochs"] = _of_same_epochs(
            runs[same_epochs], [RECIPES[name].about for name in statics], runs[dynamic]
        )
        tables.append(table("The same with static models that were trained for as many epochs", AT_EQUAL_COST, rows))
    tables += [
        table(
            "The exits of the dynamic model, each taken by every image",
            ["exit", "M multiply-adds", "accuracy (%)"],
            exits,
        ),
        table(
            "Training budget of one seed (GMACs of forward passes)",
            ["dynamic", *(RECIPES[name].about for name in statics), "static together"],
            [[f"{total:.0f}", *budgets, f"{sum(map(float, budgets)):.0f}"]],
        ),
    ]
    return {"tables": tables + _speeds(timings, statics), "figure": figure}


def _at_equal_cost(name: str, gmacs: float, theirs: list[float], dynamic: list[Run]) -> list[Cell]:
    """The accuracies of a static model, seed by seed, and those of the dynamic one within the same cost."""
    ours = [accuracy_within(run, [gmacs])[0] for run in dynamic]
    difference = [a - b for a, b in zip(ours, theirs, strict=True)]
    return [name, f"{1000 * gmacs:.2f}", measured(theirs), measured(ours), measured(difference)]


def _of_same_epochs(apart: list[Run], names: list[str], dynamic: list[Run]) -> tuple[list[list[Cell]], list[dict]]:
    """Rows and points of the exits of a model without reuse, each as a model of its own."""
    rows, points = [], []
    for k, (name, gmacs) in enumerate(zip(names, np.diff(apart[0].gmacs, prepend=0.0), strict=True)):
        rows.append(_at_equal_cost(name, gmacs, [run.val.accuracy[k] for run in apart], dynamic))
        points.append({**point(apart, k), "gmacs": float(gmacs), "label": name})
    return rows, points


def _matched_cost(run, accuracy: float) -> float:
    """GMACs of the cheapest point of the curve that reaches the accuracy; NaN if none does."""
    curve = curve_of(run)
    place = matched(curve, accuracy)
    return float("nan") if place is None else float(curve.gmacs[place])


def _speeds(timings: Timings, statics: tuple[str, ...]) -> list[dict]:
    rows = []
    for name in statics:
        found = [row for timing in timings for row in timing["rows"] if row["recipe"] == name]
        if found:
            rows.append(
                [
                    RECIPES[name].about,
                    measured([row["images_per_second"] for row in found], 0),
                    measured([row["dynamic_accuracy"] for row in found]),
                    measured([row["dynamic_images_per_second"] for row in found], 0),
                    measured([row["ratio"] for row in found]),
                ]
            )
    columns = ["static model", "images/s", "dynamic: accuracy (%)", "images/s", "times faster"]
    return [table("Measured speed at matched accuracy", columns, rows)] if rows else []


def _figure(runs: Runs, dynamic: str, statics: tuple[str, ...]) -> Result:
    exits = [point(runs[dynamic], k) for k in range(len(runs[dynamic][0].gmacs))]
    return {
        "dynamic": budget_curve(runs[dynamic]),
        "exits": exits,
        "statics": [{"label": RECIPES[name].about, **point(runs[name])} for name in statics],
    }


def _draw(result: Result) -> bytes:
    data = result["figure"]
    with figures.drawing() as made:
        axes = made.axes[0]
        figures.band(axes, data["dynamic"], figures.colour(0), "dynamic: one model, early exits")
        figures.with_bars(axes, data["exits"], "D", figures.colour(0), "its exits, for every image", mfc="white")
        figures.with_bars(axes, data["statics"], "s", figures.colour(1), "static models, same training budget", ms=7)
        if "same_epochs" in data:
            figures.with_bars(axes, data["same_epochs"], "o", figures.colour(2), "static models, same epochs", ms=7)
        for each in data["statics"]:
            place = (figures.MILLION * each["gmacs"], each["mean"] + (each["std"] or 0.0))
            grid = each["label"].split()[-1]
            look = {"ha": "center", "fontsize": 8.5, "color": LIGHT.muted}
            axes.annotate(grid, place, (0, 6), textcoords="offset points", **look)
        figures.cost_axes(axes)
    return made.data
