"""The command `dvt predict`: classifies image files one at a time, and says what each one took."""

import io
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dvt import device
from dvt.checkpoint.native import load_model
from dvt.data.classes import ModelClasses
from dvt.data.decode import Exif, read_image
from dvt.data.image_files import images_below
from dvt.data.preprocess import Preprocessing
from dvt.early_exit.budgets import Choice
from dvt.early_exit.classifier import AdaptiveClassifier
from dvt.early_exit.scores import CONFIDENCE
from dvt.errors import CheckpointError, ConfigError, DataError
from dvt.models.cost import cumulative_gmacs

STANDARD_INPUT = "-"


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
    """A checkpoint ready to classify image files, with `thresholds`, one per exit, or those that it holds; images are
    turned as their EXIF orientation says, unless `exif` is "ignore".

    Raises CheckpointError if it does not say how images become model inputs, ConfigError if nobody gives thresholds.
    """

    def __init__(
        self,
        checkpoint: str,
        thresholds: Sequence[float] | None = None,
        device_target: str = "auto",
        exif: Exif = "honour",
    ) -> None:
        device.set_up(device_target)
        model, loaded = load_model(checkpoint)
        stored, names = (loaded.metadata.get(key) for key in ("preprocessing", "class_names"))
        if stored is None:
            raise CheckpointError(
                f"{checkpoint} does not say how images become model inputs, as files converted from PyTorch do not; "
                "`dvt eval --mode 2 --eval.store` stores that; or use dvt.AdaptiveClassifier in Python"
            )
        self.preprocessing, self._exif = Preprocessing.from_dict(stored), exif
        rule = CONFIDENCE
        if thresholds is None:
            if (choice := Choice.from_metadata(loaded.metadata)) is None:
                raise ConfigError(
                    f"{checkpoint} holds no thresholds; give --thresholds, {loaded.model.num_exits} numbers, or store "
                    "some with `dvt eval --mode 2 --eval.store`"
                )
            thresholds, rule = choice.thresholds, choice.rule
        self.class_names = ModelClasses(loaded.model.num_classes, names).words
        self._gmacs = cumulative_gmacs(loaded.model)
        self._classifier = AdaptiveClassifier(model, thresholds, batch_sizes=[1], rule=rule)
        shape = (1, loaded.model.in_channels, loaded.model.image_size, loaded.model.image_size)
        self._classifier.all_exits(np.zeros(shape, np.float32))  # compiled before the first image is timed

    def __call__(self, file: str, top: int = 5) -> Answer:
        """Raises DataError, naming the file, if it is missing or no image."""
        if file == STANDARD_INPUT:
            content = io.BytesIO(sys.stdin.buffer.read())
            image = read_image(content, self.preprocessing.mode, lambda: "from standard input", self._exif)
            pixels = self.preprocessing(image)[None]
        else:
            pixels = self.preprocessing(file, self._exif)[None]
        started = time.perf_counter()
        result = self._classifier.predict(pixels)
        milliseconds = 1000 * (time.perf_counter() - started)
        best, taken = np.argsort(-result.probabilities[0], kind="stable")[:top], int(result.exit_index[0])
        classes, probabilities = [self.class_names[i] for i in best], result.probabilities[0][best].tolist()
        return Answer(file, classes, probabilities, taken + 1, float(self._gmacs[taken]), milliseconds)


def find_images(paths: Sequence[str]) -> list[str]:
    """Files as they are given; of folders, all images below them, sorted. What is left out is said on standard error.

    Raises DataError if none of `paths` exists, and for a folder without images or that cannot be read.
    """
    if not any(path == STANDARD_INPUT or Path(path).exists() for path in paths):
        others = f", nor do the other {len(paths) - 1}" if len(paths) > 1 else ""
        addresses = " (addresses are not fetched)" if "://" in paths[0] else ""
        raise DataError(f"{paths[0]} does not exist{others}; give image files, or folders that hold some{addresses}")
    files = []
    for path in paths:
        if not Path(path).is_dir():
            files.append(path)
            continue
        found = images_below(path)
        for note in found.notes(path):
            print(note, file=sys.stderr, flush=True)
        files += found.images
    return files


def predict_files(files: Sequence[str], predictor: Predictor, top: int, as_json: bool) -> int:
    """Prints one line per image. A file that cannot be classified is reported on standard error (and as a JSON line),
    and the rest still done. Returns the exit code: 0, or 1 if a file failed."""
    failed = 0
    for file in files:
        try:
            answer = predictor(file, top)
            print(json.dumps(asdict(answer)) if as_json else answer.line(), flush=True)
        except DataError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr, flush=True)
            if as_json:
                print(json.dumps({"file": file, "error": str(error)}), flush=True)
    if failed:
        print(f"{failed} of {len(files)} files could not be classified", file=sys.stderr)
    return int(failed > 0)
