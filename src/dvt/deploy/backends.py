"""What runs the files of a bundle. Each backend imports its runtime only when it is made."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dvt.deploy.lite import LiteBackend
from dvt.deploy.manifest import CONVERTED, GraphSet
from dvt.errors import BundleError, DeviceError

_ONNX_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}
_NOWHERE = "/nonexistent"


def _runtime(package: str, extra: str) -> Any:
    """The module of a runtime. Raises DeviceError if it is not installed."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        remedy = f"pip install 'dvt-mindspore[{extra}]'"
        raise DeviceError(f"the {package} backend needs the package {package}: {remedy}") from error


class Backend:
    """The loaded exits of a bundle.

    Made of the bundle's folder, the files of one format, the threads of the CPU (None lets the runtime choose) and the
    number of the card (MindSpore Lite on Ascend). Raises DeviceError if the runtime is not installed, BundleError for
    files that it cannot load. Some take only the batch sizes that the manifest lists (`pads`); some hold another
    process, which `close` ends.
    """

    pads = False

    def run(self, index: int, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Outputs of one exit; inputs and outputs in the order of the manifest."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to do."""


class OnnxRuntimeBackend(Backend):
    """ONNX Runtime on the CPU."""

    def __init__(self, folder: Path, graphs: GraphSet, threads: int | None = None, device_id: int = 0) -> None:
        onnxruntime = _runtime("onnxruntime", "deploy")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        # Weights in further files would be read without a hash, from wherever the graph says: there is no such place.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NOWHERE)
        self._files, self._sessions = graphs.exits, []
        for entry in graphs.exits:
            path = folder / entry.file
            try:
                session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
            except Exception as error:  # the runtime's errors have no common class of their own
                raise BundleError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {error}") from error
            found = {
                (each.name, tuple(n if isinstance(n, int) else None for n in each.shape), _ONNX_TYPES.get(each.type))
                for each in session.get_inputs() + session.get_outputs()
            }
            if found != {(each.name, each.shape, each.dtype) for each in entry.inputs + entry.outputs}:
                raise BundleError(f"{path} does not take and return what its manifest says; export it again")
            self._sessions.append(session)

    def run(self, index: int, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        entry = self._files[index]
        given = {value.name: array for value, array in zip(entry.inputs, inputs, strict=True)}
        return self._sessions[index].run([value.name for value in entry.outputs], given)


class MindSporeBackend(Backend):
    """MindIR files as MindSpore cells, on the device that the process has chosen (`dvt.device.set_up`)."""

    def __init__(self, folder: Path, graphs: GraphSet, threads: int | None = None, device_id: int = 0) -> None:
        mindspore = _runtime("mindspore", "train")
        try:
            loaded = [mindspore.load(str(folder / entry.file)) for entry in graphs.exits]
        except (RuntimeError, ValueError) as error:
            raise BundleError(f"MindSpore cannot load the MindIR files of {folder}: {error}") from error
        self._cells = [mindspore.nn.GraphCell(graph) for graph in loaded]

    def run(self, index: int, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        from mindspore import Tensor

        from dvt.device import GRAPH_LOCK

        with GRAPH_LOCK:
            outputs = self._cells[index](*[Tensor(array) for array in inputs])
            return [output.asnumpy() for output in (outputs if isinstance(outputs, tuple | list) else [outputs])]


BACKENDS: dict[str, tuple[Callable[..., Backend], tuple[str, ...]]] = {
    "onnxruntime": (OnnxRuntimeBackend, ("ONNX", "ONNX_INT8")),
    "mindspore": (MindSporeBackend, ("MINDIR",)),
    "lite": (LiteBackend, (CONVERTED,)),
}
"""By name: what makes the backend, and the formats that it runs, the first unless another is asked for."""
