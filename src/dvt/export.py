"""Export: one MindIR file per exit, each checked by loading it again, and a manifest that says how to run them.

`exit_0.mindir` takes images, the later ones images and whatever the model reuses of the exit before (features,
relations); each returns probabilities and what it hands on. `manifest.json` holds names and shapes of all of these, the
model, class names, preprocessing, thresholds and costs, so that a program without this package can run the cascade.
"""

import contextlib
import hashlib
import json
import logging
import platform
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

import dvt
from dvt import device, kernels
from dvt.checkpoint import Checkpoint, load_model, replacing
from dvt.cost import cumulative_gmacs
from dvt.errors import ConfigError, DVTError
from dvt.inference import Stage
from dvt.variants import ModelConfig

FORMATS = ("MINDIR",)
MANIFEST_FILE = "manifest.json"
MANIFEST_FORMAT = 1
TOLERANCE = 1e-5  # largest deviation of a reloaded file, relative to the largest value where that is above 1
OPEN_BATCH_CHECKS = (1, 3)  # numbers of images that a file with open batch size is tried with
RULE = (
    "An image leaves at the first exit whose largest probability is at least that exit's threshold; the last exit "
    "takes all that are left. The next exit gets the images that go on, and their rows of what this exit returned."
)

log = logging.getLogger(__name__)


def export_checkpoint(
    checkpoint: str, output: str, formats: Sequence[str], batch_size: int | None, device_target: str
) -> list[Path]:
    """Writes the exits of a checkpoint's model and their manifest into the folder `output`; returns the paths.

    Files of an earlier export there are replaced, other files left alone, and nothing appears before everything has
    been written and checked. `batch_size` is the number of images per call, None leaves it open. Raises
    CheckpointError, DeviceError, ConfigError for an unknown format or an output that cannot be written, and DVTError
    if a file computes something else than the model.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ConfigError(f"unknown format {', '.join(unknown) or 'none'}; choose from {', '.join(FORMATS)}")
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1, or None to leave it open")
    used = device.set_up(device_target)
    with kernels.disabled():  # operators of this package mean nothing to those who load the files
        model, loaded = load_model(checkpoint)
    log.info("exporting %s from %s, checked on %s", loaded.model.name, checkpoint, used.description)
    folder = Path(output)
    with _writable(folder):
        names = [f"exit_{index}.mindir" for index in range(loaded.model.num_exits)]
        earlier = _files_of_earlier_export(folder)
        with contextlib.ExitStack() as stack:
            # The stack moves the files into place in reverse order, if all went well: the manifest comes last.
            manifest = stack.enter_context(replacing(folder / MANIFEST_FILE))
            files = [stack.enter_context(replacing(folder / name)) for name in names]
            entries = _export_exits(model, files, batch_size)
            content = _manifest(loaded, batch_size, entries)
            manifest.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            (folder / MANIFEST_FILE).unlink(missing_ok=True)
        for name in earlier.difference(names):
            (folder / name).unlink(missing_ok=True)
    paths = [folder / name for name in [*names, MANIFEST_FILE]]
    log.info("wrote %s to %s", ", ".join(path.name for path in paths), folder)
    return paths


def _export_exits(model: nn.Cell, files: Sequence[Path], batch_size: int | None) -> list[dict[str, Any]]:
    """Writes and checks one file per exit; returns their entries in the manifest."""
    config: ModelConfig = model.config
    count = batch_size or sum(OPEN_BATCH_CHECKS)
    shape = (count, config.in_channels, config.image_size, config.image_size)
    values = {"images": np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
    entries = []
    with logging_redirect_tqdm(), tqdm(files, unit="exit", desc="export") as bar:
        for index, path in enumerate(bar):
            started = time.perf_counter()
            stage = Stage(model, index)
            stage.set_train(False)
            inputs = {name: values[name] for name in stage.input_names}
            results = _run(stage, list(inputs.values()))
            outputs = dict(zip(stage.output_names, results, strict=True))
            _write_mindir(stage, list(inputs.values()), path, batch_size is None)
            deviation = _check(path, inputs, outputs, batch_size is None)
            entries.append(
                {
                    "file": path.name,
                    "exit_index": index,
                    "bytes": path.stat().st_size,
                    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                    "inputs": _described(inputs, batch_size),
                    "outputs": _described(outputs, batch_size),
                }
            )
            values |= outputs
            log.info(
                "%s: %.1f MB, reloaded and compared (largest deviation %.1e), %.1f s",
                path.name,
                path.stat().st_size / 1e6,
                deviation,
                time.perf_counter() - started,
            )
    return entries


def _write_mindir(stage: Stage, inputs: Sequence[np.ndarray], path: Path, open_batch: bool) -> None:
    if open_batch:
        tensors = [Tensor(shape=[None, *value.shape[1:]], dtype=ms.float32) for value in inputs]
    else:
        tensors = [Tensor(value) for value in inputs]
    ms.export(stage, *tensors, file_name=str(path), file_format="MINDIR")
    if any(entry.is_dir() for entry in path.parent.iterdir()):
        raise DVTError(
            f"{path.name} is too large for one MindIR file: MindSpore put its weights elsewhere. Export a smaller model"
        )


def _check(path: Path, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray], open_batch: bool) -> float:
    """Runs the file on `inputs`; returns the largest deviation from `outputs`, raises DVTError above TOLERANCE."""
    reloaded = nn.GraphCell(ms.load(str(path)))
    count = len(inputs["images"])
    stops = np.cumsum(OPEN_BATCH_CHECKS) if open_batch else [count]
    largest, start = 0.0, 0
    for stop in stops:
        results = _run(reloaded, [value[start:stop] for value in inputs.values()])
        for (name, expected), result in zip(outputs.items(), results, strict=True):
            expected = expected[start:stop]
            deviation = float("inf")
            if result.shape == expected.shape:
                deviation = float(np.abs(result - expected).max() / max(1.0, np.abs(expected).max()))
            if not deviation <= TOLERANCE:
                raise DVTError(
                    f"{path.name} does not compute what the model does: its {name} deviate by {deviation:.1e} for "
                    f"{stop - start} images, and at most {TOLERANCE:.0e} is float rounding. Nothing was exported; "
                    "please report this with the versions of MindSpore and of this package"
                )
            largest = max(largest, deviation)
        start = stop
    return largest


def _run(cell: nn.Cell, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    outputs = cell(*[Tensor(value) for value in inputs])
    return [output.asnumpy() for output in (outputs if isinstance(outputs, tuple | list) else (outputs,))]


def _described(values: dict[str, np.ndarray], batch_size: int | None) -> list[dict[str, Any]]:
    """Names, shapes and types in the order of the call; an open batch size is null."""
    return [
        {"name": name, "shape": [batch_size, *value.shape[1:]], "dtype": str(value.dtype)}
        for name, value in values.items()
    ]


def _manifest(loaded: Checkpoint, batch_size: int | None, entries: list[dict[str, Any]]) -> dict[str, Any]:
    metadata = loaded.metadata
    return {
        "format": MANIFEST_FORMAT,
        "model": loaded.model.to_dict(),
        "class_names": metadata.get("class_names"),
        "preprocessing": metadata.get("preprocessing"),
        "thresholds": metadata.get("thresholds"),
        "results": metadata.get("results"),
        "cumulative_gmacs": cumulative_gmacs(loaded.model),
        "batch_size": batch_size,
        "rule": RULE,
        "exits": entries,
        "versions": {"dvt": dvt.__version__, "mindspore": ms.__version__, "python": platform.python_version()},
    }


def _files_of_earlier_export(folder: Path) -> set[str]:
    """Exported files that the manifest there names; nothing else in the folder is ours."""
    try:
        content = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        names = {entry["file"] for entry in content["exits"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {name for name in names if isinstance(name, str) and re.fullmatch(r"exit_\d+\.mindir", name)}


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Makes `folder`, turns what cannot be written into a ConfigError, and leaves no new folder after a failure."""
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            reason = error.strerror or type(error).__name__
            raise ConfigError(f"cannot write to the output folder {folder}: {reason}; choose another") from error
        raise
