"""Every exit on every image of a split, with progress, and going on after an interruption.

Axis letters: K exits, B images of a batch, n images of a split, C classes.
"""

import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor

from dvt import device
from dvt.data import Splits
from dvt.data.progress import progress
from dvt.early_exit.loop import padded
from dvt.early_exit.outcomes import Outcomes
from dvt.errors import ConfigError
from dvt.models.cascade import AllExits
from dvt.safe_files import explained, replacing

SAVE_SECONDS = 30.0  # what an interruption may cost, besides the current batch
PARTIAL_FOLDER = ".evaluation"

log = logging.getLogger(__name__)


class Partial:
    """What an evaluation has done so far, kept in the folder of its results until it is complete.

    `identity` is all that the outputs depend on, as plain values; what another evaluation has left is thrown away.
    Raises ConfigError for a folder that cannot be written.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self._folder = folder / PARTIAL_FOLDER
        self._waiting: list[Outcomes] = []
        self._saved = time.monotonic()
        text, note = json.dumps(identity, sort_keys=True, default=str), self._folder / "identity.json"
        with explained(self._folder, ConfigError):
            if not note.is_file() or note.read_text(encoding="utf-8") != text:
                self.remove()
                self._folder.mkdir(parents=True)
                note.write_text(text, encoding="utf-8")

    def load(self, split: str) -> list[Outcomes]:
        """What was kept of the images done before, in parts."""
        return [Outcomes.from_arrays(dict(np.load(path))) for path in sorted(self._folder.glob(f"{split}_*.npz"))]

    def add(self, split: str, outputs: Outcomes) -> None:
        """One more batch; written to the disk together with others."""
        self._waiting.append(outputs)
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.flush(split)

    def flush(self, split: str) -> None:
        """Writes what has been added since the last time."""
        if self._waiting:
            path = self._folder / f"{split}_{len(list(self._folder.glob(f'{split}_*.npz'))):06d}.npz"
            with replacing(path) as written:
                np.savez(written, **Outcomes.joined(self._waiting).to_arrays())
        self._waiting, self._saved = [], time.monotonic()

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


@dataclass(frozen=True)
class Keep:
    """What is kept of the outputs of all exits."""

    temperatures: Sequence[float] | None = None  # (K,) that scores are taken at
    probabilities: bool = False  # those too
    present: np.ndarray | None = None  # the classes that the images show, where these are not all
    partial: Partial | None = None  # where batches are kept for the case of an interruption


def run_all_exits(cell: AllExits, splits: Splits, split: str, batch_size: int, keep: Keep = Keep()) -> Outcomes:
    """Every exit on every image of a split, each image once, in order; the label of an image that cannot be read
    and is skipped is `LEFT_OUT`.

    With `keep.partial`, images done before an interruption are not run again, and an interruption keeps what is done.
    Memory does not grow with the number of classes unless probabilities are kept. Raises DataError as soon as a batch
    comes out not finite.
    """
    cell.model.set_train(False)
    run, partial, total = device.ahead_of_time(cell), keep.partial, splits.sizes[split]
    parts = partial.load(split) if partial else []
    done = sum(len(part.labels) for part in parts)
    if done:
        log.info("%s: going on after %d of %d images, which were evaluated before", split, done, total)
    batches = splits.batches(split, batch_size, skip=done // batch_size) if done < total else ()
    try:
        with progress(total=total, initial=done, unit="img", desc=f"{split}, all exits") as bar:
            for images, labels in batches:
                # A short batch is padded, so that one compiled shape serves all.
                outputs = run(Tensor(padded(images, batch_size))).asnumpy()[:, : len(images)]
                parts.append(Outcomes.of(outputs, labels, keep.temperatures, keep.probabilities, keep.present))
                if partial:
                    partial.add(split, parts[-1])
                bar.update(len(images))
    finally:
        if partial:
            partial.flush(split)
    return Outcomes.joined(parts)
