"""Checkpoints of this package: saving that leaves a whole file or none, reading that says what is wrong with one.

A MindSpore `.ckpt` of every parameter under its name, and one more entry, `dvt_metadata`, a JSON text (docs/files.md).
MindSpore is imported only where a file or a model is touched, so that `dvt.convert` can check names without it.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dvt.checkpoint.format import kind_of, read_ckpt
from dvt.errors import CheckpointError, ConfigError, listing, reason_of
from dvt.models.variants import ModelConfig
from dvt.safe_files import replacing, write_failure
from dvt.value_checks import expanded

if TYPE_CHECKING:
    from mindspore import nn

FORMAT = 1
METADATA_KEY = "dvt_metadata"


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: weights by parameter name, the model they belong to, and the whole metadata."""

    weights: dict[str, np.ndarray]
    metadata: dict[str, Any]
    model: ModelConfig


def save_checkpoint(
    path: str | os.PathLike, weights: "nn.Cell | Mapping[str, np.ndarray]", metadata: Mapping[str, Any] | None = None
) -> None:
    """Saves `weights` (all parameters of a model, or arrays by name) and `metadata` under `path`, or nothing at all.

    `metadata["model"]` is a ModelConfig or its dict; a model's own `config` is taken where it is missing. NumPy numbers
    and arrays in the metadata become lists. Raises CheckpointError for a path that cannot be written and for metadata
    that JSON cannot hold.
    """
    import mindspore as ms

    path = Path(expanded(path))
    if path.suffix != ".ckpt":
        raise CheckpointError(f"cannot save to {path}: the name of a checkpoint must end in .ckpt")
    metadata = dict(metadata or {})
    model = metadata.get("model", getattr(weights, "config", None))
    if not isinstance(model, ModelConfig | dict):
        raise CheckpointError("the metadata of a checkpoint needs 'model', the ModelConfig of its weights")
    metadata |= {"format": FORMAT, "model": model.to_dict() if isinstance(model, ModelConfig) else model}
    try:
        text = json.dumps(metadata, default=lambda value: value.tolist())  # NumPy's
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"metadata must be numbers, texts, lists and dicts for JSON: {error}") from error
    if isinstance(weights, Mapping):
        # ascontiguousarray alone makes scalars vectors
        weights = {name: ms.Tensor(np.ascontiguousarray(v).reshape(np.shape(v))) for name, v in weights.items()}
    else:
        weights = weights.parameters_dict()
    entries = [{"name": name, "data": value} for name, value in weights.items()]
    try:
        with replacing(path) as written:
            ms.save_checkpoint(entries, str(written), append_dict={METADATA_KEY: text}, crc_check=True)
    except (OSError, RuntimeError) as error:
        before = f" The {path.name} saved before is untouched." if path.exists() else ""
        raise CheckpointError(f"cannot save the checkpoint {path}: {write_failure(path, error)}.{before}") from error


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Reads a checkpoint. Raises CheckpointError, with the cause, for a missing, incomplete or other kind of file."""
    path = Path(expanded(path))
    if kind_of(path) == "PyTorch":
        raise CheckpointError(
            f"{path} is a PyTorch file. That of a DVT becomes a checkpoint by dvt convert {path} OUT.ckpt; a training "
            "can start from that of a DVT, a DeiT or a T2T-ViT as it is (train.init_checkpoint)"
        )
    content = read_ckpt(path)
    text, fault = content.texts.pop(METADATA_KEY, None), None
    if text is None:
        fault = f"does not say of which model it is: its {METADATA_KEY} is missing. It was cut short, or is not of dvt"
    elif not content.has_checksum:
        fault = "is incomplete: the checksum at its end is missing; copy or save it again"
    elif content.texts:
        fault = f"holds texts where tensors belong: {listing(content.texts)}; save it again"
    if fault:
        raise CheckpointError(f"{path} {fault}")
    try:
        metadata = json.loads(text)
        version = metadata["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: its {METADATA_KEY} cannot be read ({reason_of(error)})") from error
    if version != FORMAT:
        raise CheckpointError(f"{path} has the format {version!r}, and {FORMAT} is needed; a newer version reads more")
    return Checkpoint(content.tensors, metadata, read_model(path, metadata.get("model")))


def read_model(path: Path, stored: Any) -> ModelConfig:
    """The configuration that the file `path` holds as `stored`. Raises CheckpointError if it cannot be built."""
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path} does not say of which model it is: it lacks 'model'")
    try:
        return ModelConfig.from_dict(stored)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path} describes a model that cannot be built: {error}") from error


def load_weights(model: "nn.Cell", weights: Mapping[str, np.ndarray], source: str = "the weights") -> None:
    """Puts `weights` into `model`: all of them, under the same names and in the same shapes, or none.

    Raises CheckpointError, which names `source`, as `check_weights` does; the model is then unchanged.
    """
    import mindspore as ms

    parameters = model.parameters_dict()
    check_weights({name: tuple(p.shape) for name, p in parameters.items()}, weights, source)
    for name, parameter in parameters.items():
        value = np.ascontiguousarray(weights[name])
        parameter.set_data(ms.Tensor(value.reshape(parameter.shape), dtype=parameter.dtype))


def load_model(path: str | os.PathLike, *, kernels: bool = True) -> tuple["nn.Cell", Checkpoint]:
    """The model that `path` describes, with its weights; `kernels=False` without the compiled CPU kernels. Raises
    CheckpointError as `read_checkpoint` and `check_weights` do."""
    checkpoint = read_checkpoint(path)
    return model_of(checkpoint, str(path), kernels=kernels), checkpoint


def model_of(checkpoint: Checkpoint, source: str, *, kernels: bool = True) -> "nn.Cell":
    """The model of a checkpoint that was read from `source`, as `load_model` builds it."""
    from dvt.models.cascade import build_from_config
    from dvt.models.names import parameter_shapes

    # Before building: a few bytes of configuration must not make a model of any size.
    check_weights(parameter_shapes(checkpoint.model), checkpoint.weights, source)
    model = build_from_config(checkpoint.model, kernels=kernels, initialised=False)
    load_weights(model, checkpoint.weights, source=source)
    return model


def check_weights(shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, np.ndarray], source: str) -> None:
    """Raises CheckpointError unless `weights` are finite floating-point arrays of exactly these names and shapes."""
    faults = {"missing": [name for name in shapes if name not in weights]}
    faults["unexpected"] = [name for name in weights if name not in shapes]
    for name in shapes.keys() & weights.keys():
        value, needed = np.asarray(weights[name]), tuple(shapes[name])
        if value.dtype.kind != "f":
            faults.setdefault("not floating-point", []).append(name)
        elif value.shape != needed:
            faults.setdefault("of another shape", []).append(f"{name} is {value.shape}, needed {needed}")
        elif not np.isfinite(value).all():  # last: a few bytes in a file can claim an array of any size
            faults.setdefault("with NaN or infinity", []).append(name)
    found = [f"{len(names)} {fault} ({listing(sorted(names))})" for fault, names in faults.items() if names]
    if found:
        raise CheckpointError(
            f"{source}: the weights do not fit the model of {len(shapes)} tensors: {', '.join(found)}. Nothing was "
            "loaded; build the model that the file belongs to"
        )
