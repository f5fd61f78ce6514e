"""Checkpoints of this package: saving that leaves a whole file or none, reading that says what is wrong with one.

A MindSpore `.ckpt` (`dvt.checkpoint.format`) of every parameter under its name in the model, and one more entry,
`dvt_metadata`, a JSON text (docs/files.md). A file without MindSpore's checksum at its end is incomplete.
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

    The file is written beside `path`, synced and moved, so `path` holds the old file or the whole new one.
    `metadata["model"]` is a ModelConfig or its dict; a model's own `config` is taken where it is missing. NumPy numbers
    and arrays in the metadata become lists. Raises CheckpointError for a path that cannot be written (on a full disk it
    names the space that is free) and for metadata that JSON cannot hold.
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
        text = json.dumps(metadata, default=_plain)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the metadata of a checkpoint must be numbers, texts, lists and dicts: {error}"
        ) from error
    if isinstance(weights, Mapping):
        # ascontiguousarray alone makes scalars vectors
        weights = {name: ms.Tensor(np.ascontiguousarray(v).reshape(np.shape(v))) for name, v in weights.items()}
    else:
        weights = weights.parameters_dict()
    if METADATA_KEY in weights:
        raise CheckpointError(f"no parameter may be called {METADATA_KEY}")
    entries = [{"name": name, "data": value} for name, value in weights.items()]
    try:
        with replacing(path) as written:
            ms.save_checkpoint(entries, str(written), append_dict={METADATA_KEY: text}, crc_check=True)
    except (OSError, RuntimeError) as error:
        before = f" The {path.name} saved before is untouched." if path.exists() else ""
        raise CheckpointError(f"cannot save the checkpoint {path}: {write_failure(path, error)}.{before}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is neither a number, a text, a list nor a dict")


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Reads a checkpoint. Raises CheckpointError, with the cause, for a missing, incomplete or other kind of file."""
    path = Path(expanded(path))
    if kind_of(path) == "PyTorch":
        raise CheckpointError(
            f"{path} is a PyTorch file, not a MindSpore checkpoint. That of a DVT becomes one by dvt convert {path} "
            "OUT.ckpt; a training can start from that of a DVT, a DeiT or a T2T-ViT as it is (train.init_checkpoint)"
        )
    content = read_ckpt(path)
    text = content.texts.pop(METADATA_KEY, None)
    if text is None:
        raise CheckpointError(
            f"{path} is a MindSpore checkpoint, but it does not say of which model: its {METADATA_KEY} is missing. It "
            "was cut short, or not saved by dvt.checkpoint.save_checkpoint"
        )
    if not content.has_checksum:
        raise CheckpointError(f"{path} is incomplete: the checksum at its end is missing; copy or save it again")
    if content.texts:
        raise CheckpointError(f"{path} holds texts where tensors belong: {listing(content.texts)}; save it again")
    try:
        metadata = json.loads(text)
        version = metadata["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: its {METADATA_KEY} cannot be read ({reason_of(error)})") from error
    if version != FORMAT:
        raise CheckpointError(
            f"{path} has the format {version!r}, but this version of the package reads {FORMAT} alone; if a newer "
            "version saved it, update the package"
        )
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

    Raises CheckpointError that lists what is missing, unexpected, of another shape, not floating-point or not finite;
    the model is then unchanged. `source` names the weights in that message.
    """
    import mindspore as ms

    parameters = model.parameters_dict()
    check_weights({name: tuple(p.shape) for name, p in parameters.items()}, weights, source)
    for name, parameter in parameters.items():
        value = np.ascontiguousarray(weights[name])
        parameter.set_data(ms.Tensor(value.reshape(parameter.shape), dtype=parameter.dtype))


def load_model(path: str | os.PathLike, *, kernels: bool = True) -> tuple["nn.Cell", Checkpoint]:
    """Builds the model that `path` describes, with its weights; `kernels=False` without the compiled CPU kernels.

    Raises CheckpointError as `read_checkpoint` does.
    """
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
    faults: dict[str, list[str]] = {
        "missing": [name for name in shapes if name not in weights],
        "unexpected": [name for name in weights if name not in shapes],
    }
    for name in (name for name in shapes if name in weights):
        value, needed, fault = np.asarray(weights[name]), tuple(shapes[name]), None
        if value.dtype.kind != "f":
            fault = "not floating-point"
        elif value.shape != needed:
            name, fault = f"{name} is {value.shape}, needed {needed}", "of another shape"
        elif not np.isfinite(value).all():  # last: a few bytes in a file can claim an array of any size
            fault = "with NaN or infinity"
        if fault:
            faults.setdefault(fault, []).append(name)
    if any(faults.values()):
        found = [
            f"{len(names)} {fault} ({listing(names, '; ' if fault == 'of another shape' else ', ')})"
            for fault, names in faults.items()
            if names
        ]
        raise CheckpointError(
            f"{source}: the weights do not fit the model of {len(shapes)} tensors: {', '.join(found)}. Nothing was "
            "loaded; build the model that the file belongs to"
        )
