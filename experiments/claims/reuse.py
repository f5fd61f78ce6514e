"""What do feature reuse and relation reuse add?

Paper, table "ablation of reuse" (T2T-ViT-12 on ImageNet): 70.3 / 73.5 / 76.7 % without reuse and 69.0 / 75.7 / 80.0 %
with both, at the three exits.
"""

from dvt.report.figures import MUTED
from experiments import figures
from experiments.analysis import measured, point
from experiments.claim import Claim, Result, Runs, Timings, table

SETTINGS = {"no_reuse": "none", "features_only": "features", "relations_only": "relations", "baseline": "both"}
PUBLISHED = {"none": (70.3, 73.5, 76.7), "both": (69.0, 75.7, 80.0)}
"""Paper's accuracies at the three exits, in percent."""


def _compute(runs: Runs, timings: Timings) -> Result:
    rows, lines = [], []
    for name, label in SETTINGS.items():
        exits = range(len(runs[name][0].gmacs))
        accuracies = [measured([run.val.accuracy[k] for run in runs[name]]) for k in exits]
        gains = [
            measured([a.val.accuracy[k] - b.val.accuracy[k] for a, b in zip(runs[name], runs["no_reuse"], strict=True)])
            for k in exits
        ]
        published = " / ".join(f"{value:.1f}" for value in PUBLISHED[label]) if label in PUBLISHED else ""
        costs = " / ".join(f"{1000 * cost:.2f}" for cost in runs[name][0].gmacs)
        rows.append([label, *accuracies, *(gains[1:] if name != "no_reuse" else ["", ""]), costs, published])
        lines.append({"label": label, "points": [point(runs[name], k) for k in exits]})
    columns = ["reuse", "exit 1 (%)", "exit 2 (%)", "exit 3 (%)", "exit 2 gains (points)", "exit 3 gains (points)"]
    columns += ["M multiply-adds up to each exit", "paper, ImageNet (%)"]
    return {"tables": [table("Accuracy of each exit, taken by every image", columns, rows)], "figure": lines}


def _draw(result: Result) -> bytes:
    with figures.drawing(panels=2) as made:
        for place, line in enumerate(result["figure"]):
            points, shade = line["points"], figures.colour(place)
            exits = [k + 1 + 0.05 * (place - 1.5) for k in range(len(points))]  # side by side, so that bars can be read
            means, stds = ([each[key] for each in points] for key in ("mean", "std"))
            made.axes[0].errorbar(exits, means, stds, fmt="-o", color=shade, label=line["label"], capsize=3)
            figures.with_bars(made.axes[1], points, "-o", shade, line["label"])
        made.axes[0].set(xlabel="exit", ylabel="test accuracy (%)", xticks=range(1, 1 + len(points)))
        made.axes[0].set_title("same epochs", loc="left", fontsize=10, color=MUTED)
        made.axes[0].legend(title="reuse")
        figures.cost_axes(made.axes[1], "")
        made.axes[1].set_title("against cost", loc="left", fontsize=10, color=MUTED)
    return made.data


CLAIM = Claim("reuse", "What reuse adds", tuple(SETTINGS), _compute, _draw)
