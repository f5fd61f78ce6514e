"""Fashion-MNIST "scale": each item is drawn at one of a few sizes at a random place of a larger black canvas.

The difficulty of an image is thus known: a small item needs fine tokens, a large one does not. Items are resized
bilinearly, antialiased when they shrink; size and place are uniform: in evaluation from (part, index) alone, so that
all runs see the same images; in training drawn in every epoch, where half of the items are flipped left to right.

Legend: N items, n of a batch, n_k of a size, s side of an item, R side of the canvas, S side of the model input.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dvt.config.sections import DataSection
from dvt.data.augment.draws import stream_key, uniforms
from dvt.data.images import PARTS, ImageSet, Recipe, Source, configured
from dvt.data.sources.fashion_mnist import CLASS_NAMES, DEFAULTS, SIDE, find_files, read_part
from dvt.data.workers import Made, Task
from dvt.errors import ConfigError

PLACEMENT_KEYS = {"train": stream_key(0x5CA1E, 0), "val": stream_key(0x5CA1E, 1)}
PLACEMENT_DRAWS = 3  # the size of an item, its vertical and its horizontal place
STATISTICS_IMAGES = 5000  # first training images, of which mean and standard deviation are computed


def resize_matrix(source: int, target: int) -> NDArray[np.float32]:
    """(target, source) matrix M of the bilinear resize along one axis, with PIL's antialiasing: the image X resized to
    (t, t) is M @ X @ M.T. Every row sums to 1."""
    scale = source / target
    support = max(scale, 1.0)  # the triangle widens when the image shrinks
    centres = (np.arange(target) + 0.5) * scale
    distances = np.abs(np.arange(source)[None, :] + 0.5 - centres[:, None]) / support
    weights = np.maximum(0.0, 1.0 - distances)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


class Layout(NamedTuple):
    """How items are drawn."""

    image_size: int  # side S of the model input
    canvas_size: int  # side R of the canvas, which is resized to S where they differ
    item_sizes: tuple[int, ...]  # sides s, all equally likely


class ScaleImages(ImageSet):
    """Items (N, 28, 28) of a part ("train" or "val") on canvases, drawn when asked for, in microseconds per image."""

    def __init__(self, items: NDArray[np.uint8], labels: NDArray[np.int32], part: str, layout: Layout) -> None:
        super().__init__(items, labels)
        self._layout, self._placement_key = layout, PLACEMENT_KEYS[part]

    def task(self, indices: NDArray[np.int64], recipe: Recipe, key: int | None) -> Task:
        """As of `ImageSet`; of the recipe, mean and standard deviation alone apply to items that are drawn."""
        own = (self._placement_key, PLACEMENT_DRAWS) if key is None else (key, PLACEMENT_DRAWS + 1)
        columns = indices, uniforms(own[0], indices, own[1])
        return Task(partial(self._draw, recipe), columns, np.asarray, recipe.preprocessing.shape, chunk=None)

    def attributes(self, indices: NDArray[np.int64]) -> dict[str, NDArray]:
        """`item_size` (n,): the side at which each item is drawn in evaluation, in pixels of the canvas."""
        sizes = np.array(self._layout.item_sizes, np.int64)
        return {"item_size": sizes[(uniforms(self._placement_key, indices, 1)[:, 0] * len(sizes)).astype(np.int64)]}

    def _draw(self, recipe: Recipe, indices: NDArray[np.int64], draws: NDArray[np.float64]) -> Made:
        """Model inputs (n, 1, S, S); `draws` are (n, 3), or in training (n, 4): the last is the flip."""
        items = self.items[indices].astype(np.float32)  # (n, 28, 28)
        if draws.shape[1] > PLACEMENT_DRAWS:
            flip = draws[:, PLACEMENT_DRAWS] < 0.5
            items[flip] = items[flip, :, ::-1]
        # The rows of a resize matrix sum to 1, so the small items can be normalised instead of the large canvases.
        mean, std = recipe.preprocessing.mean[0], recipe.preprocessing.std[0]
        items = (items / np.float32(255) - np.float32(mean)) / np.float32(std)
        canvas, side = self._layout.canvas_size, self._layout.image_size
        images = np.full((len(indices), 1, canvas, canvas), -mean / std, np.float32)
        choice = (draws[:, 0] * len(self._layout.item_sizes)).astype(np.int64)
        for k, size in enumerate(self._layout.item_sizes):
            matrix, chosen = resize_matrix(SIDE, size), np.flatnonzero(choice == k)
            # One small product per item: equal whatever else is in the batch, and on one core.
            resized = matrix @ items[chosen] @ matrix.T  # (n_k, s, s)
            places = (draws[chosen, 1:PLACEMENT_DRAWS] * (canvas - size + 1)).astype(np.int64).tolist()
            for i, item, (top, left) in zip(chosen.tolist(), resized, places, strict=True):
                images[i, 0, top : top + size, left : left + size] = item
        if canvas != side:
            matrix = resize_matrix(canvas, side)
            images = matrix @ images @ matrix.T
        return images, []


def statistics(items: NDArray[np.uint8], layout: Layout) -> tuple[float, float]:
    """Mean and standard deviation of the pixels of drawn images, in 0..1: the expectation over the sizes."""
    pixels = items[:STATISTICS_IMAGES].astype(np.float32) / np.float32(255)
    mean = square = 0.0
    for size in layout.item_sizes:
        matrix = resize_matrix(SIDE, size)
        resized = matrix @ pixels @ matrix.T
        share = (size / layout.canvas_size) ** 2 / len(layout.item_sizes)
        mean += share * float(resized.mean(dtype=np.float64))
        square += share * float(np.square(resized).mean(dtype=np.float64))
    return round(mean, 4), round(float(np.sqrt(square - mean**2)), 4)


def open_scale(data: DataSection, image_size: int, parts: Sequence[str] = PARTS) -> Source:
    """Fashion-MNIST "scale": both parts, or "val" alone, which needs `data.mean` and `data.std`."""
    canvas = data.canvas_size or image_size
    layout = Layout(image_size, canvas, tuple(data.item_sizes or (max(1, canvas // 4), max(1, canvas // 2), canvas)))
    if (size := max(layout.item_sizes)) > canvas:
        raise ConfigError(f"data.item_sizes has {size}; sizes must lie between 1 and data.canvas_size, {canvas}")
    folder = find_files(data.path, parts)
    files = {part: read_part(folder, part) for part in parts}
    if "train" in files:
        mean, std = statistics(files["train"][0], layout)
    elif data.mean and data.std:
        mean, std = data.mean[0], data.std[0]
    else:
        raise ConfigError("data.mean and data.std are not set; without training images they cannot be computed")
    images = {part: ScaleImages(*files[part], part, layout) for part in parts}
    sizes = ", ".join(map(str, layout.item_sizes))
    drawn = f"real items drawn {sizes} px large at random places of a {canvas} px canvas"
    notes = [f"Fashion-MNIST files of {folder}", drawn]
    preprocessing = configured(replace(DEFAULTS, mean=(mean,), std=(std,)), data, image_size, image_size)
    return Source(images.get("train"), images["val"], CLASS_NAMES, preprocessing, notes, drawn=True)
