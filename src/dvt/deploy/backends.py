"""What runs the files of a bundle. Each backend imports its runtime only when it is made."""

import functools
import importlib
import logging
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dvt.deploy.lite import LiteBackend
from dvt.deploy.manifest import BFLOAT16, CONVERTED, GraphFile, GraphSet
from dvt.errors import BundleError, DeviceError
from dvt.safe_files import private_cache

_ONNX_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}
_MINDIR_TYPES = {1: "float32", 10: "float16"}
_NOWHERE = "/nonexistent"
PROCESSOR = Path("/proc/cpuinfo")
BUILDS = {"CANN": "cann", "CUDA": "gpu", "Tensorrt": "gpu", "OpenVINO": "openvino"}
"""Execution provider of ONNX Runtime -> end of the name of the package that has it, in place of `onnxruntime`."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RuntimeOptions:
    """How the files of a bundle are run.

    Args:
        threads: Threads of the CPU backends; None lets the runtime choose.
        device_id: Card of MindSpore Lite on Ascend.
        verify: Compare the files with the hashes of the manifest before they are loaded.
        precision: "bfloat16" lets OpenVINO compute in it, by default with the thresholds of the format "ONNX_BF16".
        providers: Execution providers of ONNX Runtime, also as text with commas in between: each operator is run by the
            first that can; None for the CPU.
    """

    threads: int | None = None
    device_id: int = 0
    verify: bool = True
    precision: str = "float32"
    providers: str | Sequence[str] | None = None


class Backend:
    """The loaded exits of a bundle, made of its folder, the files of one format, and the options. Raises DeviceError if
    the runtime is not installed, BundleError for files that it cannot load."""

    pads = False  # whether only the batch sizes that the manifest lists can be run
    description: str  # the runtime and what it runs on

    def run(self, index: int, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Outputs of one exit; inputs and outputs in the order of the manifest."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to do."""


def _runtime(package: str, extra: str) -> Any:
    """The module of a runtime. Raises DeviceError if it is not installed."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        remedy = f"pip install 'dvt-mindspore[{extra}]'"
        raise DeviceError(f"the {package} backend needs the package {package}: {remedy}") from error


def _check_values(path: Path, entry: GraphFile, found: set[tuple[str, tuple[int | None, ...], str | None]]) -> None:
    """Raises BundleError unless these names, shapes and types of inputs and outputs are those of the manifest."""
    if found != {(each.name, each.shape, each.dtype) for each in entry.inputs + entry.outputs}:
        raise BundleError(f"{path} does not take and return what its manifest says; export it again")


class OnnxRuntimeBackend(Backend):
    """ONNX Runtime."""

    def __init__(self, folder: Path, graphs: GraphSet, options: RuntimeOptions) -> None:
        onnxruntime = _runtime("onnxruntime", "deploy")
        providers = _checked_providers(options.providers, onnxruntime.get_available_providers())
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads or 0
        # Every exit has threads of its own. By default they go on looking for work while the next exit needs the cores.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Weights in further files would be read without a hash, from wherever the graph says: there is no such place.
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", _NOWHERE)
        self._files, self._sessions = graphs.exits, []
        for entry in graphs.exits:
            path = folder / entry.file
            try:
                session = onnxruntime.InferenceSession(path.read_bytes(), settings, providers=providers)
            except Exception as error:  # the runtime's errors have no common class of their own
                what = f"ONNX Runtime {onnxruntime.__version__} cannot load {path} (newer files need a newer one)"
                raise BundleError(f"{what}: {error}") from error
            found = set()
            for each in session.get_inputs() + session.get_outputs():
                shape = tuple(size if isinstance(size, int) else None for size in each.shape)
                found.add((each.name, shape, _ONNX_TYPES.get(each.type)))
            _check_values(path, entry, found)
            self._sessions.append(session)
        used = self._sessions[0].get_providers()
        if used[0] != providers[0]:  # ONNX Runtime goes on without one that fails to start
            raise DeviceError(f"ONNX Runtime could not start {providers[0]}; its messages are above")
        self.description = f"ONNX Runtime {onnxruntime.__version__}, {', '.join(used)}"

    def run(self, index: int, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        entry = self._files[index]
        given = {value.name: array for value, array in zip(entry.inputs, inputs, strict=True)}
        return self._sessions[index].run([value.name for value in entry.outputs], given)


def _checked_providers(asked: str | Sequence[str] | None, there: Sequence[str]) -> list[str]:
    """Full names of the execution providers, "CUDA" for short. Raises DeviceError for one that is not there."""
    found, short = [], [each.removesuffix("ExecutionProvider") for each in there]
    for name in asked.split(",") if isinstance(asked, str) else asked or ["CPU"]:
        given = name.strip().removesuffix("ExecutionProvider")
        known = next((each for each in (*short, *BUILDS) if each.lower() == given.lower()), given)
        if known not in short:
            remedy = "choose one of these"
            if known in BUILDS:
                remedy = f"the package onnxruntime-{BUILDS[known]} brings it (in place of onnxruntime)"
            raise DeviceError(f"this ONNX Runtime has no {known}ExecutionProvider; it has {', '.join(there)}; {remedy}")
        found.append(f"{known}ExecutionProvider")
    return found


@functools.cache
def _openvino() -> tuple[Any, Any]:
    """The module and its core, one for ever: a core that goes takes along the stack on which signals are handled where
    the processor has AMX, and the next Ctrl-C is a segmentation fault (seen with 2026.4.1)."""
    openvino = _runtime("openvino", "openvino")
    return openvino, openvino.Core()


def has_bfloat16() -> bool:
    """Whether this processor computes in bfloat16; OpenVINO imitates it on others."""
    named = re.search(r"\b(avx512_|amx_)?bf16\b", PROCESSOR.read_text() if PROCESSOR.exists() else "")
    return named is not None and "BF16" in _openvino()[1].get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def require_bfloat16() -> None:
    """Raises DeviceError unless `has_bfloat16`."""
    if not has_bfloat16():
        raise DeviceError("this processor does not compute in bfloat16: measure its thresholds on one that does")


class OpenVinoBackend(Backend):
    """ONNX files in OpenVINO, on the CPU; compiled once into this user's cache, one for each precision: a file compiled
    for float32 computes wrongly in bfloat16 (seen with 2026.4.1)."""

    def __init__(self, folder: Path, graphs: GraphSet, options: RuntimeOptions) -> None:
        openvino, core = _openvino()
        runtime = f"OpenVINO {openvino.__version__.partition('-')[0]}"
        settings = {"PERFORMANCE_HINT": "LATENCY"}
        settings["INFERENCE_PRECISION_HINT"] = "bf16" if options.precision == "bfloat16" else "f32"
        if options.threads:
            settings["INFERENCE_NUM_THREADS"] = options.threads
        try:
            settings["CACHE_DIR"] = str(private_cache(f"openvino-{options.precision}"))
        except (OSError, RuntimeError) as error:
            log.warning("compiled models are not kept: %s", error)
        self._files, self._requests, self._lock = graphs.exits, [], threading.Lock()
        for entry in graphs.exits:
            path = folder / entry.file
            content = path.read_bytes()
            if b"location" in content:  # of weights in further files, which would be read without a hash
                raise BundleError(f"{runtime} cannot load {path}: it names other files; export it again")
            try:
                model = core.compile_model(core.read_model(content, b""), "CPU", settings)
            except RuntimeError as error:
                raise BundleError(f"{runtime} cannot load {path}: {error}") from error
            names, found = {each.name for each in entry.inputs + entry.outputs}, set()
            for each in (*model.inputs, *model.outputs):  # an output also has the name of what it is computed by
                name = next(iter(names & each.names), None)
                shape = tuple(None if size.is_dynamic else size.get_length() for size in each.partial_shape)
                found.add((name, shape, str(np.dtype(each.element_type.to_dtype()))))
            _check_values(path, entry, found)
            self._requests.append(model.create_infer_request())
        self.description = f"{runtime}, CPU, {options.precision}"

    def run(self, index: int, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        entry = self._files[index]
        given = {value.name: array for value, array in zip(entry.inputs, inputs, strict=True)}
        with self._lock:  # a request runs once at a time
            found = self._requests[index].infer(given, share_inputs=True, share_outputs=False)
            return [found[value.name] for value in entry.outputs]


class MindSporeBackend(Backend):
    """MindIR files as MindSpore cells, on the device that the process has chosen (`dvt.device.set_up`)."""

    def __init__(self, folder: Path, graphs: GraphSet, options: RuntimeOptions) -> None:
        mindspore = _runtime("mindspore", "train")
        try:
            loaded = [mindspore.load(str(folder / entry.file)) for entry in graphs.exits]
        except (RuntimeError, ValueError) as error:
            raise BundleError(f"MindSpore cannot load the MindIR files of {folder}: {error}") from error
        for entry in graphs.exits:  # the files do not say what they return; `Cascade` sees it when it comes
            path, outputs = folder / entry.file, {(each.name, each.shape, each.dtype) for each in entry.outputs}
            _check_values(path, entry, _mindir_inputs(path) | outputs)
        self._cells = [mindspore.nn.GraphCell(graph) for graph in loaded]
        self.description = f"MindSpore {mindspore.__version__}, {mindspore.get_context('device_target')}"

    def run(self, index: int, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        from mindspore import Tensor

        from dvt.device import GRAPH_LOCK

        with GRAPH_LOCK:
            outputs = self._cells[index](*[Tensor(array) for array in inputs])
            return [output.asnumpy() for output in (outputs if isinstance(outputs, tuple | list) else [outputs])]


def _mindir_inputs(path: Path) -> set[tuple[str, tuple[int | None, ...], str | None]]:
    """Names, shapes (None where open) and types of the inputs of a MindIR file."""
    from mindspore.train import mind_ir_pb2

    found = set()
    for each in mind_ir_pb2.ModelProto.FromString(path.read_bytes()).graph.input:
        shape = tuple(size if size > 0 else None for size in each.tensor[0].dims)
        found.add((each.name.rpartition(":")[2], shape, _MINDIR_TYPES.get(each.tensor[0].data_type)))
    return found


BACKENDS: dict[str, tuple[Callable[..., Backend], tuple[str, ...]]] = {
    "onnxruntime": (OnnxRuntimeBackend, ("ONNX", "ONNX_INT8")),
    "openvino": (OpenVinoBackend, ("ONNX", BFLOAT16)),
    "mindspore": (MindSporeBackend, ("MINDIR",)),
    "lite": (LiteBackend, (CONVERTED,)),
}
"""By name: what makes the backend, and the formats that it runs, the first unless another is asked for."""
