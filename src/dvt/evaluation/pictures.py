"""Single images for the report: examples of each exit, the easiest and hardest of each class, and what class tokens
attend to.

Axis letters: K exits, n images, C classes, H heads, G grid side, N = G * G + 1 tokens, class token first.
"""

import numpy as np
from mindspore import Tensor, nn

from dvt.data import Splits
from dvt.early_exit.budgets import evenly_spread
from dvt.evaluation.all_exits import ExitsTaken
from dvt.report.pictures import AttentionExample, ClassExtremes, Example

EXAMPLES_PER_EXIT = 8
EXTREMES = 4  # images at either end of a class
MOST_CLASSES = 10
ATTENTION_PER_EXIT = 2


def chosen(model: nn.Cell, images: ExitsTaken) -> dict[str, list]:
    """All pictures of the report, under the names of the arguments of `write_report`."""
    return {
        "examples": examples_by_exit(images),
        "extremes": extremes_by_class(images),
        "attention": attention_examples(model, images),
    }


def examples_by_exit(images: ExitsTaken) -> list[Example]:
    """A few images per exit."""
    return [_example(images, position) for position in _some_of_each_exit(images, EXAMPLES_PER_EXIT)]


def extremes_by_class(images: ExitsTaken) -> list[ClassExtremes]:
    """The images of a class that leave first with the highest confidence, and those that go furthest with the lowest
    confidence at the first exit (paper, figure of easy and hard images); at most `MOST_CLASSES` classes."""
    first, labels = images.confidence[0], images.outcomes.labels
    rows = []
    for label in _some(np.unique(labels), MOST_CLASSES):
        members = np.flatnonzero(labels == label)
        order = members[np.lexsort((-first[members], images.exit_index[members]))]
        count = min(EXTREMES, len(order) // 2)
        if count:
            easiest, hardest = (
                [_example(images, position) for position in part] for part in (order[:count], order[::-1][:count])
            )
            rows.append(ClassExtremes(images.splits.class_names[label], easiest, hardest))
    return rows


def attention_examples(model: nn.Cell, images: ExitsTaken) -> list[AttentionExample]:
    """What the class token of every exit attends to, for a few images that took each exit."""
    positions, names = _some_of_each_exit(images, ATTENTION_PER_EXIT), images.splits.class_names
    pixels, _ = images.splits.batch("val", positions)
    maps = class_token_attention(model, pixels)
    return [
        AttentionExample(
            image=_pixels(images.splits, image),
            label=names[images.outcomes.labels[position]],
            predicted=tuple(names[each] for each in images.outcomes.predicted[:, position]),
            exit_index=int(images.exit_index[position]),
            maps=tuple(each[row] for each in maps),
        )
        for row, (position, image) in enumerate(zip(positions, pixels, strict=True))
    ]


def class_token_attention(model: nn.Cell, images: np.ndarray) -> list[np.ndarray]:
    """Per exit (n, G, G): how the last block's class token spreads its attention over the grid, mean of the heads; what
    it gives itself is left out, so that each map sums to 1."""
    model.set_train(False)
    heads = model.config.num_heads
    maps = []
    for exit_, grid in zip(model.forward_features(Tensor(images)), model.config.grid_sizes, strict=True):
        logits = exit_.relations.asnumpy()[:, -heads:, 0]  # (n, H, N) of the class token
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights = weights[..., 1:] / weights[..., 1:].sum(axis=-1, keepdims=True)
        maps.append(weights.mean(axis=1).reshape(-1, grid, grid))
    return maps


def _some_of_each_exit(images: ExitsTaken, most: int) -> list[int]:
    """Positions of at most `most` images per exit, evenly spread over those that took it."""
    exits = range(len(images.confidence))
    return [position for k in exits for position in _some(np.flatnonzero(images.exit_index == k), most)]


def _some(values: np.ndarray, most: int) -> list[int]:
    """At most `most` of the values, evenly spread over their order."""
    return values[evenly_spread(len(values), most)].tolist() if len(values) else []


def _example(images: ExitsTaken, position: int) -> Example:
    taken, names = int(images.exit_index[position]), images.splits.class_names
    return Example(
        image=_pixels(images.splits, images.splits.batch("val", [position])[0][0]),
        label=names[images.outcomes.labels[position]],
        predicted=names[images.outcomes.predicted[taken, position]],
        exit_index=taken,
        confidence=float(images.confidence[taken, position]),
    )


def _pixels(splits: Splits, image: np.ndarray) -> np.ndarray:
    """A model input (C, S, S) as uint8 (S, S) or (S, S, 3)."""
    mean, std = (np.asarray(v, np.float32).reshape(-1, 1, 1) for v in (splits.mean, splits.std))
    pixels = np.clip(np.rint((image * std + mean) * 255), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels
