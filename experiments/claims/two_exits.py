"""Two exits against three. The paper uses three, and two (7 -> 14) in its table of speeds."""

import numpy as np

from experiments import figures
from experiments.analysis import accuracy_within, budget_curve, budgets_between, measured, point
from experiments.claim import Claim, Result, Runs, Timings, table

THREE, TWO = "baseline", "two_exits"
LABELS = {THREE: "three exits, 3x3, 6x6, 9x9", TWO: "two exits, 3x3, 9x9"}
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


def _compute(runs: Runs, timings: Timings) -> Result:
    gmacs = runs[THREE][0].gmacs
    budgets = budgets_between(gmacs[0], gmacs[-1], SHARES)
    found = {name: np.stack([accuracy_within(run, budgets) for run in runs[name]]) for name in (THREE, TWO)}
    rows = [[LABELS[name], *(measured(each) for each in values.T)] for name, values in found.items()]
    rows.append(["difference", *(measured(each) for each in (found[THREE] - found[TWO]).T)])
    exits = [
        [
            LABELS[name],
            " / ".join(f"{1000 * cost:.2f}" for cost in runs[name][0].gmacs),
            measured([run.val.accuracy[0] for run in runs[name]]),
            measured([run.val.accuracy[-1] for run in runs[name]]),
            f"{runs[name][0].record['training_gmacs']:.0f}",
        ]
        for name in (THREE, TWO)
    ]
    columns = ["model", "M multiply-adds up to each exit", "first exit (%)", "last exit (%)", "training (GMACs)"]
    return {
        "tables": [
            table(
                "Accuracy (%) within a budget (M multiply-adds)", ["model", *(f"{1000 * b:.1f}" for b in budgets)], rows
            ),
            table("Their exits", columns, exits),
        ],
        "figure": [
            {
                "label": LABELS[name],
                "curve": budget_curve(runs[name]),
                "exits": [point(runs[name], k) for k in range(len(runs[name][0].gmacs))],
            }
            for name in (THREE, TWO)
        ],
    }


def _draw(result: Result) -> bytes:
    with figures.drawing() as made:
        for place, line in enumerate(result["figure"]):
            figures.band(made.axes[0], line["curve"], figures.colour(place), line["label"])
            figures.with_bars(made.axes[0], line["exits"], "D", figures.colour(place), "", mfc="white")
        figures.cost_axes(made.axes[0])
    return made.data


CLAIM = Claim("two_exits", "Two exits against three", (THREE, TWO), _compute, _draw)
