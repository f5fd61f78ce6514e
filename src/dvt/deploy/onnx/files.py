"""ONNX files of a model, one per exit or one for all, and loading one of them to check it."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

import dvt
from dvt.deploy.manifest import exit_values, whole_values
from dvt.deploy.onnx.exits import add_exit
from dvt.deploy.onnx.graph import OPSET, GraphWriter
from dvt.errors import DVTError
from dvt.models.names import with_shared
from dvt.models.variants import ModelConfig

MAX_BYTES = 2**31 - 1  # of one protobuf message


def exit_model(
    config: ModelConfig, weights: Mapping[str, np.ndarray], exit_index: int, precision: str = "float32"
) -> onnx.ModelProto:
    """One exit of the model with `weights` (by parameter name) as an ONNX model with an open batch."""
    inputs, outputs = exit_values(config, exit_index, precision)
    graph = GraphWriter(f"{config.name}_exit_{exit_index}", np.dtype(precision))
    given = {value.role: graph.input(value) for value in inputs}
    weights = with_shared(config, weights)
    results = add_exit(
        graph, config, weights, exit_index, given["images"], given.get("features"), given.get("relations")
    )
    results = dict(zip(("logits", "features", "relations"), results, strict=True))
    results["probabilities"] = _answers(graph, exit_index, results["logits"], given.get("probabilities"))
    for value in outputs:
        graph.output(value, results[value.role], graph.dtype)
    return graph.model(_metadata(config, exit_index=exit_index, precision=precision), dvt.__version__)


def whole_model(config: ModelConfig, weights: Mapping[str, np.ndarray], precision: str = "float32") -> onnx.ModelProto:
    """All exits, each on every image: images (B, I, S, S) -> probabilities (B, K, classes)."""
    (images,), (probabilities,) = whole_values(config)
    graph = GraphWriter(config.name, np.dtype(precision))
    given, features, relations, answers = graph.input(images), None, None, None
    weights = with_shared(config, weights)
    results = []
    for exit_index in range(config.num_exits):
        with graph.scope(f"exits.{exit_index}"):
            logits, features, relations = add_exit(graph, config, weights, exit_index, given, features, relations)
            answers = _answers(graph, exit_index, logits, answers if config.average_exits else None)
            results.append(graph.reshape(answers, 0, 1, config.num_classes))
    graph.output(probabilities, graph.add("Concat", *results, axis=1), graph.dtype)
    return graph.model(_metadata(config, precision=precision), dvt.__version__)


def _answers(graph: GraphWriter, exit_index: int, logits: str, earlier: str | None) -> str:
    """Probabilities (B, classes) of an exit, averaged with the answers of the exit before if there are any."""
    own = graph.softmax(logits)
    if earlier is None:
        return own
    shares = np.array([exit_index, 1], graph.dtype) / (exit_index + 1)
    earlier = graph.add("Mul", earlier, graph.constant("share_before", shares[0]))
    return graph.add("Add", earlier, graph.add("Mul", own, graph.constant("share", shares[1])))


def save(model: onnx.ModelProto, path: Path) -> None:
    """Writes the model as one file. Raises DVTError if it is too large for one, OSError if it cannot be written."""
    if model.ByteSize() > MAX_BYTES:
        raise DVTError(
            f"{path.name} would have {model.ByteSize() / 1e9:.1f} GB, and an ONNX file holds 2 GB at most; export one "
            "file per exit, float16, or a smaller model"
        )
    path.write_bytes(model.SerializeToString())


def load_file(path: Path) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """Loads a file into ONNX Runtime on the CPU; what comes back computes its outputs of its inputs, in order."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def versions() -> dict[str, object]:
    """What the files were written and checked with, for the manifest."""
    return {"opset": OPSET, "onnx": onnx.__version__, "checked_with": f"onnxruntime {onnxruntime.__version__}"}


def _metadata(config: ModelConfig, **more: object) -> dict[str, str]:
    """What a viewer shows of the file; the whole configuration is there as JSON."""
    texts = {"model": config.name, "source": "Dynamic Vision Transformer, arXiv 2105.15075"}
    return {**texts, "model_config": json.dumps(config.to_dict()), **{key: str(value) for key, value in more.items()}}
