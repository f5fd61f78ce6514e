"""Every exit on every image of a split, with progress, and going on after an interruption.

Axis letters: K exits, B images of a batch, n images of a split, C classes.
"""

import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype
from tqdm import tqdm

from dvt.data import Splits
from dvt.errors import ConfigError

SAVE_SECONDS = 30.0  # what an interruption may cost, besides the batch under way
PARTIAL_FOLDER = ".evaluation"

log = logging.getLogger(__name__)


class AllExits(nn.Cell):
    """images (B, I, S, S) -> softmax of every exit, (K, B, C); compiled once per batch size."""

    def __init__(self, model: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, images: Tensor) -> Tensor:
        return ops.softmax(ops.stack(self.model(images)).astype(mstype.float32), axis=-1)


class Partial:
    """What an evaluation has done so far, kept in a folder until the evaluation is complete.

    Args:
        folder: Folder of the results.
        identity: All that the outputs depend on, as plain values; what another evaluation has left is thrown away.

    Raises:
        ConfigError: The folder cannot be written.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self._folder = folder / PARTIAL_FOLDER
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._saved = time.monotonic()
        text = json.dumps(identity, sort_keys=True, default=str)
        note = self._folder / "identity.json"
        try:
            if not note.is_file() or note.read_text(encoding="utf-8") != text:
                self.remove()
                self._folder.mkdir()
                note.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write to {self._folder}: {error.strerror or error}") from error

    def load(self, split: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Probabilities (K, n', C) and labels (n',) of the images done before, in parts."""
        probabilities, labels = [], []
        for path in sorted(self._folder.glob(f"{split}_*.npz")):
            with np.load(path) as stored:
                probabilities.append(stored["probabilities"])
                labels.append(stored["labels"])
        return probabilities, labels

    def add(self, split: str, probabilities: np.ndarray, labels: np.ndarray) -> None:
        """One more batch; written to the disk together with others."""
        self._waiting.append((probabilities, labels))
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.flush(split)

    def flush(self, split: str) -> None:
        """Writes what has been added since the last time."""
        if self._waiting:
            probabilities, labels = (list(parts) for parts in zip(*self._waiting, strict=True))
            path = self._folder / f"{split}_{len(list(self._folder.glob(f'{split}_*.npz'))):06d}.npz"
            unfinished = path.with_suffix(".tmp")
            with unfinished.open("wb") as file:
                np.savez(file, probabilities=np.concatenate(probabilities, axis=1), labels=np.concatenate(labels))
            os.replace(unfinished, path)
        self._waiting, self._saved = [], time.monotonic()

    def remove(self) -> None:
        """Forgets everything; the evaluation is complete, or starts afresh."""
        shutil.rmtree(self._folder, ignore_errors=True)


def run_all_exits(
    cell: AllExits, splits: Splits, split: str, batch_size: int, partial: Partial | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Every exit on every image of a split, each image once, in order -> probabilities (K, n, C), labels (n,); the
    label of an image that cannot be read and is skipped is `LEFT_OUT`.

    With `partial`, images done before an interruption are not run again, and an interruption keeps what is done.
    """
    cell.model.set_train(False)
    probabilities, labels = partial.load(split) if partial else ([], [])
    done = sum(map(len, labels))
    if done:
        log.info("%s: going on after %d of %d images, which were evaluated before", split, done, splits.sizes[split])
    try:
        with tqdm(total=splits.sizes[split], initial=done, unit="img", desc=f"{split}, all exits") as bar:
            if done < splits.sizes[split]:
                pipeline = splits.pipeline(split, batch_size, skip=done // batch_size)
                for images, batch_labels in pipeline.create_tuple_iterator(num_epochs=1, output_numpy=True):
                    probabilities.append(_padded_run(cell, images, batch_size))
                    labels.append(batch_labels)
                    if partial:
                        partial.add(split, probabilities[-1], batch_labels)
                    bar.update(len(images))
    finally:
        if partial:
            partial.flush(split)
    return np.concatenate(probabilities, axis=1), np.concatenate(labels)


def _padded_run(cell: AllExits, images: np.ndarray, batch_size: int) -> np.ndarray:
    """(K, B, C); a short batch is padded, so that one compiled shape serves all."""
    count = len(images)
    if count < batch_size:
        images = np.concatenate([images, np.repeat(images[-1:], batch_size - count, axis=0)])
    return cell(Tensor(images)).asnumpy()[:, :count]
