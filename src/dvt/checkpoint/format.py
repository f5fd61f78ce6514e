"""What kind of file one is, and MindSpore's `.ckpt`: named tensors and texts as protobuf, a mark, the CRC32 of all.

The schema is MindSpore's; its reader is not used. It believes the sizes that a file states, and crashes where there are
fewer bytes; and it refuses a good file that is larger than the memory that is free just now.
"""

import math
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dvt.errors import CheckpointError, listing, reason_of

_CRC_MARK = b"crc_num"  # what MindSpore's crc_check=True writes in front of the checksum
_CRC_BYTES = 10
_TYPES = {f"{kind}{bits}" for kind in ("Int", "UInt", "Float") for bits in (8, 16, 32, 64)} - {"Float8"}
_TYPES |= {"BFloat16", "Bool"}


class CkptContent(NamedTuple):
    """What a file holds, and whether there was a checksum, a right one, at its end: files cut short have none."""

    tensors: dict[str, np.ndarray]
    texts: dict[str, str]
    has_checksum: bool


def kind_of(path: Path) -> str:
    """ "MindSpore", "PyTorch" or "unknown", by the first bytes of a file, whatever its name.

    Raises CheckpointError for a folder, a file that is missing, empty or cannot be read, and for safetensors.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder, not a checkpoint.{_nearby(path)}") from None
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}.{_nearby(path.parent)}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {reason_of(error)}") from error
    if not start:
        raise CheckpointError(f"the checkpoint {path} is empty, cut short or damaged; copy or save it again")
    if start.endswith(b"{") and len(start) == 9:
        raise CheckpointError(
            f"{path} is a safetensors file, which is not read here. Where PyTorch is, make another of it: "
            "torch.save(safetensors.torch.load_file(FILE), 'weights.pth')"
        )
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return "PyTorch"
    return "MindSpore" if start.startswith(b"\n") else "unknown"


def _nearby(folder: Path) -> str:
    if not folder.is_dir():
        return f" The folder {folder} does not exist either"
    found = sorted(str(file) for file in folder.glob("*") if file.suffix in (".ckpt", ".pth", ".pt", ".tar", ".bin"))
    return f" Checkpoints in {folder}: {listing(found, shown=5)}" if found else f" There is none in {folder}"


def read_ckpt(path: Path) -> CkptContent:
    """Reads a file in one go. Needs MindSpore, for its schema.

    Raises:
        CheckpointError: It cannot be read, is of another kind, has a wrong checksum, or holds a tensor whose bytes do
            not fit its type and shape, or an invalid text; or there is too little memory.
    """
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
    """The tensors and the texts by name."""
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
    tensors, texts, damaged = {}, {}, []
    for name, parts in pieces.items():
        try:
            value = _value(parts)
            (texts if isinstance(value, str) else tensors)[name] = value
        except ValueError:
            damaged.append(repr(name))
    if damaged:
        raise CheckpointError(
            f"{path} is damaged, or only the start of a file: the bytes of {listing(damaged)} do not fit type and "
            "shape; save or copy it again"
        )
    return tensors, texts


def _value(parts: list[Any]) -> np.ndarray | str:
    """The array or text that the parts make up. Raises ValueError if their bytes are not those of type and shape."""
    kinds = {(part.tensor_type, tuple(part.dims)) for part in parts}
    if len(kinds) > 1:
        raise ValueError("the parts of one tensor differ in type or shape")
    (kind, shape), content = kinds.pop(), bytearray().join(part.tensor_content for part in parts)
    if kind == "str":  # four bytes per character, as NumPy keeps them, zeros at the end left out
        if text := content.decode("utf-32-le").rstrip("\0"):
            return text
        raise ValueError("an empty text")
    shape = () if shape == (0,) else shape  # so MindSpore takes it
    if kind not in _TYPES or min(shape, default=0) < 0:
        raise ValueError(f"no tensor of type {kind!r} and shape {shape}")
    if kind == "BFloat16":
        from mindspore.common.np_dtype import bfloat16 as kind  # NumPy has none of its own
    dtype = np.dtype(kind.lower() if isinstance(kind, str) else kind)
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(content)} bytes for type {dtype} and shape {shape}")
    return np.ndarray(shape, dtype, content)  # which shares its memory with `content`
