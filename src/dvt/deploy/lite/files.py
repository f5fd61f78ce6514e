"""MindSpore Lite: configurations for its converter, and the converted files in the manifest (`dvt lite`)."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from dvt.deploy.manifest import CONVERTED, GraphSet, describe_file, read_manifest, write_manifest
from dvt.errors import BundleError

TARGETS = {"cpu": ("ONNX", "{stem}.ms"), "ascend": ("MINDIR", "{stem}_ascend.mindir")}
"""By target: the format that is converted, and the names of the results."""

# On Ascend the converter's default is float16 for all operators, which moves confidences. A float16 file names the type
# of each operator itself: LayerNorm, softmax and the performers stay float32 (`dvt.models.precision`).
PRECISION_MODES = {"float32": "preferred_fp32", "float16": "enforce_origin"}


def write_ascend_configs(folder: Path, graphs: GraphSet, batch_sizes: Sequence[int]) -> None:
    """Writes `exit_K.ascend.ini` per exit for `converter_lite --configFile`, with the batch sizes it compiles."""
    for entry in graphs.exits:
        shapes = [
            f"{value.name}:[{','.join('-1' if size is None else str(size) for size in value.shape)}]"
            for value in entry.inputs
        ]
        sizes = ",".join(f"[{size}]" for size in batch_sizes)
        lines = [
            "[ascend_context]",
            f"input_shape={';'.join(shapes)}",
            f"dynamic_dims={';'.join([sizes] * len(shapes))}",
            f"precision_mode={PRECISION_MODES[graphs.precision]}",
        ]
        (folder / f"{Path(entry.file).stem}.ascend.ini").write_text("\n".join(lines) + "\n", encoding="utf-8")


def register(folder: str | os.PathLike, target: str) -> GraphSet:
    """Enters converted files into the manifest as the format LITE, so that `Cascade(folder, "lite")` runs them.

    Raises BundleError if the bundle lacks the format that is converted, or a converted file is not there, ConfigError
    if the manifest cannot be written.
    """
    manifest = read_manifest(folder)
    source, name = TARGETS[target]
    if source not in manifest.graphs:
        raise BundleError(f"{folder} holds no {source} files, which are converted for {target}; export with --format")
    graphs = manifest.graphs[source]
    entries = []
    for entry in graphs.exits:
        path = Path(folder) / name.format(stem=Path(entry.file).stem)
        if not path.is_file():
            raise BundleError(f"{path} is missing; convert the bundle with scripts/run_lite_convert.sh first")
        entries.append(describe_file(path, entry.inputs, entry.outputs))
    converted = GraphSet(graphs.precision, tuple(entries), details={"target": target, "converted_from": source})
    write_manifest(Path(folder), dataclasses.replace(manifest, graphs={**manifest.graphs, CONVERTED: converted}))
    return converted
