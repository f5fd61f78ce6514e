"""Reads MindSpore's `.ckpt` files: named tensors and texts as protobuf, then a mark and the CRC32 of all before it.

The schema is MindSpore's; its reader, `load_checkpoint`, is not used. It believes the size of a tensor that the file
states: where there are fewer bytes, it crashes or reads memory that is not its own. It also refuses a good file that is
larger than the memory that is free at that moment, though the system would make room by dropping cached files.
"""

import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dvt.errors import CheckpointError, listing, reason_of

_CRC_MARK = b"crc_num"  # what MindSpore's crc_check=True writes in front of the checksum
_CRC_BYTES = 10
_TYPES = {f"{kind}{bits}" for kind in ("Int", "UInt", "Float") for bits in (8, 16, 32, 64)} - {"Float8"}
_TYPES |= {"BFloat16", "Bool"}


@dataclass(frozen=True)
class CkptContent:
    """What a file holds.

    Args:
        tensors: Arrays by name, in the order of the file.
        texts: Texts by name.
        has_checksum: Whether there was a checksum at its end; it was right then. Files that were cut short have none.
    """

    tensors: dict[str, np.ndarray]
    texts: dict[str, str]
    has_checksum: bool


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
            raise CheckpointError(
                f"{path} is damaged: its content does not match the checksum at its end; copy it again"
            )
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
            f"{path} is not a MindSpore checkpoint, or only the start of one ({reason_of(error)}); if it was copied, "
            "copy it again"
        ) from error
    tensors: dict[str, np.ndarray] = {}
    texts: dict[str, str] = {}
    damaged = []
    for name, parts in pieces.items():
        try:
            value = _value(parts)
        except ValueError:
            damaged.append(repr(name))
        else:
            (texts if isinstance(value, str) else tensors)[name] = value
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
    (kind, dims), content = kinds.pop(), bytearray().join(part.tensor_content for part in parts)
    return _text(content) if kind == "str" else _array(content, kind, dims)


def _array(content: bytearray, kind: str, dims: tuple[int, ...]) -> np.ndarray:
    """An array that shares its memory with `content`. Raises ValueError if the bytes are not those of the shape."""
    if kind not in _TYPES or min(dims, default=0) < 0:
        raise ValueError(f"no tensor of type {kind!r} and shape {dims}")
    shape = () if dims == (0,) else dims  # so MindSpore takes it
    dtype = _dtype(kind)
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(content)} bytes for type {kind!r} and shape {shape}")
    return np.ndarray(shape, dtype, content)


def _dtype(kind: str) -> np.dtype:
    if kind == "BFloat16":
        from mindspore.common.np_dtype import bfloat16  # NumPy has none of its own

        return np.dtype(bfloat16)
    return np.dtype(kind.lower())


def _text(content: bytearray) -> str:
    """NumPy's form of texts: four bytes per character, zeros at the end left out. Raises ValueError if it is empty."""
    text = content.decode("utf-32-le").rstrip("\0")
    if not text:
        raise ValueError("an empty text")
    return text
