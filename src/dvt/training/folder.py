"""The folder of a run and the checkpoints in it. Only rank 0 writes.

config.yaml         the resolved configuration
last.ckpt           the newest weights, to evaluate and export (the moving average, if there is one)
best.ckpt           those of the epoch with the best last exit on the validation images; epoch_NNN.ckpt the best few
state.ckpt          what a resumed run needs (`dvt.training.state`); state_previous.ckpt the one before, in case the
                    newest is damaged
train.log           what the console showed
environment.json    what it ran with: the versions, command, device and revision of every start
metrics.csv, tensorboard/    losses and accuracies (`dvt.training.metrics`)

Each file is replaced whole or not at all: one of the two states loads, whenever a run is killed.
"""

import contextlib
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from importlib import metadata as installed
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
ENVIRONMENT_FILE = "environment.json"
GIT_SECONDS = 10  # a working tree on a slow network disk must not hold up the run

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
    """The run folder of a configuration, for a rank that writes to it or does not; `opened` makes one. Nothing is
    written before `begin`, so that a start that is refused leaves no folder."""

    def __init__(self, config: RunConfig, writes: bool) -> None:
        self.path = Path(config.output)
        self._config, self._writes = config, writes
        self._log = MemoryHandler(sys.maxsize, flushLevel=sys.maxsize)  # keeps what is logged until `begin`

    @classmethod
    @contextlib.contextmanager
    def opened(cls, config: RunConfig, writes: bool) -> Iterator["RunFolder"]:
        """Holds the folder against other runs until the block ends, and logs to `train.log` what this package logs.

        Raises CheckpointError if a run is to be resumed and there is none, and ConfigError if one is not to be resumed
        and is there, another process trains there at this moment, or the folder cannot be written to.
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
                file = _LogFile(self.path / LOG_FILE, encoding="utf-8", errors="backslashreplace")
            file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            self._log.setTarget(file)
            self._log.capacity = 1  # from now on nothing waits
            self._log.flush()

    def save_weights(self, weights: Weights, metadata: dict[str, Any]) -> None:
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
        """Keeps the weights of the epoch `entry` if it is among the best few (`train.keep_best`), and removes what no
        longer is. Returns the epochs kept after those in `best`: best first, of equally good ones the earlier first."""
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
        """The newest state that is intact. Raises CheckpointError if there is none, and ConfigError, naming the key, if
        the run was begun with another recipe."""
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


def write_environment(folder: Path, device: str) -> None:
    """Adds this start, on the `device` in words, to `environment.json` in `folder`. Raises DVTError if it cannot be
    written. The revision is that of this package's checkout, null where it is none or git is missing."""
    path, starts = folder / ENVIRONMENT_FILE, []
    if path.exists():
        try:
            starts = list(json.loads(path.read_text(encoding="utf-8"))["starts"])
        except (ValueError, KeyError, TypeError):
            log.warning("%s cannot be read; a new one replaces it", path)
    packages = {each.metadata["Name"]: each.version for each in installed.distributions() if each.metadata["Name"]}
    start = {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "folder": os.getcwd(),
        "device": device,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git": git_state(Path(__file__).resolve().parents[3]),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }
    with explained(path), replacing(path) as written:
        written.write_text(json.dumps({"starts": [*starts, start]}, indent=2) + "\n", encoding="utf-8")


def git_state(root: Path) -> dict[str, Any] | None:
    """`revision` and whether tracked files differ from it (`dirty`), if `root` is the top of a git checkout: an
    installed package may lie inside somebody else's."""
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    revision, _, dirty = done.stdout.strip().partition("-")
    return {"revision": revision, "dirty": bool(dirty)}
