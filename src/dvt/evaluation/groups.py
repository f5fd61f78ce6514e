"""Accuracy and exits of groups of images: classes, and what a data set knows of its images besides the class.

Axis letter: n images.
"""

import numpy as np

from dvt.data import Splits
from dvt.early_exit.outcomes import Outcomes
from dvt.report.results import Group


def by_class(val: Outcomes, exit_index: np.ndarray, class_names: tuple[str, ...]) -> dict[str, Group]:
    """Class name -> its images; classes without images are left out. `exit_index` is (n,)."""
    members = {name: val.labels == label for label, name in enumerate(class_names)}
    return {name: _group(val, exit_index, mask) for name, mask in members.items() if mask.any()}


def by_attribute(val: Outcomes, exit_index: np.ndarray, splits: Splits) -> dict[str, dict[str, Group]]:
    """Attribute -> value -> the images that have it."""
    return {
        name: {str(value): _group(val, exit_index, values == value) for value in np.unique(values)}
        for name, values in splits.attributes("val").items()
    }


def correct_at(val: Outcomes, exit_index: np.ndarray) -> np.ndarray:
    """(n,) whether each image is classified rightly at the exit it takes."""
    return val.correct[exit_index, np.arange(len(exit_index))]


def _group(val: Outcomes, exit_index: np.ndarray, members: np.ndarray) -> Group:
    exits = exit_index[members]
    return Group(
        count=len(exits),
        accuracy=float(100.0 * correct_at(val, exit_index)[members].mean()),
        exit_fractions=(np.bincount(exits, minlength=len(val.predicted)) / len(exits)).tolist(),
    )
