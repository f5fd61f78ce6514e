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

from dvt.checkpoint.format import read_ckpt
from dvt.errors import CheckpointError, ConfigError, listing, reason_of
from dvt.models.variants import ModelConfig
from dvt.safe_files import replacing, write_failure

if TYPE_CHECKING:
    import mindspore as ms
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

    path = Path(path)
    if path.suffix != ".ckpt":
        raise CheckpointError(f"cannot save to {path}: the name of a checkpoint must end in .ckpt")
    text = _metadata_text(weights, dict(metadata or {}))
    entries = [{"name": name, "data": value} for name, value in _tensors(weights).items()]
    try:
        with replacing(path) as written:
            ms.save_checkpoint(entries, str(written), append_dict={METADATA_KEY: text}, crc_check=True)
    except (OSError, RuntimeError) as error:
        before = f" The {path.name} saved before is untouched." if path.exists() else ""
        raise CheckpointError(f"cannot save the checkpoint {path}: {write_failure(path, error)}.{before}") from error


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Reads a checkpoint. Raises CheckpointError, with the cause, for a missing, incomplete or other kind of file."""
    path = Path(path)
    _check_readable(path)
    content = read_ckpt(path)
    text = content.texts.get(METADATA_KEY)
    if text is None:
        raise CheckpointError(
            f"{path} is a MindSpore checkpoint, but it does not say of which model: its {METADATA_KEY} is missing. It "
            "was cut short, or not saved by dvt.checkpoint.save_checkpoint"
        )
    if not content.has_checksum:
        raise CheckpointError(f"{path} is incomplete: the checksum at its end is missing; copy or save it again")
    metadata = _parse_metadata(path, text)
    if not isinstance(metadata.get("model"), dict):
        raise CheckpointError(f"{path} does not say of which model it is: its {METADATA_KEY} lacks 'model'")
    try:
        model = ModelConfig.from_dict(metadata["model"])
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path} describes a model that cannot be built: {error}") from error
    other_texts = [name for name in content.texts if name != METADATA_KEY]
    if other_texts:
        raise CheckpointError(f"{path} holds texts where tensors belong: {listing(other_texts)}; save it again")
    return Checkpoint(content.tensors, metadata, model)


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
    from dvt.models.cascade import build_from_config
    from dvt.models.names import parameter_shapes

    checkpoint = read_checkpoint(path)
    # Before building: a few bytes of configuration must not make a model of any size.
    check_weights(parameter_shapes(checkpoint.model), checkpoint.weights, str(path))
    model = build_from_config(checkpoint.model, kernels=kernels, initialised=False)
    load_weights(model, checkpoint.weights, source=str(path))
    return model, checkpoint


def check_weights(shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, np.ndarray], source: str) -> None:
    """Raises CheckpointError unless `weights` are finite floating-point arrays of exactly these names and shapes."""
    faults: dict[str, list[str]] = {
        "missing": [name for name in shapes if name not in weights],
        "unexpected": [name for name in weights if name not in shapes],
        "of another shape": [],
        "not floating-point": [],
        "with NaN or infinity": [],
    }
    for name in (name for name in shapes if name in weights):
        value, needed = np.asarray(weights[name]), tuple(shapes[name])
        if value.shape != needed:
            faults["of another shape"].append(f"{name} is {value.shape}, needed {needed}")
        if value.dtype.kind != "f":
            faults["not floating-point"].append(name)
        # Only where the shape is right: a few bytes in a file can claim an array of any size.
        elif value.shape == needed and not np.isfinite(value).all():
            faults["with NaN or infinity"].append(name)
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


def _tensors(weights: "nn.Cell | Mapping[str, np.ndarray]") -> "dict[str, ms.Tensor]":
    import mindspore as ms

    if not isinstance(weights, Mapping):
        return dict(weights.parameters_dict())
    if METADATA_KEY in weights:
        raise CheckpointError(f"no parameter may be called {METADATA_KEY}")
    return {name: ms.Tensor(np.ascontiguousarray(value).reshape(np.shape(value))) for name, value in weights.items()}


def _metadata_text(weights: "nn.Cell | Mapping[str, np.ndarray]", metadata: dict[str, Any]) -> str:
    model = metadata.get("model", getattr(weights, "config", None))
    if isinstance(model, ModelConfig):
        model = model.to_dict()
    if not isinstance(model, dict):
        raise CheckpointError("the metadata of a checkpoint needs 'model', the ModelConfig of its weights")
    try:
        return json.dumps({**metadata, "format": FORMAT, "model": model}, default=_plain)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the metadata of a checkpoint must be numbers, texts, lists and dicts: {error}"
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is neither a number, a text, a list nor a dict")


def _parse_metadata(path: Path, text: str) -> dict[str, Any]:
    try:
        metadata = json.loads(text)
        version = metadata["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: its {METADATA_KEY} cannot be read ({reason_of(error)})") from error
    if not isinstance(version, int) or version < 1:
        raise CheckpointError(f"{path} has the unknown format {version!r}; this version reads format {FORMAT}")
    if version > FORMAT:
        raise CheckpointError(
            f"{path} was saved by a newer version of this package (format {version}; this one reads up to {FORMAT}); "
            "update the package"
        )
    return metadata


def _check_readable(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a checkpoint.{_nearby(path)}")
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint {path}.{_nearby(path.parent)}")
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {reason_of(error)}") from error
    if not start:
        raise CheckpointError(f"the checkpoint {path} is empty; copy or save it again")
    if start.startswith((b"PK\x03\x04", b"\x80\x02")):
        raise CheckpointError(
            f"{path} is a PyTorch file, not a MindSpore checkpoint; turn it into one with "
            f"scripts/convert_checkpoint.py {path} OUT.ckpt"
        )
    if path.suffix != ".ckpt":
        raise CheckpointError(f"{path} is not a checkpoint of this package: those end in .ckpt")


def _nearby(folder: Path) -> str:
    if not folder.is_dir():
        return f" The folder {folder} does not exist either"
    found = sorted(str(file) for file in folder.glob("*.ckpt"))
    return f" Checkpoints in {folder}: {listing(found, shown=5)}" if found else f" There is no .ckpt file in {folder}"
