"""Classifies the images of a folder with a bundle, and says where they left: what `dvt infer` does (`dvt.cli.infer`).

Images are one file, a folder of them, or a folder of class folders (also below `val/`), whose classes are then
compared with the predictions. The runners need neither MindSpore nor the training modules.
"""

import csv
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from tqdm import tqdm

from dvt.data.preprocess import Preprocessing
from dvt.data.sources.image_folder import EXTENSIONS, list_classes, list_images
from dvt.deploy.runner import Cascade
from dvt.early_exit.loop import Predictions
from dvt.errors import BundleError, ConfigError, DataError
from dvt.safe_files import explained


@dataclass(frozen=True)
class InferRequest:
    """What to classify, with which bundle, and where the predictions go.

    Args:
        bundle: Folder that export.py wrote.
        data_path: An image, a folder of images, or a folder of class folders.
        backend: What runs it.
        format: Files to run; None for those that the backend takes.
        thresholds: Name of a setting of the bundle, or numbers with commas in between; None for the bundle's own.
        batch_size: Images per call.
        device_id: Card of MindSpore Lite on Ascend.
        output: CSV file of the predictions; None for standard output.
    """

    bundle: Path
    data_path: Path
    backend: str = "onnxruntime"
    format: str | None = None
    thresholds: str | None = None
    batch_size: int = 8
    device_id: int = 0
    output: Path | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"--batch_size is {self.batch_size}; it must be at least 1")


def infer(request: InferRequest) -> None:
    """Classifies, writes one row an image, and prints a summary on standard error. Raises DVTError."""
    started = time.perf_counter()
    with Cascade(request.bundle, request.backend, request.format, device_id=request.device_id) as cascade:
        if cascade.preprocessing is None:
            raise BundleError(
                f"{request.bundle} does not say how images become model inputs; export it from a checkpoint that does "
                "(`dvt eval --mode 2 --eval.store` stores that), or use Cascade in Python"
            )
        load_seconds = time.perf_counter() - started
        thresholds = _thresholds(request.thresholds, cascade.thresholds)
        files, labels = find_images(request.data_path, cascade.class_names)
        rows, seconds = [], 0.0
        for batch, images in _batches(files, cascade.preprocessing, request.batch_size):
            started = time.perf_counter()
            result = cascade.predict(images, thresholds)
            seconds += time.perf_counter() - started
            rows += _rows(batch, result, cascade.class_names)
        _write(rows, request.output)
        print(_summary(cascade, rows, labels, load_seconds, seconds), file=sys.stderr)


def find_images(path: Path, class_names: Sequence[str] | None) -> tuple[list[str], list[int] | None]:
    """Image files at `path` and their classes, or None where folders do not tell.

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


def _batches(files: list[str], preprocessing: Preprocessing, size: int) -> Iterator[tuple[list[str], np.ndarray]]:
    for start in tqdm(range(0, len(files), size), unit="batch", desc="infer"):
        batch = files[start : start + size]
        yield batch, np.stack([preprocessing(file) for file in batch])


def _thresholds(text: str | None, settings: Mapping[str, Sequence[float]]) -> str | list[float] | None:
    if text is None or text in settings:
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return text


def _rows(files: list[str], result: Predictions, class_names: Sequence[str] | None) -> list[tuple]:
    names = [class_names[label] if class_names else "" for label in result.labels]
    columns = (files, result.labels.tolist(), names, result.confidence.tolist(), (result.exit_index + 1).tolist())
    return list(zip(*columns, strict=True))


def _write(rows: list[tuple], output: Path | None) -> None:
    if output is None:
        _write_csv(rows, sys.stdout)
        return
    with explained(output, ConfigError), output.open("w", newline="") as stream:
        _write_csv(rows, stream)


def _write_csv(rows: list[tuple], stream: TextIO) -> None:
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("file", "label", "class", "confidence", "exit"))
    writer.writerows((*row[:3], f"{row[3]:.4f}", row[4]) for row in rows)


def _summary(cascade: Cascade, rows: list[tuple], labels: list[int] | None, load_seconds: float, seconds: float) -> str:
    exits = np.asarray([row[4] for row in rows]) - 1
    shares = np.bincount(exits, minlength=cascade.manifest.model.num_exits) / len(rows)
    costs = np.asarray(cascade.manifest.cumulative_gmacs)
    parts = [
        f"{len(rows)} images, loaded in {load_seconds:.1f} s, {len(rows) / seconds:.1f} images/s without preprocessing",
        "left at exits " + ", ".join(f"{index + 1}: {100 * share:.1f} %" for index, share in enumerate(shares)),
        f"{costs[exits].mean():.4g} of {costs[-1]:.4g} GMACs per image",
    ]
    if labels is not None:
        correct = np.mean([row[1] == label for row, label in zip(rows, labels, strict=True)])
        parts.append(f"top-1 accuracy {100 * correct:.2f} %")
    return "; ".join(parts)
