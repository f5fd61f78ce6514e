"""Single images in the report: what is known of them, and the figures they are drawn in. NumPy and matplotlib only.

Axis letters: K exits, G side of an exit's grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dvt.report.figures import LIGHT, WRONG_COLOUR, Theme, exit_colour, png, short, style

EXAMPLE_COLUMNS = 8
HEAT_COLOURS = "magma"


@dataclass(frozen=True)
class Example:
    """One image shown in the report.

    Attributes:
        image: (H, W) or (H, W, 3) uint8.
        label: Name of its class.
        predicted: Name of the class the model gave it.
        exit_index: The exit it left at, 0-based.
        confidence: Largest probability at that exit, 0 to 1.
    """

    image: np.ndarray
    label: str
    predicted: str
    exit_index: int
    confidence: float

    @property
    def wrong(self) -> bool:
        """Whether it was classified wrongly."""
        return self.predicted != self.label


@dataclass(frozen=True)
class ClassExtremes:
    """The easiest and the hardest images of one class, most extreme first."""

    name: str
    easiest: Sequence[Example]
    hardest: Sequence[Example]


@dataclass(frozen=True)
class AttentionExample:
    """One image and what the class token of each exit attends to.

    Attributes:
        image: (H, W) or (H, W, 3) uint8.
        label: Name of its class.
        predicted: (K,) name of the class that each exit gives it.
        exit_index: The exit it left at, 0-based.
        maps: K maps (G, G) that sum to 1.
    """

    image: np.ndarray
    label: str
    predicted: Sequence[str]
    exit_index: int
    maps: Sequence[np.ndarray]


def example_rows(examples: Sequence[Example], num_exits: int, theme: Theme = LIGHT) -> bytes:
    """Images in rows by the exit they left at, with class, prediction and confidence; wrong ones framed and marked."""
    groups = [(k, [e for e in examples if e.exit_index == k]) for k in range(num_exits)]
    lines = [
        (k, group[start : start + EXAMPLE_COLUMNS])
        for k, group in groups
        for start in range(0, len(group), EXAMPLE_COLUMNS)
    ]
    with style(theme):
        figure = Figure(figsize=(1.45 * EXAMPLE_COLUMNS, 0.2 + 1.95 * len(lines)), layout="constrained")
        grid = figure.subplots(len(lines), EXAMPLE_COLUMNS, squeeze=False)
        for i, ((k, group), row) in enumerate(zip(lines, grid, strict=True)):
            for axes in row:
                axes.set_axis_off()
            for axes, example in zip(row, group, strict=False):
                _example(axes, example, theme)
            if i == 0 or lines[i - 1][0] != k:
                row[0].set_title(f"exit {k + 1}", loc="left", color=exit_colour(k), fontweight="bold", pad=6)
        return png(figure)


def _example(axes: Axes, example: Example, theme: Theme) -> None:
    axes.set_axis_on()
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    axes.imshow(example.image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    text = short(example.label)
    if example.wrong:
        text += f"\n✗ {short(example.predicted)} {example.confidence:.2f}"
    else:
        text += f"\n✓ {example.confidence:.2f}"
    axes.set_xlabel(text, fontsize=8, parse_math=False, color=WRONG_COLOUR if example.wrong else theme.ink)
    for spine in axes.spines.values():
        spine.set(visible=True, color=WRONG_COLOUR if example.wrong else exit_colour(example.exit_index), linewidth=2.5)


def extreme_rows(rows: Sequence[ClassExtremes], theme: Theme = LIGHT) -> bytes:
    """One line per class: its easiest images on the left, its hardest on the right."""
    half = max(len(part) for row in rows for part in (row.easiest, row.hardest))
    with style(theme):
        figure = Figure(figsize=(1.3 * (2 * half) + 0.8, 0.4 + 1.75 * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), 2 * half + 1, squeeze=False, width_ratios=[1] * half + [0.25] + [1] * half)
        for row, line in zip(rows, grid, strict=True):
            for axes in line:
                axes.set_axis_off()
            for start, part in ((0, row.easiest), (half + 1, row.hardest)):
                for axes, example in zip(line[start:], part, strict=False):
                    _example(axes, example, theme)
        grid[0, 0].set_title("easiest", loc="left", fontweight="bold")
        grid[0, half + 1].set_title("hardest", loc="left", fontweight="bold")
        return png(figure)


def attention_rows(examples: Sequence[AttentionExample], theme: Theme = LIGHT) -> bytes:
    """One line per image: the image, then one map per exit, with the class that the exit gives it."""
    num_exits = len(examples[0].maps)
    with style(theme):
        figure = Figure(figsize=(1.6 * (1 + num_exits), 1.85 * len(examples)), layout="constrained")
        grid = figure.subplots(len(examples), 1 + num_exits, squeeze=False)
        for example, line in zip(examples, grid, strict=True):
            line[0].imshow(example.image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            line[0].set_xlabel(short(example.label), fontsize=8, parse_math=False)
            for k, (axes, weights) in enumerate(zip(line[1:], example.maps, strict=True)):
                axes.imshow(weights, cmap=HEAT_COLOURS, vmin=0, interpolation="nearest")
                wrong = example.predicted[k] != example.label
                text = f"{'✗' if wrong else '✓'} {short(example.predicted[k])}"
                axes.set_xlabel(text, fontsize=8, parse_math=False, color=WRONG_COLOUR if wrong else theme.ink)
            for k, axes in enumerate(line):
                axes.grid(False)
                axes.set(xticks=[], yticks=[])
                taken = k == example.exit_index + 1
                for spine in axes.spines.values():
                    colour = exit_colour(k - 1) if taken else theme.grid
                    spine.set(visible=True, color=colour, linewidth=3.0 if taken else 0.8)
        grid[0, 0].set_title("image", fontsize=9)
        for k in range(num_exits):
            grid[0, k + 1].set_title(f"exit {k + 1}", fontsize=9, color=exit_colour(k), fontweight="bold")
        return png(figure)
