"""Single images in the report: what is known of them, and the figure of what is attended to in them.

Axis letters: K exits, G side of an exit's grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from dvt.report.figures import LIGHT, WRONG_COLOUR, Theme, exit_colour, png, short, style

HEAT_COLOURS = "magma"


@dataclass(frozen=True)
class Example:
    """One image shown in the report."""

    image: np.ndarray  # (H, W) or (H, W, 3) uint8
    label: str  # name of its class
    predicted: str  # name of the class that the model gives it
    exit_index: int  # the exit it left at
    confidence: float  # largest probability there, 0 to 1

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
    """One image and what the class token of each exit attends to."""

    image: np.ndarray  # (H, W) or (H, W, 3) uint8
    label: str  # name of its class
    predicted: Sequence[str]  # (K,) name of the class that each exit gives it
    exit_index: int  # the exit it left at
    maps: Sequence[np.ndarray]  # K maps (G, G) that sum to 1


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
