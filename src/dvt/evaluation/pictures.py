"""Single images for the report: examples of each exit, the easiest and hardest of each class, and what class tokens
attend to.

Axis letters: K exits, n images, C classes, H heads, G grid side, N = G * G + 1 tokens, class token first.
"""

import numpy as np
from mindspore import Tensor, nn

from dvt.data import Splits
from dvt.early_exit.outcomes import Outcomes
from dvt.report.pictures import AttentionExample, ClassExtremes, Example

EXAMPLES_PER_EXIT = 8
EXTREMES = 4  # images at either end of a class
MOST_CLASSES = 10
ATTENTION_PER_EXIT = 2


def examples_by_exit(splits: Splits, val: Outcomes, confidence: np.ndarray, exit_index: np.ndarray) -> list[Example]:
    """A few images per exit, evenly spread over those that took it; `confidence` is (K, n)."""
    positions: list[int] = []
    for k in range(len(val.predicted)):
        members = np.flatnonzero(exit_index == k)
        positions += _spread(members, EXAMPLES_PER_EXIT)
    return [_example(splits, val, confidence, exit_index, position) for position in positions]


def extremes_by_class(
    splits: Splits, val: Outcomes, confidence: np.ndarray, exit_index: np.ndarray
) -> list[ClassExtremes]:
    """The images of a class that leave first with the highest confidence, and those that go furthest with the lowest
    confidence at the first exit (paper, figure of easy and hard images); at most `MOST_CLASSES` classes."""
    first = confidence[0]
    rows = []
    for label in _spread(np.unique(val.labels), MOST_CLASSES):
        members = np.flatnonzero(val.labels == label)
        order = members[np.lexsort((-first[members], exit_index[members]))]
        count = min(EXTREMES, len(order) // 2)
        if count == 0:
            continue
        ends = [
            [_example(splits, val, confidence, exit_index, position) for position in part]
            for part in (order[:count], order[::-1][:count])
        ]
        rows.append(ClassExtremes(splits.class_names[label], *ends))
    return rows


def attention_examples(model: nn.Cell, splits: Splits, val: Outcomes, exit_index: np.ndarray) -> list[AttentionExample]:
    """What the class token of every exit attends to, for a few images that took each exit."""
    positions: list[int] = []
    for k in range(len(val.predicted)):
        positions += _spread(np.flatnonzero(exit_index == k), ATTENTION_PER_EXIT)
    if not positions:
        return []
    images, _ = splits.batch("val", positions)
    maps = class_token_attention(model, images)
    return [
        AttentionExample(
            image=_pixels(splits, image),
            label=splits.class_names[val.labels[position]],
            predicted=tuple(splits.class_names[each] for each in val.predicted[:, position]),
            exit_index=int(exit_index[position]),
            maps=tuple(each[row] for each in maps),
        )
        for row, (position, image) in enumerate(zip(positions, images, strict=True))
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


def _spread(values: np.ndarray, count: int) -> list[int]:
    """At most `count` of the values, evenly spread over their order."""
    if len(values) == 0:
        return []
    return [int(values[i]) for i in np.unique(np.linspace(0, len(values) - 1, count, dtype=int))]


def _example(splits: Splits, val: Outcomes, confidence: np.ndarray, exit_index: np.ndarray, position: int) -> Example:
    taken = int(exit_index[position])
    return Example(
        image=_pixels(splits, splits.batch("val", [position])[0][0]),
        label=splits.class_names[val.labels[position]],
        predicted=splits.class_names[val.predicted[taken, position]],
        exit_index=taken,
        confidence=float(confidence[taken, position]),
    )


def _pixels(splits: Splits, image: np.ndarray) -> np.ndarray:
    """A model input (C, S, S) as uint8 (S, S) or (S, S, 3)."""
    mean, std = (np.asarray(v, np.float32).reshape(-1, 1, 1) for v in (splits.mean, splits.std))
    pixels = np.clip(np.rint((image * std + mean) * 255), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels
