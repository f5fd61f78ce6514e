"""ONNX files of a model, one per exit."""

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
from dvt.deploy.onnx.graph import OPSET, GraphWriter
from dvt.errors import DVTError
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

    def save(self, exit_index: int, inputs: Sequence[Value], path: Path) -> None:
        """Writes one exit. Raises DVTError if that is too large for one file."""
        model = self.model(exit_index)
        if model.ByteSize() > MAX_BYTES:
            raise DVTError(
                f"{path.name} would have {model.ByteSize() / 1e9:.1f} GB, and an ONNX file holds 2 GB at most; export "
                "float16, or a smaller model"
            )
        path.write_bytes(model.SerializeToString())

    def model(self, exit_index: int) -> onnx.ModelProto:
        """One exit as an ONNX model."""
        config = self.config
        inputs, outputs = exit_values(config, exit_index, self.precision)
        graph = GraphWriter(f"{config.name}_exit_{exit_index}", np.dtype(self.precision))
        given = {value.role: graph.input(value) for value in inputs}
        results = ExitWriter(graph, config, self.weights, exit_index).add(given)
        for value in outputs:
            graph.output(value, results[value.role])
        metadata = {  # what a viewer shows of the file
            "model": config.name,
            "source": "Dynamic Vision Transformer, arXiv 2105.15075",
            "model_config": json.dumps(config.to_dict()),
            "precision": self.precision,
            "exit_index": str(exit_index),
        }
        return graph.model(metadata, dvt.__version__)
