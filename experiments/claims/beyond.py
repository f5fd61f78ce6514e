"""What the paper does not do: distillation, weights of the losses, the first exit first, shared blocks, averaged exits.

Averaging needs no training of its own: it is taken of the runs of other recipes.
"""

import numpy as np

from dvt.report.figures import INK
from experiments import figures
from experiments.analysis import accuracy_within, budgets_between, measured
from experiments.claim import Claim, Result, Runs, Timings, table
from experiments.recipes import RECIPES
from experiments.runs import Run

BASELINE = "baseline"
TRAINED = ("distillation", "early_weights", "late_weights", "coarse_first", "shared_blocks")
AVERAGED = (BASELINE, "distillation", "coarse_first", "no_reuse")
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # budgets at which stopping early matters


def _compute(runs: Runs, timings: Timings) -> Result:
    variants = {RECIPES[BASELINE].about: runs[BASELINE]}
    variants |= {RECIPES[name].about: runs[name] for name in TRAINED}
    variants |= {_averaged_name(name): [run.averaged for run in runs[name]] for name in AVERAGED}
    before = [_within_budgets(run) for run in runs[BASELINE]]
    rows, bars = [], []
    for about, found in variants.items():
        within = [_within_budgets(run) for run in found]
        gains = [after - plain for after, plain in zip(within, before, strict=True)]
        first = found is runs[BASELINE]
        accuracies = [measured([run.val.accuracy[k] for run in found]) for k in range(len(found[0].gmacs))]
        record = found[0].record
        rows.append([about, f"{record['parameters']:,}", f"{record['training_gmacs']:.0f}", *accuracies])
        rows[-1] += [measured(within), "" if first else measured(gains)]
        if not first:
            bars.append({"label": about, **measured(gains), "values": [float(gain) for gain in gains]})
    columns = ["variant", "parameters", "training (GMACs)", "exit 1 (%)", "exit 2 (%)", "exit 3 (%)"]
    columns += ["mean within budgets (%)", "gain over the paper's recipe (points)"]
    shares = ", ".join(f"{share:.0%}" for share in SHARES)
    title = f"Budgets are {shares} of the way from the first exit's cost to the last one's"
    return {"tables": [table(title, columns, rows)], "figure": bars}


def _averaged_name(recipe: str) -> str:
    return "averaged exits" if recipe == BASELINE else f"{RECIPES[recipe].about}, averaged exits"


def _within_budgets(run: Run) -> float:
    """Accuracy within the budgets, their mean, in percent."""
    return float(accuracy_within(run, budgets_between(run.gmacs[0], run.gmacs[-1], SHARES)).mean())


def _draw(result: Result) -> bytes:
    bars = sorted(result["figure"], key=lambda bar: bar["mean"])
    with figures.drawing() as made:
        axes = made.axes[0]
        made.figure.set_size_inches(1.25 * figures.WIDTH, figures.HEIGHT)
        places = np.arange(len(bars))
        stds = [bar["std"] or 0.0 for bar in bars]
        axes.barh(places, [bar["mean"] for bar in bars], xerr=stds, color=figures.colour(0), alpha=0.5, capsize=3)
        for place, bar in zip(places, bars, strict=True):  # one point per seed
            axes.plot(bar["values"], [place] * len(bar["values"]), "o", color=figures.colour(0), ms=4)
        axes.axvline(0, color=INK, lw=1)
        axes.set_yticks(places, [bar["label"] for bar in bars])
        axes.set(xlabel="gain within budgets (points)")
        axes.grid(axis="y", visible=False)
    return made.data


CLAIM = Claim("beyond", "Going beyond the paper", (BASELINE, *TRAINED, "no_reuse"), _compute, _draw)
