"""Do easy images leave early? In Fashion-MNIST "scale" the difficulty is known: small items need fine tokens.

Paper, figure "easy and hard": what leaves at the first exit looks easy.
"""

import numpy as np

from dvt.early_exit import assign_exits
from experiments import figures
from experiments.analysis import budgets_between, frontier_of, measured
from experiments.claim import Claim, Result, Runs, Timings, table
from experiments.runs import Run

RECIPE = "baseline"
BUDGET_SHARE = 0.3  # of the way from the first exit's cost to the last one's


def _compute(runs: Runs, timings: Timings) -> Result:
    exits = [_exits_taken(run) for run in runs[RECIPE]]
    sizes = [int(size) for size in np.unique(runs[RECIPE][0].item_size)]
    rows, bars = [], []
    for size in sizes:
        shares, accuracy, cost = [], [], []
        for run, taken in zip(runs[RECIPE], exits, strict=True):
            here = run.item_size == size
            shares.append(100 * np.bincount(taken[here], minlength=len(run.gmacs)) / here.sum())
            accuracy.append(100 * run.val.correct[taken, np.arange(len(taken))][here].mean())
            cost.append(1000 * run.gmacs[taken[here]].mean())
        shares = np.asarray(shares)  # (seeds, K)
        rows.append([f"{size} px", *(measured(each, 1) for each in shares.T), measured(accuracy), measured(cost)])
        bars.append({"label": f"{size} px", "shares": shares.mean(axis=0).tolist()})
    columns = ["item", *(f"leave at exit {k + 1} (%)" for k in range(shares.shape[1])), "accuracy (%)"]
    title = f"Exits taken at a budget {BUDGET_SHARE:.0%} of the way from the first exit's cost to the last one's"
    tables = [
        table(title, [*columns, "M multiply-adds per image"], rows),
        table("Accuracy of each exit on items of each size (%)", ["item", *_exit_names(shares)], _by_size(runs, sizes)),
    ]
    return {"tables": tables, "figure": bars}


def _exits_taken(run: Run) -> np.ndarray:
    """(n,) exit of every test image, with the most accurate thresholds within the budget."""
    frontier = frontier_of(run)
    budget = budgets_between(run.gmacs[0], run.gmacs[-1], [BUDGET_SHARE])[0]
    return assign_exits(run.val.scores["confidence"], frontier.thresholds[frontier.within(budget)])


def _exit_names(shares: np.ndarray) -> list[str]:
    return [f"exit {k + 1}" for k in range(shares.shape[1])]


def _by_size(runs: Runs, sizes: list[int]) -> list[list]:
    accuracy = [
        [100 * run.val.correct[:, run.item_size == size].mean(axis=1) for run in runs[RECIPE]] for size in sizes
    ]  # sizes, seeds, (K,)
    return [
        [f"{size} px", *(measured(each) for each in np.asarray(values).T)]
        for size, values in zip(sizes, accuracy, strict=True)
    ]


def _draw(result: Result) -> bytes:
    bars = result["figure"]
    with figures.drawing() as made:
        axes = made.axes[0]
        starts = np.zeros(len(bars))
        for k in range(len(bars[0]["shares"])):
            shares = np.asarray([bar["shares"][k] for bar in bars])
            axes.barh(
                [bar["label"] for bar in bars], shares, left=starts, color=figures.colour(k), label=f"exit {k + 1}"
            )
            for place, (start, share) in enumerate(zip(starts, shares, strict=True)):
                if share >= 6:
                    axes.text(start + share / 2, place, f"{share:.0f}", ha="center", va="center", color="white")
            starts += shares
        axes.set(xlim=(0, 100), xlabel="share of the test images (%)", ylabel="side of the item")
        axes.grid(False)
        made.figure.legend(loc="outside upper center", ncols=len(bars[0]["shares"]))
    return made.data


CLAIM = Claim("item_size", "Easy images leave early", (RECIPE,), _compute, _draw)
