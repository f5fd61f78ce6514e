"""Runs on disk: one JSON per (recipe, seed) beside the results, and what is large in a folder of its own.

`RESULTS/runs/NAME-SEED.json` is written when a run is complete. `WORK/NAME-SEED/` holds the training folder with its
checkpoints and `outputs.npz`, the probabilities of all exits, from which the claims are computed. A run counts as done
if both are there and belong to the recipe as it is now. Imports no MindSpore.

Axis letters: K exits, n images, C classes.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dvt.outcomes import Outcomes
from dvt.safe_files import explained, replacing
from experiments.recipes import Recipe, find_recipe

OUTPUTS_FILE = "outputs.npz"
IDENTITY_FILE = "identity.txt"

log = logging.getLogger("dvt.experiments")


@dataclass(frozen=True)
class Run:
    """A complete run.

    Attributes:
        recipe: Name of the recipe.
        seed: Of the run.
        record: What its JSON holds; see `experiments.training.record_of`.
        arrays: `val_` and `calibration_`: `probabilities` (K, n, C) and `labels` (n,), and, where the data set knows
            them, `val_item_size` (n,).
    """

    recipe: str
    seed: int
    record: dict[str, Any]
    arrays: Mapping[str, np.ndarray]

    @property
    def gmacs(self) -> np.ndarray:
        """(K,) cumulative cost of an image, in GMACs."""
        return np.asarray(self.record["cumulative_gmacs"])

    @property
    def item_size(self) -> np.ndarray | None:
        """(n,) of the test images, in pixels; None where it is not known."""
        return self.arrays.get("val_item_size")

    @cached_property
    def val(self) -> Outcomes:
        """Of the test images."""
        return Outcomes.of(self.arrays["val_probabilities"], self.arrays["val_labels"])

    @cached_property
    def calibration(self) -> Outcomes:
        """Of the slice of the training images that was held out for thresholds."""
        return Outcomes.of(self.arrays["calibration_probabilities"], self.arrays["calibration_labels"])


class Store:
    """Where runs are.

    Args:
        results: Folder of the JSONs and figures.
        work: Folder of checkpoints and outputs.
    """

    def __init__(self, results: Path, work: Path) -> None:
        self.results, self.work = Path(results), Path(work)

    def folder(self, recipe: str, seed: int) -> Path:
        """Of the training and the outputs of a run."""
        return self.work / f"{recipe}-{seed}"

    def is_done(self, recipe: Recipe, seed: int) -> bool:
        """Whether the run is complete, and of the recipe as it is now."""
        outputs = self.folder(recipe.name, seed) / OUTPUTS_FILE
        return self.read_json(self._path(recipe.name, seed), recipe.identity) is not None and outputs.is_file()

    def load(self, name: str, seed: int) -> Run | None:
        """A complete run; None if it is not there, or is of the recipe as it was once."""
        recipe = find_recipe(name)
        if not self.is_done(recipe, seed):
            return None
        with np.load(self.folder(name, seed) / OUTPUTS_FILE, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
        return Run(name, seed, self.read_json(self._path(name, seed), recipe.identity), arrays)

    def complete(self, names: Sequence[str], seeds: Sequence[int]) -> dict[str, list[Run]]:
        """Recipe -> its runs, of those seeds for which all the recipes are done; empty lists if there are none."""
        common = [seed for seed in seeds if all(self.is_done(find_recipe(name), seed) for name in names)]
        return {name: [self.load(name, seed) for seed in common] for name in names}

    def begin(self, recipe: Recipe, seed: int) -> Path:
        """The folder of a run that is to be trained or gone on with; what belongs to another recipe is removed."""
        folder = self.folder(recipe.name, seed)
        note = folder / IDENTITY_FILE
        if folder.is_dir() and not (note.is_file() and note.read_text(encoding="utf-8") == recipe.identity):
            log.warning("%s is of another recipe than %s is now: it is trained afresh", folder, recipe.name)
            shutil.rmtree(folder)
        with explained(note):
            folder.mkdir(parents=True, exist_ok=True)
            note.write_text(recipe.identity, encoding="utf-8")
        return folder

    def finish(self, recipe: Recipe, seed: int, arrays: Mapping[str, np.ndarray], record: dict[str, Any]) -> None:
        """Writes what is left of a run, its JSON last."""
        outputs = self.folder(recipe.name, seed) / OUTPUTS_FILE
        with explained(outputs), replacing(outputs) as written:
            np.savez_compressed(written, **arrays)
        self.write_json(self._path(recipe.name, seed), {"identity": recipe.identity, **record})

    def save_timing(self, claim: str, recipes: Sequence[str], seed: int, record: dict[str, Any]) -> None:
        """Keeps the speeds measured for a claim."""
        self.write_json(self._timing_path(claim, seed), {"identity": _joint_identity(recipes), **record})

    def load_timing(self, claim: str, recipes: Sequence[str], seed: int) -> dict[str, Any] | None:
        """What `save_timing` has kept; None if there is nothing, or one of the recipes has changed since."""
        return self.read_json(self._timing_path(claim, seed), _joint_identity(recipes))

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
            log.warning("%s cannot be read (%s); it is made anew", path, error)
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
