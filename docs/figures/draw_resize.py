"""Draws the resize between token grids for docs/reuse.md: `python docs/figures/draw_resize.py` writes resize.png beside
this file. Needs matplotlib; the matrices are those of `dvt.models.grids`, with which the models compute.
"""

from pathlib import Path

import matplotlib
import numpy as np
from draw_architecture import INK, MUTED
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dvt.models.grids import resize_matrix, resize_matrix_1d
from dvt.models.variants import RESIZE_SIDES

COLOUR_MAP = "Blues"


def draw() -> Figure:
    """Above: the rows of a grid from 7 by way of 14 to 10, and as one matrix. Below: the three published resizes."""
    figure = Figure(figsize=(10.4, 8.2), facecolor="white", layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1.12))
    first, second, third = upper.subplots(1, 3, width_ratios=(1.25, 1, 1))
    side = RESIZE_SIDES[7, 10]
    rows(first, (7, side, 10))
    nearest = resize_matrix_1d(7, side, side)
    matrix(second, nearest, f"nearest, {side} × 7")
    matrix(third, resize_matrix_1d(7, side, 10), "pooling × nearest = M, 10 × 7", numbers=True)
    maps = lower.subplots(1, 3)
    for axes, ((source, target), between) in zip(maps, RESIZE_SIDES.items(), strict=True):
        u = resize_matrix(source, between, target)
        image = matrix(axes, u, f"U = M ⊗ M, {source} → {between} → {target}\n{u.shape[0]} × {u.shape[1]}")
        axes.set(xlabel=f"tokens of the {source} × {source} grid", ylabel=f"tokens of the {target} × {target} grid")
    lower.colorbar(image, ax=list(maps), label="weight", shrink=0.8)
    return figure


def rows(axes: Axes, sides: tuple[int, int, int]) -> None:
    """A picture's height cut into as many cells as each grid has, and which cells the last ones average."""
    values = np.linspace(0.15, 0.85, sides[0])
    stages = (values, resize_matrix_1d(sides[0], sides[1], sides[1]) @ values, resize_matrix_1d(*sides) @ values)
    colours = matplotlib.colormaps[COLOUR_MAP]
    for x, (cells, name) in enumerate(zip(stages, ("exit 1", "nearest", "average pooling"), strict=True)):
        height = 1 / len(cells)
        for i, value in enumerate(cells):
            axes.add_patch(Rectangle((x, 1 - (i + 1) * height), 0.5, height, fc=colours(value), ec="white", lw=1))
            ink = "white" if value > 0.55 else INK
            axes.text(x + 0.25, 1 - (i + 0.5) * height, str(i), ha="center", va="center", size=8, color=ink)
        axes.text(x + 0.25, 1.03, f"{name}\n{len(cells)}", ha="center", va="bottom", size=9.5, color=INK)
    for i in range(sides[1]):
        left, right = 1 - (i * sides[0] // sides[1] + 0.5) / sides[0], 1 - (i + 0.5) / sides[1]
        axes.plot([0.5, 1], [left, right], color=MUTED, lw=0.7)
    for cell in range(sides[2]):
        for i in range(cell * sides[1] // sides[2], -(-(cell + 1) * sides[1] // sides[2])):
            axes.plot([1.5, 2], [1 - (i + 0.5) / sides[1], 1 - (cell + 0.5) / sides[2]], color=MUTED, lw=0.7)
    axes.set(xlim=(-0.05, 2.55), ylim=(0, 1.15))
    axes.set_axis_off()


def matrix(axes: Axes, values: np.ndarray, title: str, numbers: bool = False) -> matplotlib.image.AxesImage:
    """The weights of a matrix as shades, with the numbers where they can be read."""
    image = axes.imshow(values, cmap=COLOUR_MAP, vmin=0, vmax=1, interpolation="nearest", aspect="equal")
    axes.set_title(title, size=10.5, color=INK)
    axes.tick_params(labelsize=8)
    if len(values) < 20:
        axes.set(xticks=range(values.shape[1]), yticks=range(len(values)))
    if numbers:
        for (i, j), value in np.ndenumerate(values):
            if value:
                shade = "white" if value > 0.6 else INK
                axes.text(j, i, f"{value:.2g}", ha="center", va="center", size=8, color=shade)
    return image


def main() -> None:
    matplotlib.rcParams["font.family"] = "DejaVu Sans"
    draw().savefig(Path(__file__).resolve().parent / "resize.png", dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
