"""The published sweep of thresholds against a search of all of them at the same budgets (`dvt.early_exit.search`)."""

import numpy as np

from experiments import figures
from experiments.analysis import accuracies_within, budgets_between, measured, spread
from experiments.claim import Claim, Result, Runs, Timings, table

RECIPE = "baseline"
SEARCHES = ("published", "optimised")


def _compute(runs: Runs, timings: Timings) -> Result:
    budgets = budgets_between(runs[RECIPE][0].gmacs[0], runs[RECIPE][0].gmacs[-1])
    found = {  # each (2, seeds, budgets)
        search: np.stack([accuracies_within(run, budgets, search=search) for run in runs[RECIPE]], axis=1)
        for search in SEARCHES
    }
    affordable = np.isfinite(np.stack(list(found.values()))).all(axis=(0, 1, 2))  # (budgets,)
    budgets = budgets[affordable].tolist()
    test, calibration = ({search: each[k][:, affordable] for search, each in found.items()} for k in range(2))
    rows = [
        [
            f"{1000 * budget:.2f}",
            *(measured(calibration[search][:, place]) for search in SEARCHES),
            *(measured(test[search][:, place]) for search in SEARCHES),
            measured((test["optimised"] - test["published"])[:, place]),
        ]
        for place, budget in enumerate(budgets)
    ]
    gain = (test["optimised"] - test["published"]).mean(axis=1)
    rows.append(["all budgets", "", "", "", "", measured(gain)])
    columns = [
        "budget (M multiply-adds)",
        "calibration: sweep (%)",
        "optimised (%)",
        "test: sweep (%)",
        "optimised (%)",
    ]
    lines = [
        {
            "label": search,
            "gmacs": budgets,
            "mean": test[search].mean(axis=0).tolist(),
            "std": spread(test[search]).tolist(),
        }
        for search in SEARCHES
    ]
    tables = [table("Accuracy within a budget", [*columns, "difference on test (points)"], rows)]
    return {"tables": tables, "figure": lines}


def _draw(result: Result) -> bytes:
    with figures.drawing() as made:
        for place, line in enumerate(result["figure"]):
            figures.band(made.axes[0], line, figures.colour(place), line["label"], "-o")
        figures.cost_axes(made.axes[0])
    return made.data


CLAIM = Claim("threshold_search", "How thresholds are found", (RECIPE,), _compute, _draw)
