"""What runs the files of a bundle; `choose` takes one of `BACKENDS`. Each imports its runtime only when it is made."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dvt.deploy.manifest import CONVERTED, GraphFile, GraphSet
from dvt.errors import BundleError, ConfigError, DeviceError

_ONNX_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}
_NOWHERE = "/nonexistent"


class Backend:
    """The loaded exits of a bundle.

    Made of the bundle's folder, the files of one format, the threads of the CPU (None lets the runtime choose) and the
    number of the card (MindSpore Lite on Ascend). Raises DeviceError if the runtime is not installed, BundleError for
    files that it cannot load.

    Attributes:
        pads: Whether only the batch sizes that the manifest lists can be run.
    """

    pads = False

    def run(self, index: int, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Outputs of one exit; inputs and outputs in the order of the manifest."""
        raise NotImplementedError

    def close(self) -> None:
        """Frees what the backend holds outside of this process."""


class OnnxRuntimeBackend(Backend):
    """ONNX Runtime on the CPU, any number of images at once."""

    def __init__(self, folder: Path, graphs: GraphSet, threads: int | None = None, device_id: int = 0) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise DeviceError(
                "the onnxruntime backend needs the package onnxruntime: pip install 'dvt-mindspore[deploy]'"
            ) from error
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
            if _signature(session) != {
                (value.name, value.shape, value.dtype) for value in entry.inputs + entry.outputs
            }:
                raise BundleError(f"{path} does not take and return what its manifest says; export it again")
            self._sessions.append(session)

    def run(self, index: int, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        entry: GraphFile = self._files[index]
        given = {value.name: array for value, array in zip(entry.inputs, inputs, strict=True)}
        return self._sessions[index].run([value.name for value in entry.outputs], given)


def _signature(session: object) -> set[tuple[str, tuple[int | None, ...], str]]:
    """Names, shapes (None where open) and types of the inputs and outputs of an ONNX session."""
    return {
        (each.name, tuple(size if isinstance(size, int) else None for size in each.shape), _ONNX_TYPES.get(each.type))
        for each in session.get_inputs() + session.get_outputs()
    }


class MindSporeBackend(Backend):
    """MindIR files as MindSpore cells, on the device that the process has chosen (`dvt.device.set_up`)."""

    def __init__(self, folder: Path, graphs: GraphSet, threads: int | None = None, device_id: int = 0) -> None:
        try:
            import mindspore
        except ModuleNotFoundError as error:
            raise DeviceError(
                "the mindspore backend needs MindSpore: pip install 'dvt-mindspore[train]'; the onnxruntime backend "
                "does without"
            ) from error
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


def _lite(folder: Path, graphs: GraphSet, threads: int | None, device_id: int) -> Backend:
    from dvt.deploy.lite.backend import LiteBackend

    return LiteBackend(folder, graphs, threads, device_id)


MakeBackend = Callable[[Path, GraphSet, int | None, int], Backend]

BACKENDS: dict[str, tuple[MakeBackend, tuple[str, ...]]] = {
    "onnxruntime": (OnnxRuntimeBackend, ("ONNX", "ONNX_INT8")),
    "mindspore": (MindSporeBackend, ("MINDIR",)),
    "lite": (_lite, (CONVERTED,)),
}
"""By name: what makes the backend, and the formats that it runs, the first unless another is asked for."""


def choose(name: str) -> tuple[MakeBackend, tuple[str, ...]]:
    """The entry of `BACKENDS` of this name. Raises ConfigError for an unknown one."""
    if name not in BACKENDS:
        raise ConfigError(f"unknown backend {name!r}; choose from {', '.join(BACKENDS)}")
    return BACKENDS[name]
