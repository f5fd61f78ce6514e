"""MindSpore Lite: configurations for its converter, converted files in the manifest, and a backend that runs them."""

import dataclasses
import importlib.util
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dvt.deploy import lite_session
from dvt.deploy.manifest import CONVERTED, GraphSet, describe_file, read_manifest, write_manifest
from dvt.errors import BundleError, DeviceError, work_begun

if TYPE_CHECKING:
    from dvt.deploy.backends import RuntimeOptions

PYTHON_VARIABLE = "DVT_LITE_PYTHON"  # names the interpreter that has mindspore_lite, if it is not this one

TARGETS = {"cpu": ("ONNX", "{stem}.ms"), "ascend": ("MINDIR", "{stem}_ascend.mindir")}
"""By target: the format that is converted, and the names of the results."""

# On Ascend the converter's default is float16 for all operators, which moves confidences. A float16 file names the type
# of each operator itself: LayerNorm, softmax and the performers stay float32 (`dvt.models.precision`).
PRECISION_MODES = {"float32": "preferred_fp32", "float16": "enforce_origin"}


def write_ascend_configs(folder: Path, graphs: GraphSet, batch_sizes: Sequence[int]) -> None:
    """Writes `exit_K.ascend.ini` per exit for `converter_lite --configFile`, with the batch sizes it compiles."""
    sizes = ",".join(f"[{size}]" for size in batch_sizes)
    for entry in graphs.exits:
        dims = [",".join("-1" if n is None else str(n) for n in each.shape) for each in entry.inputs]
        shapes = [f"{each.name}:[{dim}]" for each, dim in zip(entry.inputs, dims, strict=True)]
        lines = [
            "[ascend_context]",
            f"input_shape={';'.join(shapes)}",
            f"dynamic_dims={';'.join([sizes] * len(shapes))}",
            f"precision_mode={PRECISION_MODES[graphs.precision]}",
        ]
        (folder / f"{Path(entry.file).stem}.ascend.ini").write_text("\n".join(lines) + "\n", encoding="utf-8")


def register(folder: str | os.PathLike, target: str) -> GraphSet:
    """Enters converted files into the manifest as the format LITE, so that `Cascade(folder, "lite")` runs them. Raises
    BundleError if these files, or the format that is converted, are not there, ConfigError if the manifest cannot be
    written."""
    manifest = read_manifest(folder)
    source, name = TARGETS[target]
    if source not in manifest.graphs:
        raise BundleError(f"{folder} holds no {source} files, which are converted for {target}; export with --format")
    entries = []
    for entry in manifest.graphs[source].exits:
        path = Path(folder) / name.format(stem=Path(entry.file).stem)
        if not path.is_file():
            raise BundleError(f"{path} is missing; convert the bundle with scripts/run_lite_convert.sh first")
        entries.append(describe_file(path, entry.inputs, entry.outputs))
    details = {"target": target, "converted_from": source}
    converted = GraphSet(manifest.graphs[source].precision, tuple(entries), details=details)
    with work_begun():
        write_manifest(Path(folder), dataclasses.replace(manifest, graphs={**manifest.graphs, CONVERTED: converted}))
    return converted


class LiteBackend:
    """A `dvt.deploy.backends.Backend` for converted files (`.ms` on the CPU, `.mindir` on Ascend), with MindSpore Lite
    in a process of its own, under the Python that `DVT_LITE_PYTHON` names, else this one."""

    pads = True

    def __init__(self, folder: Path, graphs: GraphSet, options: "RuntimeOptions") -> None:
        self._python = os.environ.get(PYTHON_VARIABLE, sys.executable)
        if PYTHON_VARIABLE not in os.environ and importlib.util.find_spec("mindspore_lite") is None:
            raise DeviceError(
                f"the lite backend needs the package mindspore_lite, which {sys.executable} does not have; install it, "
                f"or name a Python that has it with {PYTHON_VARIABLE}=/path/to/python"
            )
        self._names = [[value.name for value in entry.inputs] for entry in graphs.exits]
        self._lock = threading.Lock()
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        try:
            self._process = subprocess.Popen([self._python, lite_session.__file__, "serve"], env=environment, **pipes)
        except OSError as error:
            raise DeviceError(f"{PYTHON_VARIABLE}={self._python} cannot be run: {error.strerror}") from error
        files, target = [str(folder / entry.file) for entry in graphs.exits], graphs.details.get("target", "cpu")
        self.description = f"MindSpore Lite, {target}"
        try:
            self._ask(files, target, options.device_id, options.threads)
        except RuntimeError as error:
            self.close()
            raise error if isinstance(error, DeviceError) else BundleError(f"the files of {folder}: {error}") from error

    def run(self, index: int, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        return self._ask(index, self._names[index], list(inputs))

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _ask(self, *arguments: Any) -> Any:
        """What the process answers. Raises DeviceError if it has ended, RuntimeError if Lite fails."""
        try:
            with self._lock:  # one question at a time, or a thread reads another's answer
                lite_session.send(self._process.stdin, arguments)
                error, outputs = pickle.load(self._process.stdout)
        except (BrokenPipeError, EOFError):
            raise DeviceError(
                f"the process of MindSpore Lite ended unexpectedly; check that `{self._python} -c 'import "
                "mindspore_lite'` works"
            ) from None
        if error:
            raise RuntimeError(f"MindSpore Lite cannot run this: {error}")
        return outputs
