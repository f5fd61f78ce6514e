"""The table of recipes: what is trained. Imports no framework.

A recipe is a YAML file of this folder with a few keys laid over it. Static models get the training budget of the
dynamic one: three exits for E epochs cost 28.77 E, the three single models of the same grids 22.04 E' (million
multiply-adds of the forward pass per image, of which training takes about three times as many). E = 6 and E' = 8 differ
by 2 %, so the static models have 2 % fewer images; E = 60 and E' = 78, on the small data set, differ by 0.4 %.
"""

import copy
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dvt.config import RunConfig
from dvt.config.files import config_from_dict, did_you_mean, read_yaml
from dvt.errors import ConfigError

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
FORMAT = 1
"""Of a run's files. A new number makes all runs void: for changes of what a run means, not of what its file holds."""


@dataclass(frozen=True)
class Recipe:
    """What is trained.

    Args:
        name: Of the recipe, and of the files of its runs.
        about: In a few words, as tables have it.
        base: YAML file of this folder.
        changes: Dotted keys laid over it.
        minutes: Estimate of one run, evaluation included, on one quiet core.
        start: Recipe whose weights, of the same seed, it begins with.
    """

    name: str
    about: str
    base: str = "scale"
    changes: dict[str, Any] = field(default_factory=dict)
    minutes: float = 7.0
    start: str | None = None

    @property
    def chain(self) -> list[str]:
        """What is trained one after the other: the recipes that it starts from, and itself."""
        return [*(find_recipe(self.start).chain if self.start else ()), self.name]

    @cached_property
    def content(self) -> dict[str, Any]:
        """The keys that the recipe names; all others have their defaults."""
        content: dict[str, Any] = {}
        for key, value in (read_yaml(FOLDER / f"{self.base}.yaml") | self.changes).items():
            section, _, leaf = key.rpartition(".")
            (content.setdefault(section, {}) if section else content)[leaf] = value
        return content

    @property
    def identity(self) -> str:
        """Changes with the content. Defaults are left out, so that new keys do not make earlier runs void."""
        start = {"start": find_recipe(self.start).identity} if self.start else {}
        text = json.dumps({"format": FORMAT, "recipe": self.content} | start, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def config(self, seed: int, output: str) -> RunConfig:
        """The configuration of one run. Raises ConfigError."""
        values = copy.deepcopy(self.content) | {"seed": seed, "output": output, "device_target": "CPU"}
        path = values["data"].get("path")
        if path is not None:
            values["data"]["path"] = str(ROOT / path)
        return config_from_dict(values, f"the recipe {self.name}")


STATIC = {"train.epochs": 8, "data.train_images": 12544}
STATIC_EMOJI = {"train.epochs": 78, "train.checkpoint_every_epochs": 13}


def _static(grid: int, keys: dict[str, Any]) -> dict[str, Any]:
    return {"model.grid_sizes": [grid], **keys}


FIRST = {"model.grid_sizes": [3]}
STAGED = {"train.exit_lr_scales": [0, 1, 1], "train.init_exits": 1, "model.average_exits": True}
STAGED |= {"train.epochs": 5, "data.train_images": 12000}
"""The other exits, from random values, after the first one was trained alone, which stays as it is.

24 epochs of the first exit and 5 of all, of 6 % fewer images, cost as much as 6 of all.
"""

DISTILLATION = {"train.distillation": 1.0, "train.distillation_temperature": 2.0}
COARSE_FIRST = {"train.epochs": 8, "train.coarse_first_epochs": 2}
"""The two epochs more cost 1.8 % of the training budget. Its runs are of 0.1.0; later versions refuse it."""

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("baseline", "three exits, both reuses"),
        Recipe("first_exit", "one exit, 3x3, 24 epochs", changes=FIRST | {"train.epochs": 24}, minutes=2.0),
        Recipe(
            "staged",
            "three exits, both reuses, the first exit trained before",
            changes=STAGED,
            start="first_exit",
        ),
        *(
            Recipe(f"static_{grid}", f"one exit, {grid}x{grid}", "scale", _static(grid, STATIC), minutes)
            for grid, minutes in ((3, 0.8), (6, 1.6), (9, 3.5))
        ),
        Recipe(
            "no_reuse",
            "no reuse",
            changes={"model.feature_reuse": False, "model.relation_reuse": False},
            minutes=5.0,
        ),
        Recipe("features_only", "features", changes={"model.relation_reuse": False}, minutes=6.0),
        Recipe("relations_only", "relations", changes={"model.feature_reuse": False}, minutes=6.0),
        Recipe("two_exits", "two exits, 3x3 and 9x9", changes={"model.grid_sizes": [3, 9]}, minutes=4.5),
        Recipe("distillation", "distillation from the last exit", changes=DISTILLATION),
        Recipe("early_weights", "losses weighted 2 : 1 : 0.5", changes={"train.exit_weights": [2.0, 1.0, 0.5]}),
        Recipe("late_weights", "losses weighted 0.5 : 1 : 2", changes={"train.exit_weights": [0.5, 1.0, 2.0]}),
        Recipe("coarse_first", "two epochs of the first exit first", changes=COARSE_FIRST, minutes=7.5),
        Recipe("shared_blocks", "block weights shared by the exits", changes={"model.share_blocks": True}, minutes=7.5),
        Recipe("emoji", "three exits, both reuses", "emoji", minutes=5.5),
        *(
            Recipe(
                f"emoji_static_{grid}",
                f"one exit, {grid}x{grid}",
                "emoji",
                _static(grid, STATIC_EMOJI),
                minutes,
            )
            for grid, minutes in ((3, 1.3), (6, 2.0), (9, 3.5))
        ),
        Recipe("smoke", "two exits", "smoke", minutes=0.2),
        Recipe("smoke_static", "one exit, 3x3", "smoke", _static(3, {}), minutes=0.2),
    )
}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises ConfigError, naming the nearest one."""
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}{did_you_mean(name, list(RECIPES))}")
    return RECIPES[name]
