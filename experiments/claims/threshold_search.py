"""The published sweep of thresholds against a search of all of them at the same budgets (`dvt.early_exit.search`)."""

import numpy as np

from dvt.early_exit.budgets import Costs, at_budgets
from experiments import figures
from experiments.analysis import measured, spread
from experiments.claim import Claim, Result, Runs, Timings, table

RECIPE = "baseline"
SEARCHES = ("published", "optimised")


def _compute(runs: Runs, timings: Timings) -> Result:
    by_seed = []
    for run in runs[RECIPE]:
        rows = (at_budgets(run.calibration, run.val, Costs(run.gmacs), "confidence", search) for search in SEARCHES)
        pairs = [pair for pair in zip(*rows, strict=True) if all(pair)]
        by_seed.append({pair[0].budget_gmacs: dict(zip(SEARCHES, pair, strict=True)) for pair in pairs})
    budgets = sorted(set.intersection(*map(set, by_seed)))

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
