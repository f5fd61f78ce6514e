"""Figures of the report: PNG bytes from results, in a light and a dark theme. NumPy and matplotlib only.

Figures are drawn about as wide as a phone's window (`WIDTH` inches), so that their text stays readable there; pages
show them side by side where there is room. An exit has the same colour in every figure and table (`exit_colour`).

Axis letters: K exits, P points of the sweep.
"""

import io
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dvt.report.results import ExitReliability, Results, Throughput
from dvt.report.words import share

# Okabe and Ito's palette, told apart with any common colour blindness; vermilion is kept for what is wrong.
EXIT_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442")
WRONG_COLOUR = "#D55E00"
PUBLISHED_COLOUR = "#8C6BB1"

WIDTH = 5.2  # inches
DOTS_PER_INCH = 160
MOST_CLASS_BARS = 20
GROUP_UNITS = {"item_size": "px"}


@dataclass(frozen=True)
class Theme:
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
    """File name -> PNG of every figure that these results allow, pictures of single images aside."""
    figures = {"accuracy_gmacs.png": accuracy_against_gmacs(results, theme)}
    if results.throughput:
        figures["accuracy_speed.png"] = accuracy_against_speed(results, results.throughput, theme)
    if results.recommended and results.num_exits > 1:
        figures["exit_share.png"] = exit_share(results, theme)
    if results.reliability:
        figures["reliability.png"] = reliability(results.reliability, theme)
    return figures


def accuracy_against_gmacs(results: Results, theme: Theme = LIGHT) -> bytes:
    """Accuracy (percent) against the average cost of an image (GMACs): sweep, single exits, recommended setting."""
    gmacs, accuracy = results.cumulative_gmacs, results.anytime_accuracy
    frontier, published = results.frontier, results.published
    with style(theme):
        figure, axes = _axes("average cost of an image (GMACs)", "accuracy (%)")
        label = "early exits, published sweep" if frontier else "early exits, sweep"
        points = _by_cost(results.sweep.expected_gmacs, results.sweep.accuracy)
        axes.plot(*points, "-o", color=theme.muted, ms=2.5, lw=1.1, label=label)
        if frontier:
            points = _by_cost(frontier.expected_gmacs, frontier.accuracy)
            axes.plot(*points, "-", color=theme.ink, lw=1.6, label="early exits, optimised")
        if published:
            line = {"color": PUBLISHED_COLOUR, "lw": 1.2, "label": published.label}
            axes.plot(published.gmacs, published.accuracy, "--x", **line)
        axes.plot(gmacs, accuracy, ":", color=theme.muted, lw=1, zorder=1)
        for k, (x, y) in enumerate(zip(gmacs, accuracy, strict=True)):
            label = "one exit for all images" if k == 0 else None
            axes.plot(x, y, "D", color=exit_colour(k), ms=8, mec=theme.background, ls="none", label=label, zorder=3)
            # Beside the point, where the sweep is above it; the last one has no room there.
            place, side = ((-2, -17), "center") if k == len(gmacs) - 1 else ((7, -13), "left")
            axes.annotate(f"exit {k + 1}", (x, y), place, textcoords="offset points", ha=side, fontsize=9.5)
        if results.recommended:
            _star(axes, results.recommended.expected_gmacs, results.recommended.accuracy, theme)
        _from_zero(axes)
        axes.legend(loc="best")
        return png(figure)


def accuracy_against_speed(results: Results, measured: Throughput, theme: Theme = LIGHT) -> bytes:
    """Accuracy (percent) against measured images per second."""
    last, accuracy = results.num_exits - 1, results.anytime_accuracy[-1]
    with style(theme):
        figure, axes = _axes("measured images/s", "accuracy (%)")
        timed = sorted(measured.settings, key=lambda setting: setting.expected_gmacs)
        for setting in timed:  # the range of the rounds: how noisy the machine was
            heights = [setting.accuracy] * 2
            axes.plot(setting.images_per_second_range, heights, "-", color=theme.muted, lw=3, alpha=0.35, zorder=1)
        speeds, accuracies = zip(*((each.images_per_second, each.accuracy) for each in timed), strict=True)
        axes.plot(speeds, accuracies, "-o", color=theme.muted, ms=4, lw=1.4, label="early exits, measured")
        square = {"color": exit_colour(last), "mec": theme.background, "ms": 9, "ls": "none", "zorder": 3}
        axes.plot(measured.all_exits_images_per_second, accuracy, "s", label="all exits on every image", **square)
        if results.recommended:
            _star(axes, measured.adaptive_images_per_second, results.recommended.accuracy, theme)
        _from_zero(axes)
        axes.legend(loc="best")
        return png(figure)


def reliability(rows: Sequence[ExitReliability], theme: Theme = LIGHT) -> bytes:
    """Accuracy against confidence of each exit, both 0 to 1."""
    with style(theme):
        figure, axes = _axes("confidence", "accuracy")
        axes.plot([0, 1], [0, 1], "--", color=theme.muted, lw=1)
        for k, row in enumerate(rows):
            bins = zip(row.confidence, row.accuracy, row.counts, strict=True)
            x, y, counts = zip(*(each for each in bins if each[2]), strict=True)
            label = f"exit {k + 1} (error {share(row.expected_calibration_error)})"
            axes.plot(x, y, "-", color=exit_colour(k), lw=1.4, label=label)
            sizes = [6 + 90 * count / sum(counts) for count in counts]  # few images: a small point
            axes.scatter(x, y, s=sizes, color=exit_colour(k), edgecolor=theme.background, lw=0.5, zorder=3)
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
        axes.legend(loc="upper left")
        return png(figure)


def exit_share(results: Results, theme: Theme = LIGHT) -> bytes:
    """Share of the images (percent) that left at each exit with the recommended thresholds, as stacked bars.

    One bar for all images, one per value of every group, and one per class while there are at most
    `MOST_CLASS_BARS` classes.
    """
    bars = share_bars(results)
    places, place = [], 0.0
    for i, (section, _, _) in enumerate(bars):
        place += 0.55 if i and section != bars[i - 1][0] else 0.0
        places.append(place)
        place += 1.0
    with style(theme):
        figure = Figure(figsize=(WIDTH, 1.15 + 0.29 * place), layout="constrained")
        axes = figure.add_subplot()
        starts = [0.0] * len(bars)
        for k in range(results.num_exits):
            colour = exit_colour(k)
            shares = [100.0 * fractions[k] for _, _, fractions in bars]
            axes.barh(places, shares, left=starts, height=0.82, color=colour, edgecolor=theme.background, lw=0.8)
            centred = {"color": _text_on(colour), "ha": "center", "va": "center", "size": 9}
            for y, start, width in zip(places, starts, shares, strict=True):
                if width >= 8:  # there is room for a number
                    axes.text(start + width / 2, y, f"{width:.0f}", **centred)
            starts = [start + width for start, width in zip(starts, shares, strict=True)]
        axes.set_yticks(places, [short(label) for _, label, _ in bars], parse_math=False)
        axes.set(xlim=(0, 100), ylim=(place - 0.4, -0.6), xlabel="share of the images (%)")
        axes.tick_params(axis="y", length=0)
        axes.grid(False)
        handles = [Patch(color=exit_colour(k), label=f"exit {k + 1}") for k in range(results.num_exits)]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(results.num_exits, 4))
        return png(figure)


def share_bars(results: Results) -> list[tuple[str, str, list[float]]]:
    """(section, label, exit fractions (K,)) of every bar of `exit_share`, in order."""
    bars = [("all", "all images", results.recommended.exit_fractions)]
    for name, values in results.groups.items():
        unit = f" {GROUP_UNITS[name]}" if name in GROUP_UNITS else ""
        for value, row in values.items():
            bars.append((f"group {name}", f"{name.replace('_', ' ')} {value}{unit}", row.exit_fractions))
    if len(results.per_class) <= MOST_CLASS_BARS:
        bars += [("class", name, row.exit_fractions) for name, row in results.per_class.items()]
    return bars


def style(theme: Theme) -> AbstractContextManager[None]:
    """Context in which figures are drawn: fonts and colours."""
    return matplotlib.rc_context(
        {
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],
            "font.size": 10.5,
            "figure.facecolor": theme.background,
            "savefig.facecolor": theme.background,
            "axes.facecolor": theme.background,
            "axes.edgecolor": theme.muted,
            "axes.labelcolor": theme.ink,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": theme.grid,
            "text.color": theme.ink,
            "xtick.color": theme.muted,
            "xtick.labelcolor": theme.ink,
            "ytick.color": theme.muted,
            "ytick.labelcolor": theme.ink,
            "legend.fontsize": 9,
            "legend.frameon": True,
            "legend.framealpha": 0.85,
            "legend.facecolor": theme.background,
            "legend.edgecolor": theme.grid,
        }
    )


def _axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.margins(x=0.1, y=0.16)
    return figure, axes


def _by_cost(gmacs: Sequence[float], accuracy: Sequence[float]) -> tuple[tuple[float, ...], ...]:
    """(gmacs, accuracy) sorted by GMACs."""
    return tuple(zip(*sorted(zip(gmacs, accuracy, strict=True)), strict=True))


def _star(axes: Axes, x: float, y: float, theme: Theme) -> None:
    axes.plot(x, y, "*", color=theme.ink, mec=theme.background, ms=16, ls="none", label="recommended", zorder=5)


def _from_zero(axes: Axes) -> None:
    """Costs and speeds are compared as ratios, so their axis starts at 0."""
    axes.set_xlim(0, 1.1 * max(max(line.get_xdata()) for line in axes.get_lines()))
    axes.locator_params(axis="x", nbins=6)


def _text_on(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return "#ffffff" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 < 0.18 else "#111111"


def short(text: str, longest: int = 20) -> str:
    """`text` on one line, cut where it is longer."""
    text = " ".join(str(text).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def png(figure: Figure) -> bytes:
    """The figure as a file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names in scripts that the font lacks
        figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()
