"""The command `dvt predict`: classifies image files one at a time, and says what each one took.

Axis letter: C classes.
"""

import io
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dvt import device
from dvt.checkpoint.native import load_model
from dvt.data.decode import read_image
from dvt.data.image_files import images_below
from dvt.data.preprocess import Preprocessing
from dvt.early_exit.budgets import Choice
from dvt.early_exit.classifier import AdaptiveClassifier
from dvt.early_exit.scores import ExitRule
from dvt.errors import CheckpointError, ConfigError, DataError
from dvt.models.cost import cumulative_gmacs

STANDARD_INPUT = "-"
SOME_FAILED = 1  # exit code if some files could not be classified


@dataclass(frozen=True)
class Answer:
    """What is said of one image."""

    file: str
    classes: list[str]  # names of the most probable classes, the most probable first
    probabilities: list[float]  # of these classes, 0 to 1
    exit: int  # the exit taken, counted from 1
    gmacs: float  # cost of that exit and those before it
    milliseconds: float  # from the model input to the answer; reading and resizing the file is not included

    def line(self) -> str:
        """One line for people."""
        named = ", ".join(f"{name} {p:.3f}" for name, p in zip(self.classes, self.probabilities, strict=True))
        return f"{self.file}: exit {self.exit}, {self.gmacs:.4g} GMACs, {self.milliseconds:.1f} ms: {named}"


class Predictor:
    """A checkpoint ready to classify image files.

    Args:
        checkpoint: Checkpoint with weights, class names, preprocessing and thresholds.
        thresholds: One per exit, in place of those in the checkpoint.
        device_target: Device to run on.

    Raises:
        CheckpointError: The checkpoint does not say how images become model inputs.
        ConfigError: Neither it nor the caller has thresholds.
    """

    def __init__(self, checkpoint: str, thresholds: Sequence[float] | None = None, device_target: str = "auto") -> None:
        device.set_up(device_target)
        model, loaded = load_model(checkpoint)
        stored = loaded.metadata.get("preprocessing")
        if stored is None:
            raise CheckpointError(
                f"{checkpoint} does not say how images become model inputs, as files converted from PyTorch do not; "
                "`dvt eval --mode 2 --eval.store` stores that; or use dvt.AdaptiveClassifier in Python"
            )
        self.preprocessing = Preprocessing.from_dict(stored)
        choice = Choice.from_metadata(loaded.metadata) if thresholds is None else None
        if thresholds is None and choice is None:
            raise ConfigError(
                f"{checkpoint} holds no thresholds; give --thresholds, {loaded.model.num_exits} numbers, or store some "
                "with `dvt eval --mode 2 --eval.store`"
            )
        thresholds, rule = (thresholds, ExitRule()) if choice is None else (choice.thresholds, choice.rule)
        names = loaded.metadata.get("class_names")
        self.class_names = list(names) if names else [f"class {i}" for i in range(loaded.model.num_classes)]
        self._gmacs = cumulative_gmacs(loaded.model)
        self._classifier = AdaptiveClassifier(model, thresholds, batch_sizes=[1], rule=rule)
        shape = (1, loaded.model.in_channels, loaded.model.image_size, loaded.model.image_size)
        self._classifier.all_exits(np.zeros(shape, np.float32))  # compiled before the first image is timed

    def __call__(self, file: str, top: int = 5) -> Answer:
        """Raises DataError, naming the file, if it is missing or no image."""
        image = self.preprocessing(self._from_standard_input() if file == STANDARD_INPUT else file)[None]
        started = time.perf_counter()
        result = self._classifier.predict(image)
        milliseconds = 1000 * (time.perf_counter() - started)
        best = np.argsort(-result.probabilities[0], kind="stable")[:top]
        taken = int(result.exit_index[0])
        return Answer(
            file,
            [self.class_names[i] for i in best],
            [float(p) for p in result.probabilities[0][best]],
            taken + 1,
            float(self._gmacs[taken]),
            milliseconds,
        )

    def _from_standard_input(self) -> Image.Image:
        content = io.BytesIO(sys.stdin.buffer.read())
        return read_image(content, self.preprocessing.mode, lambda: "from standard input")


def require_any(paths: Sequence[str]) -> None:
    """Raises DataError if none of `paths` exists."""
    if any(path == STANDARD_INPUT or Path(path).exists() for path in paths):
        return
    path = paths[0]
    if "://" in path:
        raise DataError(f"{path} is an address, and addresses are not fetched; download the image first")
    if any(sign in path for sign in "*?["):
        raise DataError(f"no file matches {path}; give image files, or folders that hold some")
    others = f", nor do the other {len(paths) - 1}" if len(paths) > 1 else ""
    raise DataError(f"{path} does not exist{others}; give image files, or folders that hold some")


def find_images(paths: Sequence[str]) -> Iterator[str]:
    """Files as they are given; of folders, all images below them, sorted. What is left out is said on standard error.

    Raises DataError for a folder without images or that cannot be read.
    """
    for path in paths:
        if Path(path).is_dir():
            found = images_below(path)
            for note in found.notes(path):
                print(note, file=sys.stderr, flush=True)
            yield from found.images
        else:
            yield path


def predict_files(
    paths: Sequence[str],
    checkpoint: str,
    thresholds: Sequence[float] | None = None,
    top: int = 5,
    as_json: bool = False,
    device_target: str = "auto",
) -> int:
    """Prints one line per image. A file that cannot be classified is reported on standard error (and as a JSON line),
    and the rest still done.

    Returns:
        0, or 1 if a file failed.
    """
    require_any(paths)
    files = list(find_images(paths))
    predictor = Predictor(checkpoint, thresholds, device_target)
    failed = 0
    for file in files:
        try:
            answer = predictor(file, top)
        except DataError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr, flush=True)
            if as_json:
                print(json.dumps({"file": file, "error": str(error)}), flush=True)
            continue
        print(json.dumps(asdict(answer)) if as_json else answer.line(), flush=True)
    if failed:
        print(f"{failed} of {len(files)} files could not be classified", file=sys.stderr)
    return SOME_FAILED if failed else 0
