"""What runs the files of a bundle. Each backend imports its runtime only when it is made.

A backend has `run(exit index, inputs) -> outputs`, both in the order of the manifest, `pads`, whether it takes the
listed batch sizes only, and `close()`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from dvt.deploy.manifest import GraphSet
from dvt.errors import BundleError, DeviceError


class Backend(Protocol):
    """See the module."""

    pads: bool

    def run(self, index: int, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """One exit."""

    def close(self) -> None:
        """Frees what the backend holds outside of this process."""


class OnnxRuntimeBackend:
    """ONNX Runtime on the CPU, any number of images at once."""

    pads = False

    def __init__(self, folder: Path, graphs: GraphSet, threads: int | None, device_id: int) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise DeviceError(
                "the onnxruntime backend needs the package onnxruntime: pip install 'dvt-mindspore[deploy]'"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        self._sessions, self._names = [], []
        for entry in graphs.exits:
            path = folder / entry.file
            try:
                session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            except Exception as error:  # the runtime's errors have no common class of their own
                raise BundleError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {error}") from error
            self._sessions.append(session)
            self._names.append(([value.name for value in entry.inputs], [value.name for value in entry.outputs]))

    def run(self, index: int, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """One exit."""
        names, outputs = self._names[index]
        return self._sessions[index].run(outputs, dict(zip(names, inputs, strict=True)))

    def close(self) -> None:
        """Nothing to do."""


class MindSporeBackend:
    """MindIR files as MindSpore cells, on the device that the process has chosen (`dvt.device.set_up`)."""

    pads = False

    def __init__(self, folder: Path, graphs: GraphSet, threads: int | None, device_id: int) -> None:
        try:
            from dvt.deploy import mindir
        except ModuleNotFoundError as error:
            if error.name != "mindspore":
                raise
            raise DeviceError(
                "the mindspore backend needs MindSpore: pip install 'dvt-mindspore[train]'; the onnxruntime backend "
                "does without"
            ) from error
        self._run_cell = mindir.run_cell
        try:
            self._cells = [mindir.load_file(folder / entry.file) for entry in graphs.exits]
        except (RuntimeError, ValueError) as error:
            raise BundleError(f"MindSpore cannot load the MindIR files of {folder}: {error}") from error

    def run(self, index: int, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """One exit."""
        return self._run_cell(self._cells[index], inputs)

    def close(self) -> None:
        """Nothing to do."""


def _lite(folder: Path, graphs: GraphSet, threads: int | None, device_id: int) -> Backend:
    from dvt.deploy.lite.backend import LiteBackend

    return LiteBackend(folder, graphs, threads, device_id)


BACKENDS: dict[str, tuple[Callable[[Path, GraphSet, int | None, int], Backend], str]] = {
    "onnxruntime": (OnnxRuntimeBackend, "ONNX"),
    "mindspore": (MindSporeBackend, "MINDIR"),
    "lite": (_lite, "LITE"),
}
"""By name: what makes the backend, and the format that it runs unless told otherwise."""
