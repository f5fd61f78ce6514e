"""MindSpore's `.ckpt` is read as MindSpore itself reads it, and where that refuses a good file or crashes, better."""

import os
import resource
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore.train import serialization
from mindspore.train.checkpoint_pb2 import Checkpoint as Message

from dvt.checkpoint.format import read_ckpt
from dvt.errors import CheckpointError
from reliability.faults import ended, forked

RNG = np.random.default_rng(0)
ARRAYS = {
    "float32": RNG.standard_normal((2, 3), dtype=np.float32),
    "scalar": np.float32(0.1),
    "float16": RNG.standard_normal(5).astype(np.float16),
    "float64": RNG.standard_normal((1, 1, 2)),
    "int64": np.array([-(2**62), 7]),
    "uint8": np.arange(250, 256, dtype=np.uint8),
    "bool": np.array([True, False]),
    "long": RNG.standard_normal((130, 70), dtype=np.float32),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.ckpt"


def save(path: Path) -> Path:
    entries = [{"name": name, "data": ms.Tensor(value)} for name, value in ARRAYS.items()]
    entries.append({"name": "bfloat16", "data": ms.Tensor([1.5, -3e38], ms.bfloat16)})
    ms.save_checkpoint(entries, str(path), append_dict={"text": "Läufer\N{CAT FACE}"}, crc_check=True)
    return path


@pytest.mark.parametrize("slice_kilobytes", [serialization.SLICE_SIZE, 4], ids=["whole", "sliced"])
def test_all_that_mindspore_writes_is_read_as_by_mindspore(path: Path, slice_kilobytes: int, monkeypatch):
    monkeypatch.setattr(serialization, "SLICE_SIZE", slice_kilobytes)
    content, entries = read_ckpt(save(path)), ms.load_checkpoint(str(path))
    tags = [each.tag for each in Message.FromString(path.read_bytes()[:-17]).value]
    assert tags.count("long") == (1 if slice_kilobytes > 4 else 9)
    assert content.texts == {"text": entries.pop("text")}
    assert content.has_checksum
    assert list(content.tensors) == list(entries)
    for name, value in entries.items():
        found, expected = content.tensors[name], value.asnumpy()
        assert (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes()), name
        assert found.flags.writeable


def test_memory_that_is_full_of_cached_files_is_no_reason_to_refuse(path: Path, monkeypatch):
    """MindSpore's reader asks for the pages that nobody uses, of which a busy machine has few."""
    save(path)
    few = {"SC_AVPHYS_PAGES": 1}
    known = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: few.get(name) or known(name))
    assert len(read_ckpt(path).tensors) == len(ARRAYS) + 1


def test_too_little_memory_is_told(path: Path, tmp_path: Path):
    path.touch()
    os.truncate(path, 2**29)
    said = tmp_path / "said"

    def read() -> None:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**26,) * 2)
        try:
            read_ckpt(path)
        except CheckpointError as error:
            said.write_text(str(error))

    assert ended(forked(read)) == 0
    assert f"there is too little memory to read {path} of 512 MiB" in said.read_text()


@pytest.mark.parametrize(
    ("kinds", "wrong"),
    [
        ([("w", "Float32", [2], 8), ("w", "Float32", [2], 8)], "'w'"),
        ([("w", "Float32", [2], 4), ("v", "Int8", [1], 1), ("w", "Int32", [2], 4)], "'w'"),
        ([("w", "Float32", [4], 8), ("w", "Float32", [2], 8)], "'w'"),
        ([("w", "Int4", [2], 1), ("v", "", [], 0)], "'w'"),
        ([("w", "Float8", [1], 1)], "'w'"),
    ],
)
def test_entries_that_contradict_each_other_are_refused(path: Path, kinds: list, wrong: str):
    message = Message()
    for tag, kind, dims, size in kinds:
        entry = message.value.add(tag=tag)
        entry.tensor.tensor_type, entry.tensor.tensor_content = kind, bytes(size)
        entry.tensor.dims.extend(dims)
    path.write_bytes(message.SerializeToString())
    with pytest.raises(CheckpointError, match=f"the bytes of {wrong} do not fit type and shape"):
        read_ckpt(path)
