"""Parts of the figures, in the style of the reports."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dvt.report.figures import exit_colour, png, style

WIDTH, HEIGHT = 6.4, 4.2  # inches
MILLION = 1000.0  # million multiply-adds per GMAC: these models are small

Points = Mapping[str, Any]


class Drawing:
    """A figure under way; `data` is the PNG once it is done."""

    def __init__(self, panels: int) -> None:
        self.figure = Figure(figsize=(WIDTH if panels == 1 else 1.5 * WIDTH, HEIGHT), layout="constrained")
        self.axes: list[Axes] = [self.figure.add_subplot(1, panels, place + 1) for place in range(panels)]
        self.data = b""


@contextmanager
def drawing(panels: int = 1) -> Iterator[Drawing]:
    """A figure with some panels side by side, finished when the block ends."""
    with style():
        made = Drawing(panels)
        yield made
        made.data = png(made.figure)


def cost_axes(axes: Axes, accuracy: str = "test accuracy (%)") -> None:
    """Labels of accuracy against cost; costs are compared as ratios, so theirs starts at 0."""
    axes.set(xlabel="average cost of an image (million multiply-adds)", ylabel=accuracy)
    axes.set_xlim(left=0)
    axes.legend(loc="lower right")


def band(axes: Axes, curve: Points, colour: str, label: str, line: str = "-") -> None:
    """A mean curve and, around it, one standard deviation over seeds."""
    x = [MILLION * cost for cost in curve["gmacs"]]
    low = [mean - std for mean, std in zip(curve["mean"], curve["std"], strict=True)]
    high = [mean + std for mean, std in zip(curve["mean"], curve["std"], strict=True)]
    axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
    axes.plot(x, curve["mean"], line, color=colour, lw=1.8, label=label)


def with_bars(axes: Axes, points: Sequence[Points], marker: str, colour: str, label: str, **keys: Any) -> None:
    """Single points with one standard deviation up and down."""
    axes.errorbar(
        [MILLION * each["gmacs"] for each in points],
        [each["mean"] for each in points],
        [each["std"] for each in points],
        fmt=marker,
        color=colour,
        label=label,
        capsize=3,
        **keys,
    )


def colour(place: int) -> str:
    """Of the curve number `place`, told apart with any colour blindness."""
    return exit_colour(place)
