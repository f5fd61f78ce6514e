"""Files of weights that are foreign, hostile or of another model: the rows "Model files" of docs/reliability.md."""

import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mindspore.train.checkpoint_pb2 import Checkpoint as Message

from dvt.checkpoint import load_model, load_weights, read_checkpoint, save_checkpoint
from dvt.checkpoint.pytorch import convert_from_pytorch
from dvt.convert import parameter_shapes
from dvt.errors import CheckpointError
from dvt.models.cascade import build_from_config
from dvt.models.variants import ModelConfig, model_config

SIZES = {"image_size": 24, "embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_hidden": 24, "num_classes": 7}
CONFIG = model_config("dvt_deit_small", grid_sizes=(2, 3, 4), **SIZES)
T2T = {"soft_splits": ((6, 4, 1), (5, 3, 1), (3, 2, 1)), "image_size": 32}


def weights_of(config: ModelConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in parameter_shapes(config).items()}


def other(**overrides: object) -> ModelConfig:
    name = "dvt_t2t_vit_12" if "soft_splits" in overrides else "dvt_deit_small"
    return model_config(name, **{**SIZES, "grid_sizes": (2, 3, 4), **overrides})


def sealed(entries: list[tuple[str, list[int], str, bytes]]) -> bytes:
    """A checkpoint of raw entries, with the checksum that makes it look whole."""
    message = Message()
    for tag, dims, kind, content in entries:
        entry = message.value.add()
        entry.tag = tag
        entry.tensor.dims.extend(dims)
        entry.tensor.tensor_type, entry.tensor.tensor_content = kind, content
    content = message.SerializeToString()
    return content + b"crc_num" + zlib.crc32(content).to_bytes(10, "big")


def metadata_entry(text: str) -> tuple[str, list[int], str, bytes]:
    return "dvt_metadata", [0], "str", np.array([text]).tobytes()


METADATA = metadata_entry(json.dumps({"format": 1, "model": CONFIG.to_dict()}))


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_with_code_named_ckpt_is_not_run(protocol: int, tmp_path: Path):
    mark, path = tmp_path / "executed", tmp_path / "model.ckpt"
    path.write_bytes(pickle.dumps(Malicious(mark), protocol))
    with pytest.raises(CheckpointError, match=r"is a PyTorch file|is not a (MindSpore )?checkpoint"):
        read_checkpoint(path)
    assert not mark.exists()


@pytest.mark.parametrize("length", [2**63 - 1, 2**40, 100])
def test_a_safetensors_file_with_a_huge_header(length: int, tmp_path: Path):
    """Neither reader believes the length at its start."""
    (tmp_path / "model.pth").write_bytes(struct.pack("<Q", length) + b'{"w":{"dtype":"F32","shape":[1]')
    with pytest.raises(CheckpointError, match="is a safetensors file"):
        read_checkpoint(tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="is a safetensors file"):
        convert_from_pytorch(tmp_path / "model.pth", tmp_path / "out.ckpt")
    assert not (tmp_path / "out.ckpt").exists()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("w", [10**12], "Float32", bytes(4)), METADATA], r"the bytes of 'w' do not fit type and shape"),
        ([("w", [5], "Float32", bytes(16)), METADATA], r"the bytes of 'w' do not fit type and shape"),
        ([("w", [-4, -1], "Float32", bytes(16)), METADATA], "the bytes of 'w' do not fit type and shape"),
        ([("dvt_metadata", [0], "str", b"\xff" * 64)], "the bytes of 'dvt_metadata' do not fit"),
        ([("w", [0], "str", np.array(["x"]).tobytes()), METADATA], r"texts where tensors belong: w"),
        ([metadata_entry('{"format":1,"model":' + "[" * 100_000 + "]" * 100_000 + "}")], "dvt_metadata cannot be read"),
    ],
)
def test_a_checkpoint_made_to_harm(entries: list, message: str, tmp_path: Path):
    (tmp_path / "model.ckpt").write_bytes(sealed(entries))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "model.ckpt")


def test_a_few_bytes_do_not_build_a_large_model(tmp_path: Path):
    """The configuration in the file asks for 8 billion weights; the file holds three."""
    huge = model_config("dvt_deit_small", embed_dim=12288, depth=12, mlp_hidden=4096, num_heads=16, grid_sizes=(14,))
    save_checkpoint(tmp_path / "model.ckpt", {"exits.0.norm.gamma": np.ones(3, np.float32)}, {"model": huge})
    with pytest.raises(CheckpointError, match=r"of another shape|missing"):
        load_model(tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    "overrides",
    [
        {"num_classes": 8},
        {"grid_sizes": (2, 3, 6)},
        {"grid_sizes": (2, 3)},
        {"feature_reuse": False},
        {"relation_reuse": False},
        {"embed_dim": 24},
        {"depth": 2},
        {"num_heads": 4},
        {"mlp_hidden": 16},
        {"qkv_bias": False},
        {"in_channels": 1},
        T2T,
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_weights_of_another_dvt_change_nothing(overrides: dict, tmp_path: Path):
    theirs = other(**overrides)
    save_checkpoint(tmp_path / "theirs.ckpt", weights_of(theirs), {"model": theirs})
    model = build_from_config(CONFIG)
    before = {name: parameter.asnumpy().copy() for name, parameter in model.parameters_dict().items()}
    with pytest.raises(CheckpointError, match=r"theirs\.ckpt: the weights do not fit.*Nothing was loaded"):
        load_weights(model, read_checkpoint(tmp_path / "theirs.ckpt").weights, str(tmp_path / "theirs.ckpt"))
    for name, parameter in model.parameters_dict().items():
        np.testing.assert_array_equal(parameter.asnumpy(), before[name], err_msg=name)


def test_renamed_weights_are_missing_and_unexpected():
    weights = weights_of(CONFIG)
    weights["exits.0.head.kernel"] = weights.pop("exits.0.head.weight")
    with pytest.raises(
        CheckpointError, match=r"1 missing \(exits\.0\.head\.weight\), 1 unexpected \(exits\.0\.head\.kernel\)"
    ):
        load_weights(build_from_config(CONFIG), weights)


def claims(torch, size: int, dtype: object = None):
    """A tensor of one number that says it has `size` of them."""
    return torch.zeros(1, dtype=dtype or torch.float32).expand(size)


def cyclic() -> list:
    values: list = [0.5]
    values.append(values)
    return values


def many_times_the_same() -> list:
    """A few bytes in a pickle, 10^18 numbers."""
    values: list = [0.5]
    for _ in range(6):
        values = [values] * 1000
    return values


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda t: {"w": claims(t, 10**12)}, r"w cannot be read; plain dense tensors are needed"),
        (lambda t: {"w": claims(t, 10**12, t.float16)}, r"w cannot be read; plain dense tensors are needed"),
        (
            lambda t: {"w": t.sparse_coo_tensor([[0], [0]], [1.0], (10**6, 10**6), check_invariants=True)},
            r"w cannot be read; plain dense",
        ),
        (lambda t: {"w": t.zeros(3, device="meta")}, r"w cannot be read; plain dense"),
        # each within the file, all together far beyond it
        (lambda t: dict.fromkeys(map(str, range(99)), t.zeros(9999)), r"0, 1, 2 and 96 more cannot be read"),
    ],
)
def test_a_pytorch_file_that_claims_more_than_it_holds(content: Callable, message: str, tmp_path: Path):
    torch = pytest.importorskip("torch")
    torch.save(content(torch), tmp_path / "in.pth")
    with pytest.raises(CheckpointError, match=message):
        convert_from_pytorch(tmp_path / "in.pth", tmp_path / "out.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]


@pytest.mark.parametrize("results", [cyclic, many_times_the_same, lambda: np.zeros(200_000)])
def test_stored_results_that_never_end(results: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch = pytest.importorskip("torch")
    from dvt.checkpoint import pytorch as pytorch_files
    from dvt.convert import reference_shapes

    state_dict = {name: torch.zeros(shape) for name, shape in reference_shapes(CONFIG).items()}
    content = {"model_state_dict": state_dict, "dvt_model": CONFIG.to_dict(), "flops": results()}
    torch.save(content, tmp_path / "in.pth")
    with pytest.raises(CheckpointError, match="the stored flops is not a list of results"):
        pytorch_files.convert_from_pytorch(tmp_path / "in.pth", tmp_path / "out.ckpt")
