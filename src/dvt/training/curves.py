"""The picture of a training run: losses, accuracies and learning rate against the epoch. NumPy and matplotlib only."""

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dvt.report.figures import DOTS_PER_INCH, LIGHT, exit_colour

_PANEL = (4.6, 3.5)  # inches
_FEW = 25  # points are marked up to so many
_STYLE = {
    "axes.edgecolor": LIGHT.grid,
    "axes.labelcolor": LIGHT.ink,
    "axes.titlecolor": LIGHT.ink,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LIGHT.grid,
    "text.color": LIGHT.ink,
    "xtick.color": LIGHT.muted,
    "ytick.color": LIGHT.muted,
    "xtick.labelcolor": LIGHT.ink,
    "ytick.labelcolor": LIGHT.ink,
    "legend.framealpha": 0.85,
    "legend.edgecolor": LIGHT.grid,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
}


def draw_curves(rows: Sequence[Mapping[str, float]], title: str = "") -> bytes:
    """PNG of the rows of `metrics.csv`; a panel is drawn for each of the three that the rows have numbers for."""
    panels = [
        ("training loss", re.compile(r"loss_exit_(\d+)")),
        ("validation accuracy (%)", re.compile(r"val_accuracy_exit_(\d+)")),
        ("learning rate", re.compile(r"learning_rate")),
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    present = [(name, [m for m in map(wanted.fullmatch, columns) if m]) for name, wanted in panels]
    present = [(name, matches) for name, matches in present if matches]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_PANEL[0] * max(len(present), 1), _PANEL[1]), layout="constrained")
        for place, (name, matches) in enumerate(present, start=1):
            axes = figure.add_subplot(1, len(present), place, sharex=figure.axes[0] if figure.axes else None)
            axes.set(title=name, xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            for match in matches:
                _line(axes, rows, match[0], int(match[1]) if match.lastindex else None)
            if matches[0].lastindex:
                axes.legend()
            else:
                axes.set_ylim(bottom=0)
                axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:.3g}")
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def _line(axes: Axes, rows: Sequence[Mapping[str, float]], column: str, exit_index: int | None) -> None:
    """One column against the epoch; exits are named with their last value."""
    points = [(row["epoch"], row[column]) for row in rows if column in row]
    colour = LIGHT.ink if exit_index is None else exit_colour(exit_index)
    label = None if exit_index is None else f"exit {exit_index + 1}: {points[-1][1]:#.4g}"
    axes.plot(*zip(*points, strict=True), color=colour, marker="o" if len(points) <= _FEW else None, label=label)
