"""Weights on disk: saving that never leaves a torn file, reading that says what is wrong with one.

The format is in docs/architecture.md: a MindSpore `.ckpt` with every parameter under the model's own name and one more
entry, `dvt_metadata`, a JSON text. MindSpore ends the file with the CRC32 of all before it; files without it are torn.
MindSpore is imported only where a file or a model is touched, so that `dvt.convert` can check names without it.
"""

import errno
import fcntl
import json
import math
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from dvt.errors import CheckpointError, ConfigError, DVTError
from dvt.variants import ModelConfig

if TYPE_CHECKING:
    import mindspore as ms
    from mindspore import nn

FORMAT = 1
METADATA_KEY = "dvt_metadata"

_CRC_MARK = b"crc_num"  # what MindSpore's crc_check=True writes in front of the checksum
_CRC_BYTES = 10
_CHUNK = 1 << 22
_NO_CHECKPOINT = "{} is not a MindSpore checkpoint, or only the start of one ({}); if it was copied, copy it again"
_SHOWN = 3  # names per kind in an error
_ITEM_BYTES = {f"{kind}{bits}": bits // 8 for kind in ("Int", "UInt", "Float") for bits in (8, 16, 32, 64)}
_ITEM_BYTES |= {"BFloat16": 2, "Bool": 1}
_SCRATCH = ".saving-"  # in the names of the hidden folders in which files are written
_LOCK = "lock"  # the file in them that is locked while they are in use
_FULL = (errno.ENOSPC, errno.EDQUOT)


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
    tells the space that is free) and for metadata that JSON cannot hold.
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


def write_failure(path: Path, error: Exception) -> str:
    """Why `path` could not be written and, if the disk is full, how much is free there and what to do."""
    if getattr(error, "errno", None) not in _FULL:
        return _reason(error)
    free = shutil.disk_usage(path.parent).free
    return f"{_reason(error)}: {free / 2**20:.1f} MiB are free in {path.parent}; make room or choose another folder"


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Around the writing of `path`: raises DVTError, naming it and the cause, where an OSError comes."""
    try:
        yield
    except OSError as error:
        raise DVTError(f"cannot write {path}: {write_failure(path, error)}") from error


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Reads a checkpoint. Raises CheckpointError, naming the cause, for a file that is missing, torn or foreign."""
    import mindspore as ms

    path = Path(path)
    _check_readable(path)
    complete = _check_crc(path)
    try:
        _check_content(path, complete)
    except UnicodeDecodeError as error:  # protobuf decodes names when they are read
        raise CheckpointError(_NO_CHECKPOINT.format(path, _reason(error))) from error
    try:
        entries = ms.load_checkpoint(str(path))
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(_NO_CHECKPOINT.format(path, _reason(error))) from error
    text = entries.pop(METADATA_KEY, None)
    if not isinstance(text, str):
        raise CheckpointError(
            f"{path} is a MindSpore checkpoint, but it does not say of which model: its {METADATA_KEY} is missing. It "
            "was cut short, or not saved by dvt.checkpoint.save_checkpoint"
        )
    if not complete:
        raise CheckpointError(f"{path} is torn: the checksum at its end is missing; copy or save it again")
    metadata = _parse_metadata(path, text)
    if not isinstance(metadata.get("model"), dict):
        raise CheckpointError(f"{path} does not say of which model it is: its {METADATA_KEY} lacks 'model'")
    try:
        model = ModelConfig.from_dict(metadata["model"])
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path} describes a model that cannot be built: {error}") from error
    foreign = [name for name, value in entries.items() if not isinstance(value, ms.Tensor)]
    if foreign:
        raise CheckpointError(f"{path} holds entries that are no tensors: {listing(foreign)}; save it again")
    return Checkpoint({name: value.asnumpy() for name, value in entries.items()}, metadata, model)


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


def load_model(path: str | os.PathLike) -> tuple["nn.Cell", Checkpoint]:
    """Builds the model that `path` describes, with its weights. Raises CheckpointError as `read_checkpoint` does."""
    from dvt.convert import parameter_shapes
    from dvt.models.cascade import build_from_config

    checkpoint = read_checkpoint(path)
    # Before building: a few bytes of configuration must not make a model of any size.
    check_weights(parameter_shapes(checkpoint.model), checkpoint.weights, str(path))
    model = build_from_config(checkpoint.model)
    load_weights(model, checkpoint.weights, source=str(path))
    return model, checkpoint


def check_weights(shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, np.ndarray], source: str) -> None:
    """Raises CheckpointError unless `weights` are finite floating-point arrays of exactly these names and shapes."""
    faults = []
    for kind, names in (
        ("missing", [name for name in shapes if name not in weights]),
        ("unexpected", [name for name in weights if name not in shapes]),
    ):
        if names:
            faults.append(f"{len(names)} {kind} ({listing(names)})")
    common = [name for name in shapes if name in weights]
    misshapen = [
        f"{name} is {np.shape(weights[name])}, needed {tuple(shapes[name])}"
        for name in common
        if np.shape(weights[name]) != tuple(shapes[name])
    ]
    if misshapen:
        faults.append(f"{len(misshapen)} of another shape ({listing(misshapen, '; ')})")
    no_floats = [name for name in common if np.asarray(weights[name]).dtype.kind != "f"]
    if no_floats:
        faults.append(f"{len(no_floats)} not floating-point ({listing(no_floats)})")
    # Only where the shape is right: a few bytes in a file can claim an array of any size.
    numbers = [name for name in common if name not in no_floats and np.shape(weights[name]) == tuple(shapes[name])]
    broken = [name for name in numbers if not np.isfinite(weights[name]).all()]
    if broken:
        faults.append(f"{len(broken)} with NaN or infinity ({listing(broken)})")
    if faults:
        raise CheckpointError(
            f"{source}: the weights do not fit the model of {len(shapes)} tensors: {', '.join(faults)}. Nothing was "
            "loaded; build the model that the file belongs to"
        )


def listing(names: Iterable[str], separator: str = ", ", shown: int = _SHOWN) -> str:
    """'a, b, c and 12 more'."""
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return separator.join(names[:shown]) + more


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a name to write to; when the block ends well, what lies there becomes `path` in one step, else it is gone.

    The name lies in a hidden folder beside `path`, removed with all that a failed save left in it; folders of processes
    that were killed while saving are removed by the next call. The finished file is synced and gets the mode that the
    umask gives to new files (MindSpore leaves 0400). Raises OSError.
    """
    _remove_abandoned(path.parent)
    scratch, lock = _locked_folder(path)
    try:
        mode = stat.S_IMODE(os.fstat(lock.fileno()).st_mode)
        written = scratch / path.name
        yield written
        written.chmod(mode)
        _sync(written)
        os.replace(written, path)
        _sync(path.parent)
    finally:
        _remove(scratch)
        lock.close()


def _locked_folder(path: Path) -> tuple[Path, BinaryIO]:
    """A new hidden folder beside `path`, and a locked file in it. The system unlocks it when this process ends."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.stem}{_SCRATCH}", dir=path.parent))
        try:
            lock = (folder / _LOCK).open("wb")
        except FileNotFoundError:  # another process took the new folder for an abandoned one
            continue
        except OSError:
            folder.rmdir()
            raise
        _lock(lock)  # waits while another process looks whether the folder is abandoned, and removes it
        if (folder / _LOCK).exists():
            return folder, lock
        lock.close()


def _remove_abandoned(parent: Path) -> None:
    """Removes what killed processes left in `parent`: hidden folders that nobody holds locked."""
    for folder in parent.glob(f".*{_SCRATCH}*"):
        try:
            with (folder / _LOCK).open("rb+") as lock:
                if _lock(lock, wait=False):
                    _remove(folder)
        except FileNotFoundError:  # killed before it was locked: empty, unless it is being locked just now
            with suppress(OSError):
                folder.rmdir()
        except OSError:  # not ours to remove
            continue


def _remove(folder: Path) -> None:
    """The lock goes last: whoever is killed in here leaves a folder that is locked by nobody, or an empty one."""
    with suppress(OSError):
        for each in folder.iterdir():
            if each.name != _LOCK:
                shutil.rmtree(each) if each.is_dir() else each.unlink()
        (folder / _LOCK).unlink()
        folder.rmdir()


def _lock(file: BinaryIO, wait: bool = True) -> bool:
    """Locks `file` until it is closed; False if another process has, or where the file system knows no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
        raise CheckpointError(f"{path}: its {METADATA_KEY} cannot be read ({_reason(error)})") from error
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
        raise CheckpointError(f"cannot read the checkpoint {path}: {_reason(error)}") from error
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


def _check_crc(path: Path) -> bool:
    """False if the file has no checksum. Raises CheckpointError if it has one that is wrong."""
    left = path.stat().st_size - len(_CRC_MARK) - _CRC_BYTES
    if left <= 0:
        return False
    crc = 0
    with path.open("rb") as file:
        file.seek(left)
        if file.read(len(_CRC_MARK)) != _CRC_MARK:
            return False
        expected = int.from_bytes(file.read(_CRC_BYTES), "big")
        file.seek(0)
        while left:
            chunk = file.read(min(left, _CHUNK))
            crc = zlib.crc32(chunk, crc)
            left -= len(chunk)
    if crc != expected:
        raise CheckpointError(f"{path} is damaged: its content does not match the checksum at its end; copy it again")
    return True


def _check_content(path: Path, has_checksum: bool) -> None:
    """Raises CheckpointError for what MindSpore's own reader would take on trust: tensors with another number of bytes
    than their shape crash it or are filled up with whatever lies in memory, and texts that are none crash Python."""
    from google.protobuf.message import DecodeError
    from mindspore.train.checkpoint_pb2 import Checkpoint as Message

    size = path.stat().st_size - (len(_CRC_MARK) + _CRC_BYTES if has_checksum else 0)
    try:
        with path.open("rb") as file:
            entries = Message.FromString(file.read(size)).value
    except DecodeError as error:
        raise CheckpointError(_NO_CHECKPOINT.format(path, _reason(error))) from error
    held: dict[str, int] = {}
    wanted: dict[str, int] = {}
    wrong = []
    for entry in entries:  # large tensors come in several entries of one name
        tensor = entry.tensor
        if tensor.tensor_type in _ITEM_BYTES and min(tensor.dims, default=0) >= 0:
            dims = [] if list(tensor.dims) == [0] else tensor.dims
            held[entry.tag] = held.get(entry.tag, 0) + len(tensor.tensor_content)
            wanted[entry.tag] = math.prod(dims) * _ITEM_BYTES[tensor.tensor_type]
        elif tensor.tensor_type != "str" or not _is_text(tensor.tensor_content):
            wrong.append(entry.tag)
    wrong += [name for name in held if held[name] != wanted[name]]
    if wrong:
        raise CheckpointError(
            f"{path} is damaged, or only the start of a file: the bytes of {listing(map(repr, wrong))} do not fit type "
            "and shape; save or copy it again"
        )


def _is_text(content: bytes) -> bool:
    try:
        return bool(content.decode("utf-32"))
    except UnicodeDecodeError:
        return False


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
