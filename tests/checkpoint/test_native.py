"""Checkpoints: what is saved comes back bit for bit; what is torn, foreign or unfitting is refused in one sentence."""

import json
import os
import stat

import mindspore as ms
import numpy as np
import pytest

from dvt import safe_files
from dvt.checkpoint import load_model, load_weights, read_checkpoint, save_checkpoint
from dvt.errors import CheckpointError
from dvt.models.cascade import build_model
from dvt.models.variants import model_config

SMALL = {"embed_dim": 32, "depth": 1, "num_heads": 2, "mlp_hidden": 64, "num_classes": 10}
CONFIG = model_config("dvt_deit_small", **SMALL)
RNG = np.random.default_rng(0)
WEIGHTS = {
    "exits.0.head.weight": RNG.standard_normal((10, 32), dtype=np.float32),
    "exits.0.cls_token": RNG.standard_normal((1, 1, 32), dtype=np.float32),
    "scale": np.float32(0.5),
}


def build(name="dvt_deit_small", **overrides):
    return build_model(name, **{**SMALL, **overrides})


def arrays(model):
    return {name: parameter.asnumpy().copy() for name, parameter in model.parameters_dict().items()}


def assert_same(left, right):
    assert list(left) == list(right)
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
        assert np.shape(left[name]) == np.shape(right[name])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.ckpt"


@pytest.fixture
def saved(path):
    save_checkpoint(path, WEIGHTS, {"model": CONFIG})
    return path


# ------------------------------------------------------------------------------------------------------- round trips


def test_weights_and_metadata_come_back(path):
    metadata = {
        "model": CONFIG,
        "class_names": ["Läufer", "\N{CAT FACE}", 'quote " and \\', *"abcdefg"],
        "epoch": np.int64(7),
        "results": {"flops": np.array([0.5, 1.5]), "dynamic_threshold": np.full((59, 3), 0.1, dtype=np.float32)},
        "text": "x" * 200_000,
    }
    save_checkpoint(path, WEIGHTS, metadata)
    result = read_checkpoint(path)
    assert_same(result.weights, WEIGHTS)
    assert result.model == CONFIG
    assert result.metadata["format"] == 1
    assert result.metadata["class_names"] == metadata["class_names"]
    assert result.metadata["epoch"] == 7
    assert result.metadata["results"]["flops"] == [0.5, 1.5]
    assert np.float32(result.metadata["results"]["dynamic_threshold"][58][2]) == np.float32(0.1)
    assert result.metadata["text"] == metadata["text"]


@pytest.mark.parametrize("name", ["dvt_deit_small", "dvt_t2t_vit_12"])
def test_a_model_comes_back(path, name):
    model = build(name)
    save_checkpoint(path, model, {"epoch": 3})
    again, result = load_model(path)
    assert again.config == model.config == result.model
    assert result.metadata["epoch"] == 3
    assert_same(arrays(again), arrays(model))
    fixed = {name for name, p in model.parameters_dict().items() if not p.requires_grad}
    assert fixed == {name for name, p in again.parameters_dict().items() if not p.requires_grad}


def test_the_file_is_an_ordinary_mindspore_checkpoint(saved):
    entries = ms.load_checkpoint(str(saved), crc_check=True)
    assert json.loads(entries["dvt_metadata"])["model"]["embed_dim"] == 32
    np.testing.assert_array_equal(entries["exits.0.cls_token"].asnumpy(), WEIGHTS["exits.0.cls_token"])


# ------------------------------------------------------------------------------------------------------------ saving


def test_the_file_mode_follows_the_umask_and_nothing_else_is_left(path):
    before = os.umask(0o027)
    try:
        save_checkpoint(path, WEIGHTS, {"model": CONFIG})
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(path.parent) == [path.name]


def test_a_failed_save_leaves_the_old_file(saved, monkeypatch):
    content = saved.read_bytes()

    def fail(entries, name, **_):
        with open(name, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ms, "save_checkpoint", fail)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_checkpoint(saved, WEIGHTS, {"model": CONFIG})
    assert saved.read_bytes() == content
    assert os.listdir(saved.parent) == [saved.name]


def test_an_interrupted_save_leaves_nothing(path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(safe_files.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, WEIGHTS, {"model": CONFIG})
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize(
    ("metadata", "message"),
    [({}, "needs 'model'"), ({"model": CONFIG, "x": object()}, "object"), ({"model": CONFIG, "x": {1, 2}}, "set")],
)
def test_metadata_that_cannot_be_kept(path, metadata, message):
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(path, WEIGHTS, metadata)
    assert not path.exists()


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(CheckpointError, match="No such file or directory"):
        save_checkpoint(tmp_path / "nowhere" / "model.ckpt", WEIGHTS, {"model": CONFIG})
    with pytest.raises(CheckpointError, match=r"must end in \.ckpt"):
        save_checkpoint(tmp_path / "model.pth", WEIGHTS, {"model": CONFIG})
    (tmp_path / "folder.ckpt").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot save the checkpoint .*folder\.ckpt"):
        save_checkpoint(tmp_path / "folder.ckpt", WEIGHTS, {"model": CONFIG})
    assert os.listdir(tmp_path) == ["folder.ckpt"]


# ----------------------------------------------------------------------------------------------------------- reading


def test_a_missing_file_names_its_neighbours(saved):
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*modle\.ckpt.*model\.ckpt"):
        read_checkpoint(saved.parent / "modle.ckpt")
    with pytest.raises(CheckpointError, match=r"folder .*nowhere does not exist"):
        read_checkpoint(saved.parent / "nowhere" / "model.ckpt")
    with pytest.raises(CheckpointError, match=r"is a folder.*model\.ckpt"):
        read_checkpoint(saved.parent)
    saved.unlink()
    with pytest.raises(CheckpointError, match="There is none in"):
        read_checkpoint(saved)


@pytest.mark.parametrize("kept", [1, 40, 0.3, 0.9, -100, -18, -17, -10, -1])
def test_a_truncated_file(saved, kept):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * kept)] if isinstance(kept, float) else content[:kept])
    with pytest.raises(CheckpointError, match=r"only the start|cut short|incomplete"):
        read_checkpoint(saved)


@pytest.mark.parametrize("place", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_flipped_bit(saved, place):
    content = bytearray(saved.read_bytes())
    content[int(place * (len(content) - 1))] ^= 0x10
    saved.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(saved)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a checkpoint but an empty file"),
        (b"some notes " * 100, "not a checkpoint but a text file that begins with 'some notes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "begins with 'version https://git-lfs"),
        (b"\xffsome notes" + bytes(100), "not a MindSpore checkpoint"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a checkpoint but a PNG image"),
        (b"PK\x03\x04" + bytes(100), "dvt convert .*init_checkpoint"),
        (b"\x80\x02" + bytes(100), "dvt convert .*init_checkpoint"),
        (bytes(8) + b"{" + bytes(100), "is a safetensors file"),
    ],
)
def test_another_kind_of_file(path, content, message):
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def write_plain(path, metadata):
    entries = [{"name": name, "data": ms.Tensor(value)} for name, value in WEIGHTS.items()]
    extra = {} if metadata is None else {"dvt_metadata": metadata}
    ms.save_checkpoint(entries, str(path), append_dict=extra, crc_check=True)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "does not say of which model"),
        ("not json", "cannot be read"),
        ("[]", "cannot be read"),
        (json.dumps({"format": 2, "model": {}}), r"format 2, .*newer version"),
        (json.dumps({"format": "x", "model": {}}), "the format 'x'"),
        (json.dumps({"format": 1}), "does not say of which model"),
        (json.dumps({"format": 1, "model": {"name": "dvt_deit_small"}}), "lacks"),
        (json.dumps({"format": 1, "model": {**CONFIG.to_dict(), "depth": 0}}), "model.depth"),
        (json.dumps({"format": 1, "thresholds": [0.5, True]}), "thresholds.1 is True; it must be a number"),
        (json.dumps({"format": 1, "thresholds": [0.5, float("inf")]}), "thresholds.1 is inf; it must be a number"),
        (
            json.dumps({"format": 1, "early_exit": {"thresholds": "0.5"}}),
            "early_exit.thresholds is '0.5'; it must",
        ),
        (json.dumps({"format": 1, "early_exit": [0.5]}), "early_exit is .0.5.; it must be an object with keys"),
    ],
)
def test_a_checkpoint_without_usable_metadata(path, metadata, message):
    write_plain(path, metadata)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


# ----------------------------------------------------------------------------------------------------------- loading


def spoil(name, value):
    def change(weights):
        if value is None:
            del weights[name]
        else:
            weights[name] = value
        return weights

    return change


HEAD = "exits.2.head.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil(HEAD, None), rf"1 missing \({HEAD}\)"),
        (spoil("stray", np.zeros(3, np.float32)), r"1 unexpected \(stray\)"),
        (
            spoil(HEAD, np.zeros((11, 32), np.float32)),
            rf"1 of another shape \({HEAD} is \(11, 32\), needed \(10, 32\)\)",
        ),
        (spoil(HEAD, np.full((10, 32), np.nan, np.float32)), rf"1 with NaN or infinity \({HEAD}\)"),
        (spoil(HEAD, np.zeros((10, 32), np.int64)), rf"1 not floating-point \({HEAD}\)"),
        (lambda weights: {}, r"missing \(exits\.0\.\S+, \S+, \S+ and \d+ more\)"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(change, message):
    model = build()
    before = arrays(model)
    weights = change({name: value + 1 for name, value in before.items()})
    with pytest.raises(CheckpointError, match=message) as caught:
        load_weights(model, weights, source="my.ckpt")
    assert str(caught.value).startswith("my.ckpt: ")
    assert_same(arrays(model), before)


def test_loaded_weights_are_those_given():
    model = build("dvt_t2t_vit_12")
    weights = {name: value + 1 for name, value in arrays(model).items()}
    load_weights(model, weights)
    assert_same(arrays(model), weights)


def test_the_file_of_another_model(path):
    save_checkpoint(path, build(), {})
    with pytest.raises(CheckpointError, match=r"model\.ckpt: .* of another shape"):
        load_weights(build(embed_dim=64), read_checkpoint(path).weights, source=str(path))
