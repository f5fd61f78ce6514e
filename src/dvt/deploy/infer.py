"""Classifies the images of a folder with a bundle, and measures it: what `dvt infer` does."""

import csv
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np
from tqdm import tqdm

from dvt.data.classes import ModelClasses
from dvt.data.decode import Exif
from dvt.data.progress import progress
from dvt.data.sources.image_folder import images_to_classify
from dvt.deploy.runner import Cascade
from dvt.errors import BundleError, ConfigError, DataError, work_begun
from dvt.safe_files import explained
from dvt.value_checks import PATH, bounds, check_fields

COLUMNS = ("file", "label", "class", "confidence", "exit")  # exits are counted from 1


@dataclass(frozen=True)
class InferRequest:
    """Classify images with an exported bundle.

    Args:
        bundle: Folder that export.py wrote.
        data_path: An image, a folder of images, or a folder of class folders (also below `val/`), whose classes are
            then compared with the predictions.
        backend: What runs it: onnxruntime, openvino, mindspore or lite.
        format: Files to run; None for those that the backend takes.
        precision: float32, or bfloat16 with openvino.
        providers: Execution providers of ONNX Runtime, such as CUDA, with commas in between; None for the CPU.
        thresholds: Name of a setting of the bundle, or numbers with commas in between; None for the bundle's own.
        exif: honour turns images as their EXIF orientation says; ignore takes them as stored, as ImageNet recipes do.
        batch_size: Images per call.
        device_id: Card of MindSpore Lite on Ascend.
        output: CSV file for the predictions; None writes them to standard output.
        class_map: JSON or YAML file that says which class of the bundle a folder shows: folder -> index or name.
    """

    bundle: Path = field(metadata=PATH)
    data_path: Path = field(metadata=PATH)
    backend: str = "onnxruntime"
    format: str | None = None
    precision: str = "float32"
    providers: str | None = None
    thresholds: str | None = None
    exif: Exif = "honour"
    batch_size: int = field(default=8, metadata=bounds(1, 2**20))
    device_id: int = field(default=0, metadata=bounds(0, 1024))
    output: Path | None = field(default=None, metadata=PATH)
    class_map: str | None = field(default=None, metadata=PATH)

    def __post_init__(self) -> None:
        check_fields(self, "")


def infer(request: InferRequest) -> int:
    """Classifies the images of a request, and writes a CSV row for each as soon as its batch is done.

    Images that cannot be read are named on standard error and left out. Returns how many these are. Raises BundleError,
    ConfigError and DataError before the first image, and ConfigError where the output cannot be written.
    """
    options = {"device_id": request.device_id, "precision": request.precision, "providers": request.providers}
    with Cascade(request.bundle, request.backend, request.format, **options) as cascade:
        if cascade.preprocessing is None:
            raise BundleError(
                f"{request.bundle} does not say how images become model inputs; export it from a checkpoint that does "
                "(`dvt eval --mode 2 --eval.store` stores that), or use Cascade in Python"
            )
        thresholds = cascade.chosen(request.thresholds)
        name = next(iter(cascade.settings), None) if request.thresholds is None else request.thresholds
        known = cascade.settings.get(name)
        promise = known.promise_for(request.exif) if known else "not certified"
        print(f"thresholds {name}: {promise}", file=sys.stderr)
        classes = ModelClasses(cascade.manifest.model.num_classes, cascade.class_names, request.class_map)
        files, true_labels, notes = images_to_classify(request.data_path, classes)
        if request.class_map and true_labels is None:
            raise ConfigError(f"class_map is set, but {request.data_path} has no folders of classes; leave it out")
        for note in notes:
            print(note, file=sys.stderr)
        names, costs = classes.known_words, np.asarray(cascade.manifest.cumulative_gmacs)
        left, correct, failed, seconds = np.zeros(len(costs), int), 0, 0, 0.0
        full_disks = nullcontext() if request.output is None else explained(request.output, ConfigError)
        with _opened(request.output) as stream, work_begun(), full_disks:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(COLUMNS)
            for start in progress(range(0, len(files), request.batch_size), unit="batch", desc="infer"):
                images = {}
                for index in range(start, min(start + request.batch_size, len(files))):
                    try:
                        images[index] = cascade.preprocessing(files[index], request.exif)
                    except DataError as error:
                        failed += 1
                        tqdm.write(f"error: {error}", file=sys.stderr)
                if not images:
                    continue
                started = time.perf_counter()
                answers = cascade.predict(np.stack(list(images.values())), thresholds)
                seconds += time.perf_counter() - started
                left += np.bincount(answers.exit_index, minlength=len(left))
                rows = zip(images, answers.labels, answers.confidence, answers.exit_index, strict=True)
                for index, label, confidence, taken in rows:
                    name = names[label] if names else ""
                    writer.writerow((files[index], label, name, f"{confidence:.4f}", taken + 1))
                    correct += true_labels is not None and label == true_labels[index]
                stream.flush()
    count = left.sum()
    summary = [f"{cascade.runs_on}: {count} images"]
    if count:
        shares = ", ".join(f"{number}: {100 * each / count:.1f} %" for number, each in enumerate(left, start=1))
        summary[0] += f", {count / seconds:.1f} images/s without preprocessing"
        summary += [f"left at exits {shares}", f"{left @ costs / count:.4g} of {costs[-1]:.4g} GMACs per image"]
        summary += [f"top-1 accuracy {100 * correct / count:.2f} %"] if true_labels is not None else []
    summary += [f"EXIF orientation: {request.exif}"]
    summary += [f"{failed} of {len(files)} files could not be classified"] if failed else []
    print("; ".join(summary), file=sys.stderr)
    return failed


def _opened(output: Path | None) -> AbstractContextManager[TextIO]:
    """The CSV file, in a folder that is made, or standard output. Raises ConfigError if it cannot be written."""
    if output is None:
        return nullcontext(sys.stdout)
    with explained(output, ConfigError):
        output.parent.mkdir(parents=True, exist_ok=True)
        return output.open("w", encoding="utf-8", errors="backslashreplace", newline="")
