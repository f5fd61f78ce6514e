"""Classifies the images of a folder with a bundle, and measures it: what `dvt infer` does (`dvt.cli.infer`)."""

import csv
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TextIO

import numpy as np

from dvt.data.progress import progress
from dvt.data.sources.image_folder import EXTENSIONS, list_classes, list_images
from dvt.deploy.manifest import Manifest
from dvt.deploy.runner import Cascade
from dvt.early_exit.loop import Predictions
from dvt.errors import BundleError, ConfigError, DataError


@dataclass(frozen=True)
class InferRequest:
    """What to classify, and with which bundle.

    Args:
        bundle: Folder that export.py wrote.
        data_path: An image, a folder of images, or a folder of class folders (also below `val/`), whose classes are
            then compared with the predictions.
        backend: What runs it: onnxruntime, mindspore or lite.
        format: Files to run; None for those that the backend takes.
        thresholds: Name of a setting of the bundle, or numbers with commas in between; None for the bundle's own.
        batch_size: Images per call.
        device_id: Card of MindSpore Lite on Ascend.
    """

    bundle: Path
    data_path: Path
    backend: str = "onnxruntime"
    format: str | None = None
    thresholds: str | None = None
    batch_size: int = 8
    device_id: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}; it must be at least 1")


@dataclass(frozen=True)
class Inference:
    """The answers to n image files.

    Attributes:
        manifest: Of the bundle.
        files: Their paths.
        true_labels: Their classes, or None where folders do not say.
        answers: What the cascade says of each, in the order of `files`.
        load_seconds: Time to load the bundle.
        seconds: Time in the cascade, without preprocessing.
    """

    manifest: Manifest
    files: list[str]
    true_labels: list[int] | None
    answers: Predictions
    load_seconds: float
    seconds: float

    def write_csv(self, stream: TextIO) -> None:
        """One row per image; exits are counted from 1."""
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("file", "label", "class", "confidence", "exit"))
        names, answers = self.manifest.class_names, self.answers
        rows = zip(self.files, answers.labels, answers.confidence, answers.exit_index, strict=True)
        for file, label, confidence, index in rows:
            writer.writerow((file, label, names[label] if names else "", f"{confidence:.4f}", index + 1))

    def summary(self) -> str:
        """Speed, where images left, cost, and the accuracy where classes are known, in one line."""
        count, taken, costs = len(self.files), self.answers.exit_index, np.asarray(self.manifest.cumulative_gmacs)
        shares = 100 * np.bincount(taken, minlength=len(costs)) / count
        speed = f"{count / self.seconds:.1f} images/s without preprocessing"
        parts = [
            f"{count} images, loaded in {self.load_seconds:.1f} s, {speed}",
            "left at exits " + ", ".join(f"{number}: {share:.1f} %" for number, share in enumerate(shares, start=1)),
            f"{costs[taken].mean():.4g} of {costs[-1]:.4g} GMACs per image",
        ]
        if self.true_labels is not None:
            parts.append(f"top-1 accuracy {100 * np.mean(self.answers.labels == self.true_labels):.2f} %")
        return "; ".join(parts)


def infer(request: InferRequest) -> Inference:
    """Classifies the images of a request.

    Raises:
        BundleError: The folder is no bundle that can be run, or does not say how images become model inputs.
        ConfigError: Thresholds or a backend that are not there.
        DataError: There are no images, they cannot be read, or are in folders that are no classes of the bundle.
    """
    started = time.perf_counter()
    with Cascade(request.bundle, request.backend, request.format, device_id=request.device_id) as cascade:
        load_seconds = time.perf_counter() - started
        if cascade.preprocessing is None:
            raise BundleError(
                f"{request.bundle} does not say how images become model inputs; export it from a checkpoint that does "
                "(`dvt eval --mode 2 --eval.store` stores that), or use Cascade in Python"
            )
        thresholds = _thresholds(request.thresholds, cascade.thresholds)
        files, true_labels = find_images(request.data_path, cascade.class_names)
        answers, seconds = [], 0.0
        for start in progress(range(0, len(files), request.batch_size), unit="batch", desc="infer"):
            images = np.stack([cascade.preprocessing(file) for file in files[start : start + request.batch_size]])
            started = time.perf_counter()
            answers.append(cascade.predict(images, thresholds))
            seconds += time.perf_counter() - started
    joined = {key.name: np.concatenate([getattr(each, key.name) for each in answers]) for key in fields(Predictions)}
    return Inference(cascade.manifest, files, true_labels, Predictions(**joined), load_seconds, seconds)


def find_images(path: Path, class_names: Sequence[str] | None) -> tuple[list[str], list[int] | None]:
    """Image files at `path` and their classes, or None where folders do not say.

    Raises DataError if there are no images, or class folders that are not classes of the bundle.
    """
    if path.is_file():
        return [str(path)], None
    if not path.is_dir():
        raise DataError(f"{path} is neither a file nor a folder")
    root = path / "val" if (path / "val").is_dir() else path
    flat = sorted(str(entry) for entry in root.iterdir() if entry.suffix.lower() in EXTENSIONS)
    if flat:
        return flat, None
    folders = list_classes(root)
    if class_names is None:
        return list_images(root, folders)[0], None
    unknown = [name for name in folders if name not in class_names]
    if unknown:
        raise DataError(
            f"the folders of {root} must be classes of the bundle; these are not: {', '.join(unknown[:5])}. For images "
            "without known classes, put them into one folder"
        )
    files, positions = list_images(root, folders)
    return files, [list(class_names).index(folders[position]) for position in positions]


def _thresholds(text: str | None, settings: Mapping[str, Sequence[float]]) -> str | list[float] | None:
    """Numbers, where that is what the text holds and no setting has this name."""
    if text is None or text in settings:
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return text
