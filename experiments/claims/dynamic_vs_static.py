"""Does one model that stops early beat separately trained single ViTs of the same family?

Paper, figure "accuracy against FLOPs": DVT lies above all static models of its family. Those are trained for as many
epochs as DVT; here they are also given as much training, all together, as the dynamic model.
"""

from dataclasses import dataclass

import numpy as np

from dvt.report.figures import MUTED
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


@dataclass(frozen=True)
class Rivals:
    """What a claim compares.

    Args:
        dynamic: The recipe of the dynamic model.
        statics: Its static ones, which have its training budget all together.
        as_often: Models of one exit, each trained for at least as many epochs as that exit of the dynamic model: a
            recipe and an exit. Those of a recipe without reuse have nothing in common, so each is a static model.
        at_once: The dynamic model trained as in the paper, for the figure.
    """

    dynamic: str
    statics: tuple[str, ...]
    as_often: tuple[tuple[str, int], ...] = ()
    at_once: str | None = None

    @property
    def recipes(self) -> tuple[str, ...]:
        others = [name for name, _ in self.as_often] + [self.at_once] * (self.at_once is not None)
        return tuple(dict.fromkeys((self.dynamic, *self.statics, *others)))


def claim(name: str, title: str, rivals: Rivals, trial: bool = False) -> Claim:
    """The claim on one dynamic recipe and its static ones."""

    def compute(runs: Runs, timings: Timings) -> Result:
        return _compute(runs, timings, rivals)

    return Claim(name, title, rivals.recipes, compute, _draw, (rivals.dynamic, *rivals.statics), trial)


def _compute(runs: Runs, timings: Timings, rivals: Rivals) -> Result:
    dynamic, statics = rivals.dynamic, rivals.statics
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
    tables, figure = [table(title, columns, matches)], _figure(runs, rivals)
    if rivals.as_often:
        rows, figure["as_often"] = _trained_as_often(runs, rivals)
        title = "The same with static models that see the images at least as often as that exit of the dynamic one"
        tables.append(table(title, AT_EQUAL_COST, rows))
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


def _trained_as_often(runs: Runs, rivals: Rivals) -> tuple[list[list[Cell]], list[dict]]:
    """Rows and points of the models of one exit that `rivals.as_often` names."""
    rows, points = [], []
    for (name, exit_index), static in zip(rivals.as_often, rivals.statics, strict=True):
        apart = runs[name]
        gmacs = np.diff(apart[0].gmacs, prepend=0.0)[exit_index]
        accuracy = [run.val.accuracy[exit_index] for run in apart]
        rows.append(_at_equal_cost(RECIPES[static].about, gmacs, accuracy, runs[rivals.dynamic]))
        points.append({**point(apart, exit_index), "gmacs": float(gmacs), "label": RECIPES[static].about})
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


def _figure(runs: Runs, rivals: Rivals) -> Result:
    dynamic = runs[rivals.dynamic]
    figure = {
        "dynamic": budget_curve(dynamic),
        "exits": [point(dynamic, k) for k in range(len(dynamic[0].gmacs))],
        "statics": [{"label": RECIPES[name].about, **point(runs[name])} for name in rivals.statics],
    }
    return figure if rivals.at_once is None else figure | {"at_once": budget_curve(runs[rivals.at_once])}


def _draw(result: Result) -> bytes:
    data = result["figure"]
    with figures.drawing() as made:
        axes = made.axes[0]
        figures.band(axes, data["dynamic"], figures.colour(0), "dynamic: one model, early exits")
        if "at_once" in data:
            figures.band(axes, data["at_once"], figures.colour(3), "the same, all exits trained at once")
        figures.with_bars(axes, data["exits"], "D", figures.colour(0), "its exits, for every image", mfc="white")
        figures.with_bars(axes, data["statics"], "s", figures.colour(1), "static models, same training budget", ms=7)
        if "as_often" in data:
            figures.with_bars(axes, data["as_often"], "o", figures.colour(2), "static models, trained as often", ms=7)
        for each in data["statics"]:
            place = (figures.MILLION * each["gmacs"], each["mean"] + (each["std"] or 0.0))
            grid = each["label"].split()[-1]
            look = {"ha": "center", "fontsize": 8.5, "color": MUTED}
            axes.annotate(grid, place, (0, 6), textcoords="offset points", **look)
        figures.cost_axes(axes)
    return made.data
