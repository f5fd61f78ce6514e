"""ONNX files of a model, one per exit or one for all."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

import dvt
from dvt.deploy.backends import OnnxRuntimeBackend
from dvt.deploy.manifest import Value, exit_values
from dvt.deploy.onnx.exits import ExitWriter
from dvt.deploy.onnx.graph import OPSET, GraphWriter, Symbol
from dvt.errors import DVTError
from dvt.models.cost import handed_on_shapes
from dvt.models.names import with_shared
from dvt.models.variants import ModelConfig

MAX_BYTES = 2**31 - 1  # of one protobuf message


class OnnxWriter:
    """Writes the ONNX files, with an open batch, of a model with `weights` by parameter name."""

    suffix = "onnx"
    backend = OnnxRuntimeBackend
    batch_size = None

    def __init__(self, config: ModelConfig, weights: Mapping[str, np.ndarray], precision: str = "float32") -> None:
        self.config, self.weights, self.precision = config, with_shared(config, weights), precision
        self.details = {
            "opset": OPSET,
            "onnx": onnx.__version__,
            "checked_with": f"onnxruntime {onnxruntime.__version__}",
        }

    def save(self, exit_index: int | None, inputs: Sequence[Value], path: Path) -> None:
        """Writes one exit, or the whole model for None. Raises DVTError if that is too large for one file."""
        model = self.model(exit_index)
        if model.ByteSize() > MAX_BYTES:
            raise DVTError(
                f"{path.name} would have {model.ByteSize() / 1e9:.1f} GB, and an ONNX file holds 2 GB at most; export "
                "one file per exit, float16, or a smaller model"
            )
        path.write_bytes(model.SerializeToString())

    def model(self, exit_index: int | None) -> onnx.ModelProto:
        """One exit as an ONNX model, or for None all of them, each on every image."""
        config = self.config
        inputs, outputs = exit_values(config, exit_index, self.precision)
        name = config.name if exit_index is None else f"{config.name}_exit_{exit_index}"
        graph = GraphWriter(name, np.dtype(self.precision))
        given = {value.role: graph.input(value) for value in inputs}
        if exit_index is None:
            results = {"probabilities": self._all_exits(graph, given["images"])}
        else:
            results = ExitWriter(graph, config, self.weights, exit_index).add(given)
        for value in outputs:
            graph.output(value, results[value.role])
        return graph.model(self._metadata(exit_index), dvt.__version__)

    def _all_exits(self, graph: GraphWriter, images: Symbol) -> Symbol:
        """Images (B, I, S, S) -> probabilities (B, K, classes)."""
        answers, handed_on = [], {}
        for index in range(self.config.num_exits):
            with graph.scope(f"exits.{index}"):
                outputs = ExitWriter(graph, self.config, self.weights, index).add({"images": images, **handed_on})
                answers.append(outputs["probabilities"].reshape(0, 1, self.config.num_classes))
            handed_on = {role: outputs[role] for role in handed_on_shapes(self.config, index)}
        return graph.add("Concat", *answers, axis=1)

    def _metadata(self, exit_index: int | None) -> dict[str, str]:
        """What a viewer shows of the file."""
        metadata = {
            "model": self.config.name,
            "source": "Dynamic Vision Transformer, arXiv 2105.15075",
            "model_config": json.dumps(self.config.to_dict()),
            "precision": self.precision,
        }
        return metadata if exit_index is None else metadata | {"exit_index": str(exit_index)}
