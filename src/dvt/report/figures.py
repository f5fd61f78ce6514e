"""The figure of the report: PNG bytes from results; colours and fonts of all figures.

It is drawn about as wide as a phone's window (`WIDTH` inches), so that its text stays readable there. An exit has
the same colour in every figure and table (`exit_colour`).
"""

import io
from contextlib import AbstractContextManager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dvt.report.results import Results

# Okabe and Ito's palette, told apart with any common colour blindness; vermilion is kept for what is wrong.
EXIT_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442")
PUBLISHED_COLOUR = "#8C6BB1"

FIGURE = "accuracy_gmacs.png"
WIDTH = 5.2  # inches
DOTS_PER_INCH = 160
INK, MUTED, GRID = "#1c2024", "#6b7280", "#e3e6ea"  # of what is not an exit


def exit_colour(exit_index: int) -> str:
    """The colour of one exit, as #rrggbb; colours repeat after six exits."""
    return EXIT_COLOURS[exit_index % len(EXIT_COLOURS)]


def draw(results: Results) -> bytes:
    """PNG of accuracy against cost: sweep, single exits, recommended setting."""
    with style():
        figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
        _accuracy_against_gmacs(figure.add_subplot(), results)
        return png(figure)


def _accuracy_against_gmacs(axes: Axes, results: Results) -> None:
    axes.margins(x=0.1, y=0.16)
    axes.set(xlabel="average cost of an image (GMACs)", ylabel="accuracy (%)")
    gmacs, accuracy = results.cumulative_gmacs, results.anytime_accuracy
    points = sorted(zip(results.sweep.expected_gmacs, results.sweep.accuracy, strict=True))
    axes.plot(*zip(*points, strict=True), "-o", color=MUTED, ms=2.5, lw=1.1, label="early exits, published sweep")
    if frontier := results.frontier:
        points = sorted(zip(frontier.expected_gmacs, frontier.accuracy, strict=True))
        axes.plot(*zip(*points, strict=True), "-", color=INK, lw=1.6, label="early exits, optimised")
    if published := results.published:
        axes.plot(published.gmacs, published.accuracy, "--x", color=PUBLISHED_COLOUR, lw=1.2, label=published.label)
    axes.plot(gmacs, accuracy, ":", color=MUTED, lw=1, zorder=1)
    for k, (x, y) in enumerate(zip(gmacs, accuracy, strict=True)):
        label = "one exit for all images" if k == 0 else None
        axes.plot(x, y, "D", color=exit_colour(k), ms=8, mec="white", ls="none", label=label, zorder=3)
        # Beside the point, where the sweep is above it; the last one has no room there.
        place, side = ((-2, -17), "center") if k == len(gmacs) - 1 else ((7, -13), "left")
        axes.annotate(f"exit {k + 1}", (x, y), place, textcoords="offset points", ha=side, fontsize=9.5)
    if chosen := results.recommended:
        star = {"color": INK, "mec": "white", "ms": 16, "ls": "none", "zorder": 5}
        axes.plot(chosen.expected_gmacs, chosen.accuracy, "*", label="recommended", **star)
    axes.set_xlim(0, 1.1 * max(max(line.get_xdata()) for line in axes.get_lines()))  # costs are compared as ratios
    axes.locator_params(axis="x", nbins=6)
    axes.legend(loc="best")


def style() -> AbstractContextManager[None]:
    """Context in which figures are drawn: fonts and colours."""
    colours = {
        INK: ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"),
        MUTED: ("axes.edgecolor", "xtick.color", "ytick.color"),
        GRID: ("grid.color", "legend.edgecolor"),
    }
    return matplotlib.rc_context(
        {
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],
            "font.size": 10.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "legend.fontsize": 9,
            "legend.frameon": True,
            "legend.framealpha": 0.85,
            **{key: colour for colour, keys in colours.items() for key in keys},
        }
    )


def png(figure: Figure) -> bytes:
    """The figure as a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()
