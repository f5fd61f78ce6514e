"""Draws the architecture of DVT for the README: `python docs/figures/draw_architecture.py` writes architecture.png and
architecture.svg beside this file. Needs matplotlib.

Lengths are inches on the canvas. Exits have the colours they have in the report (Okabe and Ito's palette).
"""

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

GRIDS = (7, 10, 14)
COLOURS = ("#0072B2", "#E69F00", "#009E73")
INK, MUTED, PAPER, CARD = "#1c2024", "#59626d", "#ffffff", "#f3f5f8"

WIDTH, HEIGHT = 10.0, 6.5
CENTRES = (1.75, 5.0, 8.25)
TILE = 1.7
TILE_BOTTOM = 4.25
BOX_Y, BOX_WIDTH, BOX_HEIGHT = 3.22, 2.3, 0.84
DIAMOND_Y, DIAMOND_WIDTH, DIAMOND_HEIGHT = 1.85, 1.56, 0.96
LEAVE_Y, LEAVE_WIDTH, LEAVE_HEIGHT = 0.72, 1.7, 0.4


def draw() -> Figure:
    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="equal")
    axes.set_axis_off()
    for k, (x, grid, colour) in enumerate(zip(CENTRES, GRIDS, COLOURS, strict=True)):
        tile(axes, x, grid, colour)
        arrow(axes, (x, TILE_BOTTOM), (x, BOX_Y + BOX_HEIGHT / 2))
        box(axes, x, BOX_Y, BOX_WIDTH, BOX_HEIGHT, colour)
        axes.text(x, BOX_Y + 0.17, f"exit {k + 1}", ha="center", va="center", size=14, weight="bold", color=INK)
        axes.text(x, BOX_Y - 0.18, "a whole vision transformer", ha="center", va="center", size=9.5, color=INK)
        decision(axes, k)
    for left, right in zip(CENTRES, CENTRES[1:], strict=False):
        reuse(axes, left, right)
    return figure


def tile(axes: Axes, x: float, grid: int, colour: str) -> None:
    """The picture under a token grid."""
    left, bottom = x - TILE / 2, TILE_BOTTOM
    frame = Rectangle((left, bottom), TILE, TILE, facecolor="#bfe0f2", edgecolor="none")
    axes.add_patch(frame)
    for patch in picture():
        patch.set_transform(matplotlib.transforms.Affine2D().scale(TILE).translate(left, bottom) + axes.transData)
        axes.add_patch(patch)
        patch.set_clip_path(frame)
    for i in range(1, grid):
        at = i * TILE / grid
        axes.plot([left + at] * 2, [bottom, bottom + TILE], color="white", lw=1.0, alpha=0.9, solid_capstyle="butt")
        axes.plot([left, left + TILE], [bottom + at] * 2, color="white", lw=1.0, alpha=0.9, solid_capstyle="butt")
    axes.add_patch(Rectangle((left, bottom), TILE, TILE, fill=False, edgecolor=colour, lw=3, joinstyle="round"))
    label = f"{grid} × {grid} tokens"
    axes.text(x, bottom + TILE + 0.2, label, ha="center", va="center", size=12.5, color=INK)


def picture() -> list[Polygon | Circle]:
    """A sailing boat at sea, in the unit square."""
    return [
        Circle((0.8, 0.82), 0.09, facecolor="#ffd35c"),
        Polygon([(0, 0.42), (0.22, 0.6), (0.38, 0.47), (0.6, 0.66), (1, 0.42)], facecolor="#8fb573"),
        Rectangle((0, 0), 1, 0.43, facecolor="#3f86b8"),
        Polygon([(0, 0.2), (0.35, 0.26), (0.7, 0.19), (1, 0.25), (1, 0), (0, 0)], facecolor="#32709c"),
        Polygon([(0.45, 0.36), (0.45, 0.86), (0.17, 0.36)], facecolor="#f1dfb4"),
        Polygon([(0.49, 0.36), (0.49, 0.8), (0.72, 0.36)], facecolor="#f7b9a0"),
        Polygon([(0.12, 0.32), (0.8, 0.32), (0.68, 0.18), (0.22, 0.18)], facecolor="#9b3d2e"),
        Rectangle((0.457, 0.32), 0.026, 0.57, facecolor="#4a3527"),
    ]


def decision(axes: Axes, exit_index: int) -> None:
    """Below an exit: confident enough to leave? The last exit takes all that are left."""
    x, colour = CENTRES[exit_index], COLOURS[exit_index]
    leave_top = LEAVE_Y + LEAVE_HEIGHT / 2
    box(axes, x, LEAVE_Y, LEAVE_WIDTH, LEAVE_HEIGHT, colour, rounding=0.2)
    axes.text(x, LEAVE_Y, "prediction", ha="center", va="center", size=11, color=INK)
    last = exit_index == len(CENTRES) - 1
    note = "the hard images" if last else ("the easy images" if exit_index == 0 else "the less easy ones")
    axes.text(x, LEAVE_Y - 0.4, note, ha="center", va="center", size=10.5, color=MUTED, style="italic")
    if last:
        arrow(axes, (x, BOX_Y - BOX_HEIGHT / 2), (x, leave_top))
        axes.text(x + 0.12, DIAMOND_Y, "all that\nare left", ha="left", va="center", size=10.5, color=INK)
        return
    corners = [(DIAMOND_WIDTH / 2, 0), (0, DIAMOND_HEIGHT / 2), (-DIAMOND_WIDTH / 2, 0), (0, -DIAMOND_HEIGHT / 2)]
    axes.add_patch(
        Polygon(
            [(x + dx, DIAMOND_Y + dy) for dx, dy in corners], facecolor=CARD, edgecolor=colour, lw=2, joinstyle="round"
        )
    )
    axes.text(x, DIAMOND_Y, "confident\nenough?", ha="center", va="center", size=10.5, color=INK)
    arrow(axes, (x, BOX_Y - BOX_HEIGHT / 2), (x, DIAMOND_Y + DIAMOND_HEIGHT / 2))
    arrow(axes, (x, DIAMOND_Y - DIAMOND_HEIGHT / 2), (x, leave_top))
    axes.text(x + 0.1, (DIAMOND_Y - DIAMOND_HEIGHT / 2 + leave_top) / 2, "yes", ha="left", va="center", size=10.5)

    turn = CENTRES[exit_index + 1] - BOX_WIDTH / 2 + 0.15
    axes.plot(
        [x + DIAMOND_WIDTH / 2, turn, turn], [DIAMOND_Y, DIAMOND_Y, BOX_Y - BOX_HEIGHT / 2 - 0.15], color=INK, lw=1.6
    )
    arrow(axes, (turn, BOX_Y - BOX_HEIGHT / 2 - 0.3), (turn, BOX_Y - BOX_HEIGHT / 2))
    axes.text((x + DIAMOND_WIDTH / 2 + turn) / 2, DIAMOND_Y + 0.14, "no, go on", ha="center", va="center", size=10.5)


def reuse(axes: Axes, left: float, right: float) -> None:
    """What one exit hands on to the next."""
    start, end = left + BOX_WIDTH / 2, right - BOX_WIDTH / 2
    for y, text, colour, above in (
        (BOX_Y + 0.17, "features", "#7b3294", True),
        (BOX_Y - 0.17, "relations", "#a6420c", False),
    ):
        arrow(axes, (start, y), (end, y), colour)
        axes.text(
            (start + end) / 2, y + (0.14 if above else -0.15), text, ha="center", va="center", size=10.5, color=colour
        )


def box(axes: Axes, x: float, y: float, width: float, height: float, colour: str, rounding: float = 0.1) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2 + rounding, y - height / 2 + rounding),
            width - 2 * rounding,
            height - 2 * rounding,
            boxstyle=f"round,pad={rounding},rounding_size={rounding}",
            facecolor=CARD,
            edgecolor=colour,
            lw=2.2,
        )
    )


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = INK) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=14, shrinkA=2, shrinkB=2, lw=1.6, color=colour, zorder=3
        )
    )


def main() -> None:
    folder = Path(__file__).resolve().parent
    matplotlib.rcParams["font.family"] = "DejaVu Sans"
    matplotlib.rcParams["svg.hashsalt"] = "dvt"
    figure = draw()
    figure.savefig(folder / "architecture.png", dpi=140, metadata={"Software": None})
    figure.savefig(folder / "architecture.svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
