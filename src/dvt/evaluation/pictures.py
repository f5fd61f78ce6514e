"""Single images for the report: examples of each exit, the easiest and hardest of each class, and what class tokens
attend to.

Axis letters: K exits, n images, C classes, H heads, G grid side, N = G * G + 1 tokens, class token first.
"""

from dataclasses import dataclass

import numpy as np
from mindspore import Tensor, nn

from dvt.data import Splits
from dvt.early_exit.budgets import evenly_spread
from dvt.early_exit.outcomes import Outcomes
from dvt.report.pictures import AttentionExample, ClassExtremes, Example

EXAMPLES_PER_EXIT = 8
EXTREMES = 4  # images at either end of a class
MOST_CLASSES = 10
ATTENTION_PER_EXIT = 2


@dataclass(frozen=True)
class ExitsTaken:
    """The validation images and the exits that they take.

    Attributes:
        splits: Where the images are.
        outcomes: What every exit says of them.
        confidence: (K, n).
        exit_index: (n,).
    """

    splits: Splits
    outcomes: Outcomes
    confidence: np.ndarray
    exit_index: np.ndarray

    def spread(self, per_exit: int) -> list[int]:
        """Positions of at most so many images of each exit, evenly spread over those that took it."""
        exits = range(len(self.confidence))
        return [place for k in exits for place in _some(np.flatnonzero(self.exit_index == k), per_exit)]

    def example(self, position: int) -> Example:
        """The image at a position, as the report shows it."""
        taken = int(self.exit_index[position])
        return Example(
            image=_pixels(self.splits, self.splits.batch("val", [position])[0][0]),
            label=self.splits.class_names[self.outcomes.labels[position]],
            predicted=self.splits.class_names[self.outcomes.predicted[taken, position]],
            exit_index=taken,
            confidence=float(self.confidence[taken, position]),
        )


def examples_by_exit(images: ExitsTaken) -> list[Example]:
    """A few images per exit."""
    return [images.example(position) for position in images.spread(EXAMPLES_PER_EXIT)]


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
                [images.example(position) for position in part] for part in (order[:count], order[::-1][:count])
            )
            rows.append(ClassExtremes(images.splits.class_names[label], easiest, hardest))
    return rows


def attention_examples(model: nn.Cell, images: ExitsTaken) -> list[AttentionExample]:
    """What the class token of every exit attends to, for a few images that took each exit."""
    positions, names = images.spread(ATTENTION_PER_EXIT), images.splits.class_names
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


def _some(values: np.ndarray, most: int) -> list[int]:
    """At most `most` of the values, evenly spread over their order."""
    return values[evenly_spread(len(values), most)].tolist() if len(values) else []


def _pixels(splits: Splits, image: np.ndarray) -> np.ndarray:
    """A model input (C, S, S) as uint8 (S, S) or (S, S, 3)."""
    mean, std = (np.asarray(v, np.float32).reshape(-1, 1, 1) for v in (splits.mean, splits.std))
    pixels = np.clip(np.rint((image * std + mean) * 255), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels
