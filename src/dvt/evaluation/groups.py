"""Accuracy and exits of groups of images: classes, and what a data set knows of its images besides the class.

Axis letters: K exits, n images. `exit_index` (n,) are the exits that the images take.
"""

import numpy as np

from dvt.data import Splits
from dvt.early_exit.outcomes import Outcomes
from dvt.report.results import Group


def by_class(splits: Splits, val: Outcomes, exit_index: np.ndarray) -> dict[str, Group]:
    """Class name -> its images; classes without images are left out."""
    members = {name: np.flatnonzero(val.labels == label) for label, name in enumerate(splits.class_names)}
    return {name: _group(val, exit_index, chosen) for name, chosen in members.items() if len(chosen)}


def by_attribute(splits: Splits, val: Outcomes, exit_index: np.ndarray) -> dict[str, dict[str, Group]]:
    """Attribute -> value -> the images that have it."""
    return {
        name: {str(value): _group(val, exit_index, np.flatnonzero(values == value)) for value in np.unique(values)}
        for name, values in splits.attributes("val").items()
    }


def correct_at(val: Outcomes, exit_index: np.ndarray) -> np.ndarray:
    """(n,) whether each image is classified rightly at the exit it takes."""
    return val.correct[exit_index, np.arange(len(exit_index))]


def _group(val: Outcomes, exit_index: np.ndarray, members: np.ndarray) -> Group:
    exits = exit_index[members]
    right = val.predicted[exits, members] == val.labels[members]
    fractions = np.bincount(exits, minlength=len(val.predicted)) / len(exits)
    return Group(count=len(exits), accuracy=float(100.0 * right.mean()), exit_fractions=fractions.tolist())
