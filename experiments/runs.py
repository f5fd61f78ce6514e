"""Runs on disk: one JSON per (recipe, seed) beside the results, and what is large in a folder of its own.

`RESULTS/runs/NAME-SEED.npz` has what every exit says of every image, from which the claims are computed, and
`NAME-SEED.json`, written last, all else that is known of the run. A run counts as done if both are there and belong to
the recipe as it is now; both are small and in the repository, so that a batch goes on in another clone.
`WORK/NAME-SEED/` holds the training with its checkpoints, which only measurements of speed need. Imports no MindSpore.

Axis letters: K exits, n images, C classes.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dvt.early_exit.outcomes import Outcomes
from dvt.early_exit.scores import CONFIDENCE, RULES
from dvt.safe_files import explained, replacing
from dvt.training.folder import WEIGHTS_FILE
from experiments.recipes import Recipe, find_recipe

RANDOM = "random"  # a rule for comparison: it knows nothing of the image
AVERAGED = "averaged_"
IDENTITY_FILE = "identity.txt"

log = logging.getLogger("dvt.experiments")


@dataclass(frozen=True)
class Run:
    """A complete run.

    Attributes:
        recipe: Name of the recipe.
        seed: Of the run.
        record: What its JSON holds; see `experiments.training.record_of`.
        val: Of the test images.
        calibration: Of the slice of the training images that was held out for thresholds.
        item_size: (n,) of the test images, in pixels; None where it is not known.
        averaged: The same run as if its model had `average_exits`: an exit answers with the mean of the exits so far.
    """

    recipe: str
    seed: int
    record: dict[str, Any]
    val: Outcomes
    calibration: Outcomes
    item_size: np.ndarray | None = None
    averaged: "Run | None" = None

    @property
    def gmacs(self) -> np.ndarray:
        """(K,) cumulative cost of an image, in GMACs."""
        return np.asarray(self.record["cumulative_gmacs"])


def pack(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """What claims need of the softmax outputs (K, n, C) of a split, in a few bytes per image and exit.

    Of each score s of an exit rule, at most 1, 1 - s is kept as float16: its steps are finest where most images are.
    """
    arrays = {"labels": labels.astype(np.uint8)}
    counts = np.arange(1, len(probabilities) + 1, dtype=np.float32)[:, None, None]
    for prefix, values in (("", probabilities), (AVERAGED, np.cumsum(probabilities, axis=0) / counts)):
        if prefix and len(values) == 1:
            continue
        found = Outcomes.of(values, labels)
        arrays[f"{prefix}predicted"] = found.predicted.astype(np.uint8)
        for rule in RULES if not prefix else (CONFIDENCE.name,):
            arrays[f"{prefix}{rule}"] = (1 - found.scores[rule]).astype(np.float16)
    return arrays


def _unpack(arrays: Mapping[str, np.ndarray], split: str, prefix: str = "") -> Outcomes:
    """The opposite of `pack`, for the images of one split."""
    kept = [rule for rule in RULES if f"{split}_{prefix}{rule}" in arrays]
    scores = {rule: 1 - arrays[f"{split}_{prefix}{rule}"].astype(np.float64) for rule in kept}
    predicted = arrays[f"{split}_{prefix}predicted"]
    scores[RANDOM] = np.random.default_rng([0, *predicted.shape]).random(predicted.shape, np.float32)
    return Outcomes(predicted, arrays[f"{split}_labels"], scores)


class Store:
    """Where runs are.

    Args:
        results: Folder of the JSONs, outputs and figures.
        work: Folder of the trainings.
    """

    def __init__(self, results: Path, work: Path) -> None:
        self.results, self.work = Path(results), Path(work)

    def folder(self, recipe: str, seed: int) -> Path:
        """Of the training of a run."""
        return self.work / f"{recipe}-{seed}"

    def is_done(self, recipe: Recipe, seed: int) -> bool:
        """Whether the run is complete, and of the recipe as it is now."""
        return self.record(recipe.name, seed) is not None

    def record(self, name: str, seed: int) -> dict[str, Any] | None:
        """The JSON of a complete run of the recipe as it is now, else None."""
        if not self._outputs_path(name, seed).is_file():
            return None
        return self.read_json(self._path(name, seed), find_recipe(name).identity)

    def load(self, name: str, seed: int) -> Run | None:
        """A complete run; None if it is not there, or is of the recipe as it was once."""
        record = self.record(name, seed)
        if record is None:
            return None
        with np.load(self._outputs_path(name, seed), allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}

        def made(prefix: str = "", averaged: Run | None = None) -> Run:
            val, calibration = _unpack(arrays, "val", prefix), _unpack(arrays, "calibration", prefix)
            return Run(name, seed, record, val, calibration, arrays.get("val_item_size"), averaged)

        return made(averaged=made(AVERAGED) if f"val_{AVERAGED}predicted" in arrays else None)

    def complete(self, names: Sequence[str], seeds: Sequence[int]) -> dict[str, list[Run]]:
        """Recipe -> its runs, of those seeds for which all the recipes are done; empty lists if there are none."""
        common = [seed for seed in seeds if all(self.is_done(find_recipe(name), seed) for name in names)]
        return {name: [self.load(name, seed) for seed in common] for name in names}

    def begin(self, recipe: Recipe, seed: int) -> Path:
        """The folder of a run that is to be trained or continued; what belongs to another recipe is removed."""
        folder = self.folder(recipe.name, seed)
        if folder.is_dir() and not self._trained(recipe, seed):
            log.warning(
                "%s is of another recipe than %s is now: it is trained again from the start", folder, recipe.name
            )
            shutil.rmtree(folder)
        note = folder / IDENTITY_FILE
        with explained(note):
            folder.mkdir(parents=True, exist_ok=True)
            note.write_text(recipe.identity, encoding="utf-8")
        return folder

    def finish(self, recipe: Recipe, seed: int, arrays: Mapping[str, np.ndarray], record: dict[str, Any]) -> None:
        """Writes what is left of a run, its JSON last.

        Args:
            recipe: What was trained.
            seed: Of the run.
            arrays: What `pack` gives, the names with `val_` and `calibration_` in front, and `val_item_size` (n,) where
                the data set knows it.
            record: What is to stand in the JSON.
        """
        outputs = self._outputs_path(recipe.name, seed)
        with explained(outputs):
            outputs.parent.mkdir(parents=True, exist_ok=True)
            with replacing(outputs) as written:
                np.savez_compressed(written, **arrays)
        self.write_json(self._path(recipe.name, seed), {"identity": recipe.identity, **record})

    def has_weights(self, recipes: Sequence[str], seed: int) -> bool:
        """Whether the trained models are in this clone, and not only what they answered."""
        return all(
            self._trained(find_recipe(name), seed) and (self.folder(name, seed) / WEIGHTS_FILE).is_file()
            for name in recipes
        )

    def save_timing(self, claim: str, recipes: Sequence[str], seed: int, record: dict[str, Any]) -> None:
        """Keeps the speeds measured for a claim."""
        self.write_json(self._timing_path(claim, seed), {"identity": _joint_identity(recipes), **record})

    def load_timing(self, claim: str, recipes: Sequence[str], seed: int) -> dict[str, Any] | None:
        """What `save_timing` has kept; None if there is nothing, or one of the recipes has changed since."""
        return self.read_json(self._timing_path(claim, seed), _joint_identity(recipes))

    def _trained(self, recipe: Recipe, seed: int) -> bool:
        """Whether the training folder, whole or not, is of the recipe as it is now."""
        note = self.folder(recipe.name, seed) / IDENTITY_FILE
        return note.is_file() and note.read_text(encoding="utf-8") == recipe.identity

    def _outputs_path(self, recipe: str, seed: int) -> Path:
        return self._path(recipe, seed).with_suffix(".npz")

    def _timing_path(self, claim: str, seed: int) -> Path:
        return self.results / "runs" / f"{claim}-speed-{seed}.json"

    def _path(self, recipe: str, seed: int) -> Path:
        return self.results / "runs" / f"{recipe}-{seed}.json"

    @staticmethod
    def read_json(path: Path, identity: str | None = None) -> dict[str, Any] | None:
        """What a file holds; None if it is missing, damaged or, with `identity`, of another one."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read (%s); it is made again", path, error)
            return None
        return values if identity is None or values.get("identity") == identity else None

    @staticmethod
    def write_json(path: Path, values: Mapping[str, Any]) -> None:
        """Whole or not at all. Raises DVTError."""
        with explained(path):
            os.makedirs(path.parent, exist_ok=True)
            with replacing(path) as written:
                written.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _joint_identity(recipes: Sequence[str]) -> str:
    return "+".join(find_recipe(name).identity for name in recipes)
