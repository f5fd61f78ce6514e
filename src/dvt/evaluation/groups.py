"""Accuracy and exits of groups of images: classes, and what a data set knows of its images besides the class."""

from typing import Any

import numpy as np

from dvt.data import Splits
from dvt.early_exit.outcomes import Outcomes


def by_class(val: Outcomes, exit_index: np.ndarray, class_names: tuple[str, ...]) -> dict[str, Any]:
    """Class name -> count, accuracy, exit fractions; classes without images are left out. `exit_index` is (n,)."""
    correct = correct_at(val, exit_index)
    groups = {name: val.labels == label for label, name in enumerate(class_names)}
    return {name: _group(val, exit_index, correct, members) for name, members in groups.items() if members.any()}


def by_attribute(val: Outcomes, exit_index: np.ndarray, splits: Splits) -> dict[str, Any]:
    """Attribute -> value -> count, accuracy, exit fractions."""
    correct = correct_at(val, exit_index)
    return {
        key: {str(value): _group(val, exit_index, correct, values == value) for value in np.unique(values)}
        for key, values in splits.attributes("val").items()
    }


def correct_at(val: Outcomes, exit_index: np.ndarray) -> np.ndarray:
    """(n,) whether each image is classified rightly at the exit it takes."""
    return val.correct[exit_index, np.arange(len(exit_index))]


def _group(val: Outcomes, exit_index: np.ndarray, correct: np.ndarray, members: np.ndarray) -> dict[str, Any]:
    """Accuracy in percent and share of each exit, over the images of one group."""
    exits = exit_index[members]
    return {
        "count": int(members.sum()),
        "accuracy": float(100.0 * correct[members].mean()),
        "exit_fractions": (np.bincount(exits, minlength=len(val.predicted)) / len(exits)).tolist(),
    }
