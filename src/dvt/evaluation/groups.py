"""Accuracy and exits of groups of images: classes, and what a data set knows of its images besides the class.

Axis letter: n images.
"""

import numpy as np

from dvt.early_exit.outcomes import Outcomes
from dvt.evaluation.all_exits import ExitsTaken
from dvt.report.results import Group


def by_class(images: ExitsTaken) -> dict[str, Group]:
    """Class name -> its images; classes without images are left out."""
    members = {name: images.outcomes.labels == label for label, name in enumerate(images.splits.class_names)}
    return {name: _group(images, mask) for name, mask in members.items() if mask.any()}


def by_attribute(images: ExitsTaken) -> dict[str, dict[str, Group]]:
    """Attribute -> value -> the images that have it."""
    return {
        name: {str(value): _group(images, values == value) for value in np.unique(values)}
        for name, values in images.splits.attributes("val").items()
    }


def correct_at(val: Outcomes, exit_index: np.ndarray) -> np.ndarray:
    """(n,) whether each image is classified rightly at the exit it takes, `exit_index` (n,)."""
    return val.correct[exit_index, np.arange(len(exit_index))]


def _group(images: ExitsTaken, members: np.ndarray) -> Group:
    exits = images.exit_index[members]
    right = images.outcomes.predicted[exits, np.flatnonzero(members)] == images.outcomes.labels[members]
    return Group(
        count=len(exits),
        accuracy=float(100.0 * right.mean()),
        exit_fractions=(np.bincount(exits, minlength=len(images.confidence)) / len(exits)).tolist(),
    )
