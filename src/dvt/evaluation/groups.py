"""What images do at the exits they take: accuracy of classes and of other groups, and a few pictures for the report.

Axis letters: K exits, n images.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dvt.data import Splits
from dvt.early_exit.budgets import evenly_spread
from dvt.early_exit.outcomes import Outcomes
from dvt.report.page import Example
from dvt.report.results import Group

EXAMPLES_PER_EXIT = 8


@dataclass(frozen=True)
class ExitsTaken:
    """The validation images, what every exit says of them, and the exits that they take (n,)."""

    splits: Splits
    found: Outcomes
    exit_index: np.ndarray

    def by_class(self) -> dict[str, Group]:
        """Class name -> its images; classes without images are left out."""
        labels = self.found.labels
        names = enumerate(self.splits.class_names)
        return {name: self._group(labels == label) for label, name in names if (labels == label).any()}

    def by_attribute(self) -> dict[str, dict[str, Group]]:
        """Attribute -> value -> the images that have it."""
        return {
            name: {str(value): self._group(values == value) for value in np.unique(values)}
            for name, values in self.splits.attributes("val").items()
        }

    def examples(self) -> list[Example]:
        """At most `EXAMPLES_PER_EXIT` images of each exit, evenly spread over those that took it."""
        shown = []
        for k in range(len(self.found.largest)):
            places = np.flatnonzero(self.exit_index == k)
            shown += places[evenly_spread(len(places), EXAMPLES_PER_EXIT)].tolist() if len(places) else []
        return [self._example(place) for place in shown]

    @cached_property
    def _right(self) -> np.ndarray:
        return correct_at(self.found, self.exit_index)

    def _group(self, members: np.ndarray) -> Group:
        exits = self.exit_index[members]
        return Group(
            count=len(exits),
            accuracy=float(100.0 * self._right[members].mean()),
            exit_fractions=(np.bincount(exits, minlength=len(self.found.largest)) / len(exits)).tolist(),
        )

    def _example(self, place: int) -> Example:
        taken, names, splits = int(self.exit_index[place]), self.splits.class_names, self.splits
        mean, std = (np.asarray(values, np.float32).reshape(-1, 1, 1) for values in (splits.mean, splits.std))
        image = splits.batch("val", [place])[0][0] * std + mean  # (C, S, S) in 0..1
        pixels = np.clip(np.rint(image * 255), 0, 255).astype(np.uint8).transpose(1, 2, 0)
        return Example(
            image=pixels[..., 0] if pixels.shape[2] == 1 else pixels,
            label=names[self.found.labels[place]],
            predicted=names[self.found.predicted[taken, place]],
            exit_index=taken,
            confidence=float(self.found.largest[taken, place]),
        )


def correct_at(val: Outcomes, exit_index: np.ndarray) -> np.ndarray:
    """(n,) whether each image is classified rightly at the exit it takes, `exit_index` (n,)."""
    return val.correct[exit_index, np.arange(len(exit_index))]
