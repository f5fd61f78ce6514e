"""Which score should decide who leaves? Paper, table "exit rule": confidence before entropy before random.

All rules take their thresholds from the published sweep, so that only the rule differs.
"""

import numpy as np

from dvt.early_exit.scores import RULES
from experiments import figures
from experiments.analysis import COMPARED_BUDGETS, accuracies_within, budgets_between, measured, spread
from experiments.claim import Claim, Result, Runs, Timings, table
from experiments.runs import RANDOM

RECIPE = "baseline"


def _compute(runs: Runs, timings: Timings) -> Result:
    gmacs = budgets_between(runs[RECIPE][0].gmacs[0], runs[RECIPE][0].gmacs[-1])
    accuracy = {  # each (seeds, budgets)
        rule: np.stack([accuracies_within(run, gmacs, rule, "published")[0] for run in runs[RECIPE]])
        for rule in (*RULES, RANDOM)
    }
    random = accuracy["random"]
    rows = [
        [
            rule,
            *(measured(values[:, place]) for place in range(values.shape[1])),
            measured((values - random).mean(axis=1)),
        ]
        for rule, values in accuracy.items()
    ]
    columns = ["rule", *(f"{share:.0%}" for share in COMPARED_BUDGETS), "mean gain over random (points)"]
    lines = [
        {"label": rule, "gmacs": gmacs.tolist(), "mean": values.mean(axis=0).tolist(), "std": spread(values).tolist()}
        for rule, values in accuracy.items()
    ]
    title = "Accuracy (%) at budgets between the first exit's cost (0 %) and the last one's (100 %)"
    return {"tables": [table(title, columns, rows)], "figure": lines}


def _draw(result: Result) -> bytes:
    with figures.drawing() as made:
        for place, line in enumerate(result["figure"]):
            figures.band(made.axes[0], line, figures.colour(place), line["label"], "-o" if place == 0 else "-")
        figures.cost_axes(made.axes[0])
    return made.data


CLAIM = Claim("exit_rule", "Which rule decides", (RECIPE,), _compute, _draw)
