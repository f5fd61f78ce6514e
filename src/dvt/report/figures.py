"""Figures of the report: PNG bytes from results, in a light and a dark theme.

They are drawn about as wide as a phone's window (`WIDTH` inches), so that their text stays readable there. An exit has
the same colour in every figure and table (`exit_colour`).
"""

import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dvt.report.results import Results
from dvt.report.words import share

# Okabe and Ito's palette, told apart with any common colour blindness; vermilion is kept for what is wrong.
EXIT_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442")
PUBLISHED_COLOUR = "#8C6BB1"

FIGURES = ("accuracy_gmacs.png", "reliability.png")
WIDTH = 5.2  # inches
DOTS_PER_INCH = 160


class Theme(NamedTuple):
    """Colours of what is not an exit."""

    background: str
    ink: str
    muted: str
    grid: str


LIGHT = Theme(background="#ffffff", ink="#1c2024", muted="#6b7280", grid="#e3e6ea")
DARK = Theme(background="#1b1f24", ink="#e6e8eb", muted="#9aa2ad", grid="#343a42")


def exit_colour(exit_index: int) -> str:
    """The colour of one exit, as #rrggbb; colours repeat after six exits."""
    return EXIT_COLOURS[exit_index % len(EXIT_COLOURS)]


def draw_all(results: Results, theme: Theme = LIGHT) -> dict[str, bytes]:
    """File name -> PNG of every figure that these results allow."""
    charts = (_accuracy_against_gmacs, _reliability) if results.reliability else (_accuracy_against_gmacs,)
    drawn = {}
    with style(theme):
        for name, draw in zip(FIGURES, charts, strict=False):
            figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
            axes = figure.add_subplot()
            axes.margins(x=0.1, y=0.16)
            draw(axes, results, theme)
            axes.legend(loc="best")
            drawn[name] = png(figure)
    return drawn


def _accuracy_against_gmacs(axes: Axes, results: Results, theme: Theme) -> None:
    """Sweep, single exits, recommended setting."""
    axes.set(xlabel="average cost of an image (GMACs)", ylabel="accuracy (%)")
    gmacs, accuracy = results.cumulative_gmacs, results.anytime_accuracy
    frontier, published = results.frontier, results.published
    label = "early exits, published sweep" if frontier else "early exits, sweep"
    points = _by_cost(results.sweep.expected_gmacs, results.sweep.accuracy)
    axes.plot(*points, "-o", color=theme.muted, ms=2.5, lw=1.1, label=label)
    if frontier:
        points = _by_cost(frontier.expected_gmacs, frontier.accuracy)
        axes.plot(*points, "-", color=theme.ink, lw=1.6, label="early exits, optimised")
    if published:
        axes.plot(published.gmacs, published.accuracy, "--x", color=PUBLISHED_COLOUR, lw=1.2, label=published.label)
    axes.plot(gmacs, accuracy, ":", color=theme.muted, lw=1, zorder=1)
    for k, (x, y) in enumerate(zip(gmacs, accuracy, strict=True)):
        label = "one exit for all images" if k == 0 else None
        axes.plot(x, y, "D", color=exit_colour(k), ms=8, mec=theme.background, ls="none", label=label, zorder=3)
        # Beside the point, where the sweep is above it; the last one has no room there.
        place, side = ((-2, -17), "center") if k == len(gmacs) - 1 else ((7, -13), "left")
        axes.annotate(f"exit {k + 1}", (x, y), place, textcoords="offset points", ha=side, fontsize=9.5)
    if chosen := results.recommended:
        star = {"color": theme.ink, "mec": theme.background, "ms": 16, "ls": "none", "zorder": 5}
        axes.plot(chosen.expected_gmacs, chosen.accuracy, "*", label="recommended", **star)
    axes.set_xlim(0, 1.1 * max(max(line.get_xdata()) for line in axes.get_lines()))  # costs are compared as ratios
    axes.locator_params(axis="x", nbins=6)


def _reliability(axes: Axes, results: Results, theme: Theme) -> None:
    axes.plot([0, 1], [0, 1], "--", color=theme.muted, lw=1)
    for k, row in enumerate(results.reliability):
        bins = zip(row.confidence, row.accuracy, row.counts, strict=True)
        x, y, counts = zip(*(each for each in bins if each[2]), strict=True)
        label = f"exit {k + 1} (error {share(row.expected_calibration_error)})"
        axes.plot(x, y, "-", color=exit_colour(k), lw=1.4, label=label)
        sizes = [6 + 90 * count / sum(counts) for count in counts]  # few images: a small point
        axes.scatter(x, y, s=sizes, color=exit_colour(k), edgecolor=theme.background, lw=0.5, zorder=3)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))


def style(theme: Theme) -> AbstractContextManager[None]:
    """Context in which figures are drawn: fonts and colours."""
    colours = {
        theme.background: ("figure.facecolor", "savefig.facecolor", "axes.facecolor", "legend.facecolor"),
        theme.ink: ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"),
        theme.muted: ("axes.edgecolor", "xtick.color", "ytick.color"),
        theme.grid: ("grid.color", "legend.edgecolor"),
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


def _by_cost(gmacs: Sequence[float], accuracy: Sequence[float]) -> tuple[tuple[float, ...], ...]:
    return tuple(zip(*sorted(zip(gmacs, accuracy, strict=True)), strict=True))


def png(figure: Figure) -> bytes:
    """The figure as a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()
