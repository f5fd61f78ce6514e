"""Weights in int8: ONNX files whose dense layers multiply 8-bit integers; activations are scaled at run time ("dynamic
quantisation"). That moves confidences: these files need thresholds of their own (`dvt.deploy.recalibration`)."""

from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process

from dvt.data.progress import progress
from dvt.deploy.manifest import GraphSet, describe_file

# Kept in float32: the fixed resize of relations, whose entries are exact shares, the head, whose cost is nothing and
# whose rounding goes straight into the confidences, and the performers, whose exponentials magnify it.
KEPT_IN_FLOAT = ("relation_reuse/", "head/", "tokens/performer")


def write_int8(folder: Path, graphs: GraphSet) -> GraphSet:
    """Writes the exits of `graphs`, float32 ONNX files in `folder`, beside them with their dense layers in int8."""
    entries = []
    for entry in progress(graphs.exits, unit="file", desc="int8"):
        target = folder / f"{Path(entry.file).stem}.int8.onnx"
        quant_pre_process(folder / entry.file, target, skip_optimization=True, skip_symbolic_shape=True)  # shapes
        nodes = onnx.load(str(target)).graph.node
        quantize_dynamic(
            target,
            target,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=[node.name for node in nodes if any(part in node.name for part in KEPT_IN_FLOAT)],
            per_channel=True,
            reduce_range=True,  # with eight bits sums saturate on x86 without VNNI: results would depend on the machine
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
        onnx.checker.check_model(onnx.load(str(target)), full_check=True)
        entries.append(describe_file(target, entry.inputs, entry.outputs))
    return GraphSet("int8", tuple(entries), details={**graphs.details, "weights": "int8, 7 bits, per output channel"})
