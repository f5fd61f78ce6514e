"""What all exits say of many images, reduced to what questions about thresholds need, and the file that keeps it.

The arrays of `predictions.npz`, which `dvt thresholds` reads, have the names of the fields here, those of calibration
images with `calibration_` in front. Plain NumPy. Axis letters: K exits, n images, C classes.
"""

import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dvt.early_exit.candidates import CalibrationSet
from dvt.early_exit.decisions import confidence
from dvt.early_exit.scores import RULES, ExitRule
from dvt.errors import ConfigError, DataError, listing, reason_of, work_begun
from dvt.safe_files import content_of, explained, replacing

PREDICTIONS_FILE = "predictions.npz"
ANY_NETWORK = (
    "confidence (K exits, n images), predicted (K, n) in whole numbers, cost (K,) of leaving at each exit with those "
    "before it, and labels (n,) for all risks but changes"
)
OPTIONAL = ("largest", "probabilities", "restricted")
_CALIBRATION = "calibration_"  # before the names of the calibration images' arrays
_STORED = ("labels", "predicted", *RULES)
_OPTIONAL = ("cumulative_seconds", "temperatures", "thresholds", "exit_index")


@dataclass(frozen=True)
class Outcomes:
    """What every exit says of the images of one split: some 20 bytes per image and exit without `probabilities`."""

    predicted: np.ndarray  # (K, n) most probable class
    labels: np.ndarray  # (n,) true class
    scores: dict[str, np.ndarray]  # rule name -> (K, n)
    largest: np.ndarray | None = None  # (K, n) largest probability, at no temperature
    probabilities: np.ndarray | None = None  # (K, n, C) at no temperature
    restricted: np.ndarray | None = None  # (K, n) most probable of the classes present, where some are not

    @classmethod
    def of(
        cls,
        probabilities: np.ndarray,
        labels: np.ndarray,
        temperatures: Sequence[float] | None = None,
        keep_probabilities: bool = False,
        present: np.ndarray | None = None,
    ) -> "Outcomes":
        """From softmax outputs (K, n, C), scored at `temperatures` (K,). Raises DataError if they are not finite.

        `present` are the classes that the images show, where these are not all.
        """
        largest = confidence(probabilities)
        rules = [ExitRule(name, temperatures) for name in RULES]
        scores = {rule.name: np.stack([rule.scores(k, each) for k, each in enumerate(probabilities)]) for rule in rules}
        predicted = probabilities.argmax(axis=2).astype(np.int32)
        restricted = None if present is None else present[probabilities[..., present].argmax(axis=2)].astype(np.int32)
        kept = probabilities if keep_probabilities else None
        return cls(predicted, np.asarray(labels), scores, largest, kept, restricted)

    @classmethod
    def joined(cls, parts: Sequence["Outcomes"]) -> "Outcomes":
        """The images of all parts, in order."""
        arrays = [part.to_arrays() for part in parts]
        return cls.from_arrays(
            {name: np.concatenate([each[name] for each in arrays], _axis(name)) for name in arrays[0]}
        )

    def chosen(self, images: np.ndarray) -> "Outcomes":
        """Some of the images, by their places or as a mask (n,)."""
        places = np.arange(len(self.labels))[images]
        return self.from_arrays({name: array.take(places, _axis(name)) for name, array in self.to_arrays().items()})

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All that is known, by name."""
        arrays = {"labels": self.labels, "predicted": self.predicted, **self.scores}
        arrays |= {name: getattr(self, name) for name in OPTIONAL}
        return {name: array for name, array in arrays.items() if array is not None}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], prefix: str = "") -> "Outcomes":
        """The inverse of `to_arrays`, for names that start with `prefix`. Raises KeyError for a missing name."""
        predicted, labels, *scores = (arrays[prefix + name] for name in ("predicted", "labels", *RULES))
        optional = (arrays.get(prefix + name) for name in OPTIONAL)
        return cls(predicted, labels, dict(zip(RULES, scores, strict=True)), *optional)

    @property
    def correct(self) -> np.ndarray:
        """(K, n) bool."""
        return self.predicted == self.labels

    @property
    def accuracy(self) -> list[float]:
        """Top-1 in percent per exit, every image taken at that exit ("anytime")."""
        return (100.0 * self.correct.mean(axis=1)).tolist()


def _axis(name: str) -> int:
    """That of the images: arrays are (n,), (K, n) or (K, n, C)."""
    return 0 if name == "labels" else 1


@dataclass(frozen=True)
class StoredPredictions:
    """The content of `predictions.npz`, what is known of it."""

    val: Outcomes
    cumulative_gmacs: np.ndarray  # (K,)
    calibration: Outcomes | None = None
    cumulative_seconds: np.ndarray | None = None  # (K,) measured, of an image
    temperatures: np.ndarray | None = None  # (K,) that the scores were taken at
    thresholds: np.ndarray | None = None  # (K,) of the recommended setting
    exit_index: np.ndarray | None = None  # (n,) that the validation images take with them
    unfit: str = "the file does not say whether the model was trained on them; evaluate again"
    """Why the calibration images can certify nothing, if there is a reason."""

    @work_begun()
    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all. Raises ConfigError for a place that cannot be written."""
        val, calibration = self.val.to_arrays(), self.calibration.to_arrays() if self.calibration else {}
        arrays = {name: val[name] for name in (*_STORED, "probabilities") if name in val}
        arrays |= {_CALIBRATION + name: calibration[name] for name in _STORED if name in calibration}
        arrays |= {name: value for name in _OPTIONAL if (value := getattr(self, name)) is not None}
        with explained(path, ConfigError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as written:
                np.savez_compressed(written, cumulative_gmacs=self.cumulative_gmacs, unfit=self.unfit, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "StoredPredictions":
        """Reads the file or that of a folder, without the probabilities. Raises DataError, naming the cause."""
        return cls.from_arrays(read_arrays(path), path)

    @classmethod
    def from_arrays(cls, stored: Mapping[str, np.ndarray], path: str | os.PathLike) -> "StoredPredictions":
        """From what `read_arrays` found. Raises DataError, naming what is missing."""
        try:
            return cls(
                val=Outcomes.from_arrays(stored),
                cumulative_gmacs=stored["cumulative_gmacs"],
                calibration=Outcomes.from_arrays(stored, _CALIBRATION) if f"{_CALIBRATION}labels" in stored else None,
                unfit=str(stored.get("unfit", cls.unfit)),
                **{name: stored[name] for name in _OPTIONAL if name in stored},
            )
        except KeyError as error:
            raise DataError(f"{path} lacks what this version needs ({error.args[0]}); evaluate again") from error


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All arrays of a file, or of the predictions in a folder, without the probabilities. Raises DataError."""
    path = Path(path)
    path = path / PREDICTIONS_FILE if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"there is no {path}; `dvt eval` writes {PREDICTIONS_FILE} beside its report")
    try:
        with np.load(path, allow_pickle=False) as file:
            names = file.files
            arrays = {name: file[name] for name in names if name != "probabilities"}
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason_of(error)}") from error
    except (ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        kind, described = content_of(path)
        what = f"but {described}" if kind not in ("arrays", "") else "or only part of one"
        raise DataError(
            f"{path} is not a predictions file, {what}; give {PREDICTIONS_FILE} of an evaluation, or a "
            f"file of np.savez with {ANY_NETWORK}"
        ) from error
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"{path} holds {listing(twice)} more than once; write it again with np.savez")
    return arrays


def of_any_network(arrays: Mapping[str, np.ndarray], path: str | os.PathLike) -> CalibrationSet:
    """The arrays of a file that any framework wrote (`ANY_NETWORK`). Raises DataError, ConfigError."""
    kinds = {"confidence": "fiu", "predicted": "iu", "cost": "fiu", "labels": "iu"}
    for name, kind in kinds.items():
        if name in arrays and arrays[name].dtype.kind not in kind:
            raise DataError(f"{path}: {name} has type {arrays[name].dtype}; the file needs {ANY_NETWORK}")
    if missing := [name for name in kinds if name not in arrays and name != "labels"]:
        held = listing(arrays, shown=9) or "nothing"
        raise DataError(f"{path} lacks {listing(missing)}: it holds {held}, not {ANY_NETWORK}")
    if (arrays["cost"] < 0).any():
        raise DataError(f"{path}: cost is {arrays['cost'].tolist()}; no exit costs less than nothing")
    for name in ("labels", "predicted"):
        if name in arrays and (below := int((arrays[name] < 0).sum())):
            raise DataError(f"{path}: {below:,} {name} are below 0, as no class is; leave these images out")
    try:
        return CalibrationSet(arrays["confidence"], arrays["predicted"], arrays["cost"], arrays.get("labels"))
    except (ConfigError, DataError) as error:
        raise type(error)(f"{path}: {error}; the file needs {ANY_NETWORK}") from error


Predictions = StoredPredictions  # its name in 0.1.0
