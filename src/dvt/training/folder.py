"""The folder of a run and the checkpoints in it. Only rank 0 writes.

config.yaml         the resolved configuration
last.ckpt           the newest weights, to evaluate and export (the moving average, if there is one)
best.ckpt           those of the epoch with the best last exit on the validation images; epoch_NNN.ckpt the best few
state.ckpt          what a resumed run needs (`dvt.training.state`); state_previous.ckpt the one before, in case the
                    newest is damaged
train.log           what the console showed
environment.json    what it ran with (`dvt.training.environment`)
metrics.csv, tensorboard/, curves.png    losses and accuracies (`dvt.training.metrics`)

Each file is replaced whole or not at all: one of the two states loads, whenever a run is killed.
"""

import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import numpy as np

from dvt.checkpoint.native import Checkpoint, read_checkpoint, save_checkpoint
from dvt.config.files import config_from_dict, config_to_dict, flattened, save_config
from dvt.config.sections import RunConfig
from dvt.errors import CheckpointError, ConfigError
from dvt.safe_files import explained, held, replacing

CONFIG_FILE = "config.yaml"
LOG_FILE = "train.log"
WEIGHTS_FILE = "last.ckpt"
BEST_FILE = "best.ckpt"
STATE_FILE = "state.ckpt"
PREVIOUS_STATE_FILE = "state_previous.ckpt"
DAMAGED_STATE_FILE = "state_damaged.ckpt"

# Keys of the recipe that a resumed run may change: they do not change what is computed.
MAY_CHANGE = (
    *("data.max_bad_images", "data.on_bad_image", "data.path", "data.workers", "data.worker_type"),
    *("train.checkpoint_every_epochs", "train.dataset_sink_mode", "train.init_checkpoint", "train.keep_best"),
    "train.max_failed_batches",
)
RECIPE_SECTIONS = ("model", "data", "augment", "train")

Weights = Mapping[str, np.ndarray]
Ranked = tuple[float, int]
"""Accuracy in percent of an epoch, and its number."""

log = logging.getLogger(__name__)


class RunFolder:
    """The run folder of a configuration, for one rank, which makes it and writes to it or does not; `opened` makes one.

    Nothing is written before `begin`, so that a start that is refused leaves no folder.
    """

    def __init__(self, config: RunConfig, writes: bool) -> None:
        self.path = Path(config.output)
        self._config, self._writes = config, writes
        self._log = MemoryHandler(sys.maxsize, flushLevel=sys.maxsize)  # keeps what is logged until `begin`

    @classmethod
    @contextlib.contextmanager
    def opened(cls, config: RunConfig, writes: bool) -> Iterator["RunFolder"]:
        """Holds the folder against other runs until the block ends, and logs to `train.log` what this package logs.

        Raises:
            CheckpointError: The run is to be resumed, and there is none.
            ConfigError: There is a run, and it is not to be resumed; another process trains there at this moment; or
                the folder cannot be written to.
        """
        folder = cls(config, writes)
        if not writes:
            folder._check()
            yield folder
            return
        logger = logging.getLogger("dvt")
        level = logger.level
        with held(folder.path, "a training run"):
            folder._check()
            if level == logging.NOTSET:  # called from Python rather than from the command line, which sets it
                logger.setLevel(logging.INFO)
            logger.addHandler(folder._log)
            try:
                yield folder
            finally:
                logger.setLevel(level)
                logger.removeHandler(folder._log)
                if folder._log.target is not None:
                    folder._log.target.close()

    def _check(self) -> None:
        states = [name for name in (STATE_FILE, PREVIOUS_STATE_FILE) if (self.path / name).exists()]
        weights = [name for name in (WEIGHTS_FILE, BEST_FILE) if (self.path / name).exists()]
        if self._config.resume and not states:
            raise CheckpointError(
                f"cannot resume: there is no {self.path / STATE_FILE}; leave --resume out to start from the beginning"
            )
        if not self._config.resume and (states or weights) and self._writes:
            raise ConfigError(f"{self.path} already holds a run; continue it with --resume, or choose another --output")

    def begin(self) -> None:
        """Writes the resolved configuration and what was logged so far, once all checks are passed."""
        if self._writes:
            with explained(self.path / CONFIG_FILE):
                save_config(replace(self._config, resume=False), self.path / CONFIG_FILE)
            with explained(self.path / LOG_FILE, ConfigError):
                self._log.setTarget(_LogFile(self.path / LOG_FILE, encoding="utf-8", errors="backslashreplace"))
            self._log.capacity = 1  # from now on nothing waits
            self._log.flush()

    def save_weights(self, weights: Weights, metadata: dict[str, Any]) -> None:
        """Saves the newest weights."""
        if self._writes:
            save_checkpoint(self.path / WEIGHTS_FILE, weights, metadata)

    def save_state(self, tensors: Weights, metadata: dict[str, Any]) -> None:
        """Saves what a resumed run needs, and keeps the state before it."""
        if not self._writes:
            return
        newest = self.path / STATE_FILE
        if newest.exists():  # from here until the new state is whole, both names are those of the old one
            _replace_by_link(self.path / PREVIOUS_STATE_FILE, newest)
        save_checkpoint(newest, tensors, metadata)

    def keep_best(
        self, best: Sequence[Ranked], entry: Ranked, weights: Weights, metadata: dict[str, Any]
    ) -> list[Ranked]:
        """Keeps the weights of an epoch if it is among the best few (`train.keep_best`), and removes what no longer is.

        Args:
            best: The epochs kept so far.
            entry: The epoch, by the accuracy of its last exit on the validation images.
            weights: The weights that were evaluated.
            metadata: Of the file.

        Returns the epochs that are kept now, best first; of equally good ones the earlier goes first.
        """
        ranked = sorted({*best, entry}, key=lambda each: (-each[0], each[1]))
        kept, dropped = ranked[: self._config.train.keep_best], ranked[self._config.train.keep_best :]
        if self._writes and entry in kept:
            accuracy, epoch = entry
            save_checkpoint(self._of_epoch(epoch), weights, {**metadata, "val_accuracy": accuracy})
            if entry == kept[0]:
                _replace_by_link(self.path / BEST_FILE, self._of_epoch(epoch))
        if self._writes:
            for _, epoch in dropped:
                self._of_epoch(epoch).unlink(missing_ok=True)
        return kept

    def read_state(self) -> Checkpoint:
        """The newest state that is intact, of the same recipe.

        Raises:
            CheckpointError: Neither state can be read.
            ConfigError: The run was begun with another recipe; the key is named.
        """
        newest, previous = self.path / STATE_FILE, self.path / PREVIOUS_STATE_FILE
        try:
            path, checkpoint = newest, read_checkpoint(newest)
        except CheckpointError as error:
            if not previous.exists():
                raise
            path, checkpoint = previous, read_checkpoint(previous)
            log.warning("%s; going on from %s, the state before it", error, previous)
            if self._writes and newest.exists():
                os.replace(newest, self.path / DAMAGED_STATE_FILE)
        _check_same(self._config, checkpoint.metadata.get("config", {}), path)
        return checkpoint

    def last_good(self) -> str:
        """A sentence on the newest weights, for error messages."""
        path = self.path / WEIGHTS_FILE
        return f"The last good weights are in {path}" if path.exists() else "No weights had been saved yet"

    def _of_epoch(self, epoch: int) -> Path:
        return self.path / f"epoch_{epoch:03d}.ckpt"


class _LogFile(logging.FileHandler):
    """Stops when the file cannot be written (the disk is full): then only the console shows what is logged."""

    formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is Python's
        self.addFilter(lambda record: False)
        log.warning("%s is incomplete: it cannot be written any more", self.baseFilename)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what is still buffered does not fit either
            super().close()


def _replace_by_link(path: Path, target: Path) -> None:
    """Makes `path` another name of the file `target`, in one step; a copy where the file system has no links."""
    with explained(path), replacing(path) as written:
        try:
            os.link(target, written)
        except OSError:
            shutil.copyfile(target, written)


def _check_same(config: RunConfig, saved: dict[str, Any], path: Path) -> None:
    """Refuses to resume with another recipe: epochs and learning rates would silently be others."""
    # Keys that are newer than the run have their defaults in it.
    before = flattened(config_to_dict(config_from_dict(saved, f"the configuration stored in {path}")))
    for key, value in flattened(config_to_dict(config)).items():
        recipe = key == "seed" or key.split(".")[0] in RECIPE_SECTIONS
        if recipe and key not in MAY_CHANGE and before.get(key) != value:
            raise ConfigError(
                f"{key} is {value!r}, but the run in {path} was begun with {before.get(key)!r}; resume with the "
                f"configuration in {CONFIG_FILE} beside it, or start a new run"
            )
