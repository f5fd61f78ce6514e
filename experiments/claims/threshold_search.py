"""The published sweep of thresholds against a search of all of them at the same budgets (`dvt.early_exit.search`)."""

import numpy as np

from dvt.early_exit.budgets import Costs, compare_searches
from experiments import figures
from experiments.analysis import measured, spread
from experiments.claim import Claim, Result, Runs, Timings, table

RECIPE = "baseline"
SEARCHES = ("published", "optimised")


def _compute(runs: Runs, timings: Timings) -> Result:
    compared = [compare_searches(run.calibration, run.val, Costs(run.gmacs), "confidence") for run in runs[RECIPE]]
    common = set.intersection(*({row.budget_gmacs for row in rows} for rows in compared))
    budgets = sorted(common)
    by_seed = [
        {row.budget_gmacs: {"published": row.published, "optimised": row.optimised} for row in rows}
        for rows in compared
    ]

    def values(search: str, key: str) -> np.ndarray:  # (seeds, budgets)
        return np.asarray([[getattr(rows[budget][search], key) for budget in budgets] for rows in by_seed])

    test = {search: values(search, "accuracy") for search in SEARCHES}
    calibration = {search: values(search, "calibration_accuracy") for search in SEARCHES}
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
