"""What all exits say of many images, reduced to what questions about thresholds need, and the file that keeps it.

`predictions.npz`, written by the evaluation, answers later what other thresholds would have given: `dvt thresholds`.
Plain NumPy. Axis letters: K exits, n images, C classes.

The file holds, for the validation images and, with the prefix `calibration_`, for the calibration images: `labels`
(n,), `predicted` (K, n), and `confidence`, `entropy`, `margin` (K, n), the scores of the exit rules. Besides, where
known: `exit_index` (n,) and `thresholds` (K,) of the recommended setting, `cumulative_gmacs` (K,), `cumulative_seconds`
(K,) measured per image, `temperatures` (K,) that the scores were taken at, and `probabilities` (K, n, C) before them.
"""

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dvt.early_exit.rules import RANDOM, RULES, ExitRule, random_scores, stacked_scores
from dvt.errors import ConfigError, DataError
from dvt.safe_files import explained, replacing

PREDICTIONS_FILE = "predictions.npz"
_CALIBRATION = "calibration_"


@dataclass(frozen=True)
class Outcomes:
    """What every exit says of the images of one split.

    Attributes:
        predicted: (K, n) most probable class.
        labels: (n,) true class.
        scores: Rule name -> (K, n) scores.
    """

    predicted: np.ndarray
    labels: np.ndarray
    scores: dict[str, np.ndarray]

    @classmethod
    def of(
        cls, probabilities: np.ndarray, labels: np.ndarray, temperatures: Sequence[float] | None = None
    ) -> "Outcomes":
        """From softmax outputs (K, n, C), scored at `temperatures` (K,)."""
        scaled = None if temperatures is None else tuple(temperatures)
        scores = {name: stacked_scores(ExitRule(name, scaled), probabilities) for name in RULES}
        return cls(probabilities.argmax(axis=2), np.asarray(labels), scores)

    @classmethod
    def joined(cls, parts: Sequence["Outcomes"]) -> "Outcomes":
        """The images of all parts, in order."""
        return cls(
            np.concatenate([part.predicted for part in parts], axis=1),
            np.concatenate([part.labels for part in parts]),
            {name: np.concatenate([part.scores[name] for part in parts], axis=1) for name in parts[0].scores},
        )

    @property
    def correct(self) -> np.ndarray:
        """(K, n) bool."""
        return self.predicted == self.labels

    @property
    def accuracy(self) -> list[float]:
        """Top-1 in percent per exit, every image taken at that exit ("anytime")."""
        return (100.0 * self.correct.mean(axis=1)).tolist()

    def scores_of(self, rule: str) -> np.ndarray:
        """(K, n) scores of a rule, or of "random"."""
        return random_scores(*self.predicted.shape) if rule == RANDOM else self.scores[rule]


@dataclass(frozen=True)
class Predictions:
    """The content of `predictions.npz`; see the head of this module."""

    val: Outcomes
    cumulative_gmacs: np.ndarray
    calibration: Outcomes | None = None
    cumulative_seconds: np.ndarray | None = None
    temperatures: np.ndarray | None = None
    thresholds: np.ndarray | None = None
    exit_index: np.ndarray | None = None
    probabilities: np.ndarray | None = None

    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all. Raises ConfigError for a place that cannot be written."""
        arrays = _split_arrays(self.val, "")
        if self.calibration is not None:
            arrays |= _split_arrays(self.calibration, _CALIBRATION)
        names = ("cumulative_gmacs", "cumulative_seconds", "temperatures", "thresholds", "exit_index", "probabilities")
        arrays |= {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        with explained(path, ConfigError), replacing(path) as written:
            np.savez_compressed(written, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Predictions":
        """Reads the file, but for the probabilities. Raises DataError, naming the cause."""
        path = Path(path)
        if path.is_dir():
            path = path / PREDICTIONS_FILE
        if not path.is_file():
            raise DataError(f"there is no {path}; `dvt eval` writes {PREDICTIONS_FILE} beside its report")
        try:
            with np.load(path, allow_pickle=False) as stored:
                there = set(stored.files)
                val = _read_split(stored, "")
                calibration = _read_split(stored, _CALIBRATION) if f"{_CALIBRATION}labels" in there else None
                names = ("cumulative_seconds", "temperatures", "thresholds", "exit_index")
                rest = {name: stored[name] if name in there else None for name in names}
                return cls(val, stored["cumulative_gmacs"], calibration, **rest)
        except KeyError as error:
            raise DataError(f"{path} lacks {error.args[0]}; it is of another version, evaluate again") from error
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is not a predictions file, or only part of one: {error}") from error


def _split_arrays(outcomes: Outcomes, prefix: str) -> dict[str, np.ndarray]:
    arrays = {"labels": outcomes.labels, "predicted": outcomes.predicted.astype(np.int32), **outcomes.scores}
    return {prefix + name: value for name, value in arrays.items()}


def _read_split(stored: np.lib.npyio.NpzFile, prefix: str) -> Outcomes:
    scores = {name: stored[prefix + name] for name in RULES}
    return Outcomes(stored[f"{prefix}predicted"], stored[f"{prefix}labels"], scores)
