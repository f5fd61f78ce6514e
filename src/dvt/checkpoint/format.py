"""What kind of file one is, what a checkpoint holds whatever its kind, and how safetensors and MindSpore's `.ckpt` are
read: the latter are tensors and texts as protobuf, a mark, the CRC32 of all.

The schema is MindSpore's; its reader is not used: it crashes where there are fewer bytes than a file states, refuses a
good file that is larger than the free memory, and makes tensors before the device is chosen.
"""

import json
import math
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dvt.errors import CheckpointError, ConfigError, listing, reason_of
from dvt.models.variants import ModelConfig
from dvt.safe_files import content_of
from dvt.value_checks import Bounds, from_plain

if TYPE_CHECKING:
    from mindspore import nn

FORMAT = 1
METADATA_KEY = "dvt_metadata"
WEIGHTS_FILE = "model.safetensors"  # in folders
_CRC_MARK = b"crc_num"  # what MindSpore's crc_check=True writes in front of the checksum
_CRC_BYTES = 10
_TYPES = {f"{kind}{bits}" for kind in ("Int", "UInt", "Float") for bits in (8, 16, 32, 64)} - {"Float8"}
_TYPES |= {"BFloat16", "Bool"}
ENDINGS = (".ckpt", ".safetensors", ".pth", ".pt", ".tar", ".bin")  # that are customary for weights


class CkptContent(NamedTuple):
    """What a file holds, and whether there was a checksum, a right one, at its end: files cut short have none."""

    tensors: dict[str, np.ndarray]
    texts: dict[str, str]
    has_checksum: bool


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: weights by parameter name, the model they belong to, and the whole metadata."""

    weights: dict[str, np.ndarray]
    metadata: dict[str, Any]
    model: ModelConfig

    @classmethod
    def of(cls, path: Path, weights: dict[str, np.ndarray], text: str) -> "Checkpoint":
        """From the metadata as text. Raises CheckpointError, naming `path`, for metadata that cannot be read."""
        try:
            metadata = json.loads(text)
            version = metadata["format"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{path}: its {METADATA_KEY} cannot be read ({reason_of(error)})") from error
        if version != FORMAT:
            needed = f"and {FORMAT} is needed; a newer version of the package reads more"
            raise CheckpointError(f"{path} has the format {version!r}, {needed}")
        try:
            found = from_plain(dict[str, Any] | None, metadata.get("early_exit"), "early_exit") or {}
            for key, stored in (("thresholds", metadata), ("early_exit.thresholds", found)):
                from_plain(list[float] | None, stored.get("thresholds"), key, Bounds())
        except ConfigError as error:
            raise CheckpointError(f"{path} holds thresholds that no image can be compared with: {error}") from error
        model, names = read_model(path, metadata.get("model")), metadata.get("class_names")
        if names is not None and not (isinstance(names, list) and len(names) == model.num_classes):
            raise CheckpointError(
                f"{path}: class_names must be a list of {model.num_classes} names, one for each class"
            )
        return cls(weights, metadata, model)


def metadata_text(weights: "nn.Cell | Mapping[str, np.ndarray]", metadata: Mapping[str, Any] | None) -> str:
    """The metadata as it is stored, with the model: that of `weights`, where `metadata` names none.

    Raises CheckpointError if there is neither, and for values that JSON cannot hold.
    """
    metadata = dict(metadata or {})
    model = metadata.get("model", getattr(weights, "config", None))
    if not isinstance(model, ModelConfig | dict):
        raise CheckpointError("the metadata of a checkpoint needs 'model', the ModelConfig of its weights")
    metadata |= {"format": FORMAT, "model": model.to_dict() if isinstance(model, ModelConfig) else model}
    try:
        return json.dumps(metadata, default=lambda value: value.tolist())  # NumPy's
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"metadata must be numbers, texts, lists and dicts for JSON: {error}") from error


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


def weights_file(path: Path) -> Path:
    """`path`, or the weights in it, where it is a folder with a model."""
    return path / WEIGHTS_FILE if (path / WEIGHTS_FILE).exists() else path


def kind_of(path: Path) -> str:
    """ "MindSpore", "PyTorch", "dvt safetensors" (with our metadata), "safetensors" or "" for what is not known, by the
    content of a file. Raises CheckpointError for a folder, a file that cannot be read, and one of another kind."""
    try:
        kind, described = content_of(path)
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder, not a checkpoint.{_nearby(path)}") from None
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}.{_nearby(path.parent)}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {reason_of(error)}") from error
    if kind == "safetensors":
        return "dvt safetensors" if METADATA_KEY in read_safetensors(path, texts_alone=True).texts else kind
    if kind not in ("PyTorch", "MindSpore", ""):
        use = f"`dvt thresholds {path}` reads predictions" if kind == "arrays" else "copy or save it again"
        raise CheckpointError(f"{path} is not a checkpoint but {described}; {use}")
    return kind


def _nearby(folder: Path) -> str:
    if not folder.is_dir():
        return f" The folder {folder} does not exist either"
    if (folder / "manifest.json").exists():
        return " It is a bundle: `dvt infer` runs it, and `dvt info` describes it"
    found = sorted(str(each) for each in folder.glob("*") if each.suffix in ENDINGS and not each.match("state*.ckpt"))
    return f" Checkpoints in {folder}: {listing(found, shown=5)}" if found else f" There is none in {folder}"


def read_safetensors(path: Path, texts_alone: bool = False) -> CkptContent:
    """Reads safetensors; bfloat16, which NumPy lacks, becomes float32.

    Raises CheckpointError for a damaged file, and for other numbers that NumPy lacks.
    """
    from safetensors import SafetensorError, deserialize, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            kinds = {} if texts_alone else {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name, kind in kinds.items() if kind != "BF16"}
            texts = file.metadata() or {}
        if "BF16" in kinds.values():  # the upper half of a float32
            for name, raw in deserialize(path.read_bytes()):
                if raw["dtype"] == "BF16":
                    wide = np.frombuffer(raw["data"], "<u2").astype(np.uint32) << 16
                    tensors[name] = wide.view(np.float32).reshape(raw["shape"])
        return CkptContent(tensors, texts, True)
    except TypeError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}; save its weights in float32, float16 or bfloat16"
        ) from error
    except (SafetensorError, OSError, MemoryError) as error:
        fault = f"is a safetensors file that cannot be read ({reason_of(error)})"
        raise CheckpointError(f"{path} {fault}; it is cut short or damaged: copy or save it again") from error


def read_ckpt(path: Path) -> CkptContent:
    """Reads a file in one go; needs MindSpore, for its schema. Raises CheckpointError for a file that cannot be read or
    is damaged, and where there is too little memory."""
    try:
        with path.open("rb") as file:
            end = os.fstat(file.fileno()).st_size - len(_CRC_MARK) - _CRC_BYTES
            body, trailer = file.read(max(0, end)), file.read()
        has_checksum = end > 0 and trailer.startswith(_CRC_MARK)
        if not has_checksum:
            body += trailer
        elif zlib.crc32(body) != int.from_bytes(trailer[len(_CRC_MARK) :], "big"):
            raise CheckpointError(f"{path} is damaged: its checksum is another than it should be; copy it again")
        tensors, texts = _decoded(path, body)
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {reason_of(error)}") from error
    except MemoryError as error:
        raise CheckpointError(
            f"there is too little memory to read {path} of {path.stat().st_size / 2**20:.0f} MiB, of which three times"
            " as much is needed; end other programs, or take a larger machine"
        ) from error
    return CkptContent(tensors, texts, has_checksum)


def _decoded(path: Path, body: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    from google.protobuf.message import DecodeError
    from mindspore.train.checkpoint_pb2 import Checkpoint

    pieces: dict[str, list[Any]] = {}  # MindSpore writes a large tensor as several entries, each with the whole shape
    try:
        for entry in Checkpoint.FromString(body).value:
            pieces.setdefault(entry.tag, []).append(entry.tensor)
    except (DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} is not a MindSpore checkpoint, or only the start of one ({reason_of(error)}); copy it again"
        ) from error
    tensors, texts = {}, {}
    for name, parts in pieces.items():
        try:
            value = _value(parts)
        except ValueError as error:
            raise CheckpointError(
                f"{path} is damaged, or only the start of a file: the bytes of {name!r} do not fit type and shape; "
                "save or copy it again"
            ) from error
        (texts if isinstance(value, str) else tensors)[name] = value
    return tensors, texts


def _value(parts: list[Any]) -> np.ndarray | str:
    """Raises ValueError if the bytes of the parts are not those of their type and shape."""
    kinds = {(part.tensor_type, tuple(part.dims)) for part in parts}
    if len(kinds) > 1:
        raise ValueError("the parts of one tensor differ in type or shape")
    (kind, shape), content = kinds.pop(), bytearray().join(part.tensor_content for part in parts)
    if kind == "str":  # four bytes per character, as NumPy keeps them, zeros at the end left out
        return content.decode("utf-32-le").rstrip("\0")
    shape = () if shape == (0,) else shape  # so MindSpore takes it
    if kind not in _TYPES or min(shape, default=0) < 0:
        raise ValueError(f"no tensor of type {kind!r} and shape {shape}")
    if kind == "BFloat16":
        from mindspore.common.np_dtype import bfloat16 as kind  # NumPy has none of its own
    dtype = np.dtype(kind.lower() if isinstance(kind, str) else kind)
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(content)} bytes for type {dtype} and shape {shape}")
    return np.ndarray(shape, dtype, content)  # which shares its memory with `content`
