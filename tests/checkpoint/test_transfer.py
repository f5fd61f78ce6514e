"""Starting from other weights: what is taken is exactly what the file holds, the rest is named with its reason."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dvt.checkpoint import save_checkpoint
from dvt.checkpoint.transfer import apply, initial_weights, match_exits
from dvt.config.sections import TrainSection
from dvt.convert import exit_rows, parameter_shapes, reference_shapes
from dvt.errors import CheckpointError
from dvt.models.cascade import build_from_config
from dvt.models.grids import resize_positions
from dvt.models.variants import ModelConfig, model_config
from dvt.training.optimizer import build_optimizer

SIZES = {"embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_hidden": 24, "num_classes": 7}
SPLITS = {2: (6, 4, 1), 3: (5, 3, 1), 4: (3, 2, 1)}  # 32 pixels to grids of 2, 3 and 4


def deit(**overrides: Any) -> ModelConfig:
    return model_config("dvt_deit_small", **{"image_size": 24, "grid_sizes": (2, 3, 4), **SIZES, **overrides})


def t2t(grid_sizes: tuple[int, ...] = (2, 3, 4), **overrides: Any) -> ModelConfig:
    splits = tuple(SPLITS[grid] for grid in grid_sizes)
    fixed = {"image_size": 32, "grid_sizes": grid_sizes, "soft_splits": splits}
    return model_config("dvt_t2t_vit_12", **{**fixed, **SIZES, **overrides})


def arrays(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def saved(folder: Path, config: ModelConfig) -> tuple[Path, dict[str, np.ndarray]]:
    """A checkpoint of a model with random weights, and these."""
    weights = arrays(parameter_shapes(config))
    save_checkpoint(folder / "start.ckpt", weights, {"model": config})
    return folder / "start.ckpt", weights


def plain(config: ModelConfig, **changes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The tensors of a plain backbone in PyTorch's names: those of the last exit of `config` without reuse."""
    assert config.num_exits == 1
    return arrays({**{row.theirs: row.shape for row in exit_rows(config, 0)}, **changes})


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is optional: pip install -r requirements-torch.txt")


def to_file(torch, path: Path, tensors: dict[str, np.ndarray], key: str | None = None, prefix: str = "") -> Path:
    state_dict = {prefix + name: torch.from_numpy(value) for name, value in tensors.items()}
    torch.save(state_dict if key is None else {key: state_dict, "epoch": 3}, path)
    return path


@pytest.mark.parametrize(
    ("source", "target", "chosen"),
    [
        ((7, 10, 14), (7, 10, 14), [0, 1, 2]),
        ((7, 10, 14), (10, 14, 20), [0, 1, 2]),
        ((7, 10, 14), (7, 14), [0, 2]),
        ((7, 10, 14), (8, 12), [1, 2]),
        ((7, 10, 14), (14,), [2]),
        ((14,), (7, 10, 14), [0, 0, 0]),
        ((7, 14), (4, 7, 10, 14), [0, 0, 0, 1]),
    ],
)
def test_which_exit_starts_from_which(source: tuple[int, ...], target: tuple[int, ...], chosen: list[int]):
    assert match_exits(source, target) == chosen


# ------------------------------------------------------------------------------------------ checkpoints of this package


@pytest.mark.parametrize("make", [deit, t2t])
def test_other_classes_start_with_a_fresh_head(make, tmp_path: Path):
    path, weights = saved(tmp_path, make())
    initial = initial_weights(make(num_classes=3), path)
    fixed = "pos_embed" if make is t2t else ".head."
    expected = {k for k in weights if ".head." not in k and not k.endswith(fixed)}
    assert set(initial.weights) == expected
    for name in expected:
        np.testing.assert_array_equal(initial.weights[name], weights[name], err_msg=name)
    text = "\n".join(initial.report)
    assert text.count("freshly initialised, other classes (7 in the file, 3 here): head") == 3
    assert "checkpoint of dvt" in text and "2x2, 3x3, 4x4 tokens" in text
    assert ("fixed sinusoids" in text) == (make is t2t)


def test_the_same_model_is_taken_whole(tmp_path: Path):
    path, weights = saved(tmp_path, deit())
    initial = initial_weights(deit(), path)
    assert set(initial.weights) == set(weights)
    assert not any("initialised" in line or "not taken" in line for line in initial.report)


def test_another_image_size_resizes_positions(tmp_path: Path):
    path, weights = saved(tmp_path, deit())
    initial = initial_weights(deit(image_size=48, grid_sizes=(4, 6, 8)), path)
    assert set(initial.weights) == set(weights)  # patches of 12, 8 and 6 pixels in both
    for k, grid in enumerate((4, 6, 8)):
        name = f"exits.{k}.pos_embed"
        np.testing.assert_allclose(initial.weights[name], resize_positions(weights[name], grid), atol=1e-6)
        assert initial.weights[name].dtype == np.float32
    assert any("resized from 2x2 to 4x4" in line for line in initial.report)


def test_fewer_exits_take_those_of_equal_grid(tmp_path: Path):
    path, weights = saved(tmp_path, deit())
    initial = initial_weights(deit(grid_sizes=(2, 4)), path)
    np.testing.assert_array_equal(initial.weights["exits.1.head.weight"], weights["exits.2.head.weight"])
    np.testing.assert_array_equal(
        initial.weights["exits.1.relation_reuse.fc1.weight"], weights["exits.2.relation_reuse.fc1.weight"]
    )
    assert "not taken, exits of the file of no use here: 2" in initial.report


def test_the_first_exits_alone(tmp_path: Path):
    path, weights = saved(tmp_path, deit(grid_sizes=(2,)))
    initial = initial_weights(deit(), path, exits=1)
    assert initial.weights.keys() == weights.keys() and not initial.parts


@pytest.mark.parametrize(("in_file", "here"), [(True, False), (False, True)], ids=["narrower", "wider"])
def test_layers_that_feature_reuse_widens_are_taken_in_part(in_file: bool, here: bool, tmp_path: Path):
    """Features stand behind the channels of the token, in norm2 and the MLP's first layer of all finer exits."""
    path, weights = saved(tmp_path, deit(feature_reuse=in_file))
    model = build_from_config(deit(feature_reuse=here))
    before = {name: parameter.asnumpy().copy() for name, parameter in model.parameters_dict().items()}
    initial = initial_weights(model.config, path)
    apply(model, initial)
    after = {name: parameter.asnumpy() for name, parameter in model.parameters_dict().items()}
    width = SIZES["embed_dim"]
    for name in ("norm2.gamma", "norm2.beta", "mlp.fc1.weight", "mlp.fc1.bias"):
        for k in range(3):
            full = f"exits.{k}.blocks.1.{name}"
            if name == "mlp.fc1.bias" or k == 0:
                np.testing.assert_array_equal(after[full], weights[full], err_msg=full)
            else:
                np.testing.assert_array_equal(after[full][..., :width], weights[full][..., :width], err_msg=full)
                np.testing.assert_array_equal(after[full][..., width:], before[full][..., width:], err_msg=full)
    rest = "the rest, for feature reuse, freshly initialised" if here else "the rest left out"
    assert f"  the first 16 columns taken, {rest}: blocks.*.norm2 (2), blocks.*.mlp.fc1 (2)" in initial.report


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_what_the_file_lacks_learns_at_the_rate_of_the_heads(optimizer: str, tmp_path: Path):
    path, _ = saved(tmp_path, deit(feature_reuse=False, relation_reuse=False))
    model = build_from_config(deit())
    apply(model, initial_weights(deit(), path))
    parameters = model.trainable_params()
    train = TrainSection(optimizer=optimizer, backbone_lr_scale=0.1)
    rates = dict(zip((p.name for p in parameters), build_optimizer(parameters, train).lr_scales, strict=True))
    fresh = {name for name in rates if "reuse" in name or ".head." in name}
    assert {name for name, rate in rates.items() if rate == 1.0} == fresh and len(fresh) > 6
    assert rates["exits.1.blocks.0.mlp.fc1.weight"] == rates["exits.1.blocks.0.mlp.fc1.bias"] == 0.1


def test_the_state_of_a_run_gives_its_weights_alone(tmp_path: Path):
    weights = arrays(parameter_shapes(deit()))
    moments = {f"ema.{name}": value + 1 for name, value in weights.items()}
    save_checkpoint(tmp_path / "state.ckpt", weights | moments, {"model": deit()})
    initial = initial_weights(deit(), tmp_path / "state.ckpt")
    np.testing.assert_array_equal(initial.weights["exits.0.norm.gamma"], weights["exits.0.norm.gamma"])
    assert any("no place in this model: ema.exits.*.cls_token (3)" in line for line in initial.report)


def test_what_is_taken_fills_the_model_and_the_rest_stays(tmp_path: Path):
    path, weights = saved(tmp_path, deit())
    model = build_from_config(deit(num_classes=3))
    fresh = model.parameters_dict()["exits.0.head.weight"].asnumpy().copy()
    initial = initial_weights(model.config, path)
    assert apply(model, initial) == initial.report
    parameters = model.parameters_dict()
    np.testing.assert_array_equal(parameters["exits.0.head.weight"].asnumpy(), fresh)
    name = "exits.2.blocks.1.mlp.fc1.weight"
    np.testing.assert_array_equal(parameters[name].asnumpy(), weights[name])
    with pytest.raises(CheckpointError, match="unexpected"):
        apply(build_from_config(deit(depth=1)), initial)


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (deit(), t2t(), "patch embedding (DeiT), needed soft splits (T2T-ViT)"),
        (deit(), deit(embed_dim=32), "16 channels, needed 32"),
        (deit(), deit(num_heads=4), "2 heads, needed 4"),
    ],
)
def test_another_backbone_is_refused(source: ModelConfig, target: ModelConfig, words: str, tmp_path: Path):
    path, _ = saved(tmp_path, source)
    with pytest.raises(CheckpointError) as refused:
        initial_weights(target, path)
    assert words in str(refused.value) and str(path) in str(refused.value)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path):
    weights = arrays(parameter_shapes(deit()))
    weights["exits.1.norm.beta"][3] = np.nan
    save_checkpoint(tmp_path / "start.ckpt", weights, {"model": deit()})
    with pytest.raises(CheckpointError, match=r"NaN or infinity \(exits.1.norm.beta\)"):
        initial_weights(deit(), tmp_path / "start.ckpt")


def test_other_files_and_missing_ones_are_refused(tmp_path: Path):
    (tmp_path / "weights.npz").write_bytes(b"something else")
    (tmp_path / "weights.safetensors").write_bytes((40).to_bytes(8, "little") + b"{" + bytes(80))
    for name, words in (
        ("weights.npz", "is not a checkpoint but a text file"),
        ("weights.safetensors", "is a safetensors file that cannot be read"),
        ("a.ckpt", r"there is no checkpoint .*a\.ckpt"),
        (".", "is a folder"),
    ):
        with pytest.raises(CheckpointError, match=words):
            initial_weights(deit(), tmp_path / name)


# --------------------------------------------------------------------------------------------------- files from PyTorch


@pytest.mark.parametrize("make", [deit, t2t])
@pytest.mark.parametrize(("key", "prefix"), [("model_state_dict", ""), (None, "module.")])
def test_a_released_dvt(torch, make, key: str | None, prefix: str, tmp_path: Path):
    tensors = arrays(reference_shapes(make()))
    initial = initial_weights(make(num_classes=3), to_file(torch, tmp_path / "in.pth.tar", tensors, key, prefix))
    name = "less_token.blocks.1.feature_resuse_mlp.1.fc1.weight"
    np.testing.assert_array_equal(initial.weights["exits.1.blocks.1.feature_reuse.fc1.weight"], tensors[name])
    positions = 0 if make is deit else 3
    assert len(initial.weights) == len(tensors) - 3 * 2 - positions  # all but head.weight, head.bias
    assert any("a DVT from PyTorch" in line for line in initial.report)


@pytest.mark.parametrize(("key", "suffix"), [("model", ".pth"), ("state_dict", ".pth.tar"), ("state_dict_ema", ".pt")])
def test_a_plain_deit_goes_into_every_exit(torch, key: str, suffix: str, tmp_path: Path):
    tensors = plain(deit(grid_sizes=(4,)))
    target = deit(num_classes=3)
    initial = initial_weights(target, to_file(torch, tmp_path / f"in{suffix}", tensors, key))
    for k, grid in enumerate(target.grid_sizes):
        np.testing.assert_allclose(
            initial.weights[f"exits.{k}.pos_embed"], resize_positions(tensors["pos_embed"], grid), atol=1e-6
        )
        for name in ("cls_token", "blocks.1.attn.qkv.weight", "blocks.0.mlp.fc2.bias"):
            np.testing.assert_array_equal(initial.weights[f"exits.{k}.{name}"], tensors[name])
        assert (f"exits.{k}.tokens.proj.weight" in initial.weights) == (grid == 4)
        assert (f"exits.{k}.blocks.0.mlp.fc1.weight" in initial.weights) == (k == 0)
        assert f"exits.{k}.head.weight" not in initial.weights
    kernel = tensors["patch_embed.proj.weight"].reshape(16, -1)
    np.testing.assert_array_equal(initial.weights["exits.2.tokens.proj.weight"], kernel)
    text = "\n".join(initial.report)
    assert f"a plain backbone from PyTorch ({key})" in text
    assert "of another shape ((16, 108) in the file, (16, 432) here): tokens.proj" in text
    assert "the first 16 columns taken, the rest, for feature reuse, freshly initialised: blocks.*.norm2 (2)" in text
    assert "not in the file: blocks.*.feature_reuse.norm (2)" in text and "relation_reuse.fc1" in text


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "model.",
        "backbone.",
        "model.backbone.",
        "model.module.net.0.",
        "ema.",
    ],
)
@pytest.mark.parametrize("make", [plain, reference_shapes], ids=["plain", "dvt"])
def test_names_as_trainers_write_them(torch, make, prefix: str, tmp_path: Path):
    tensors = plain(deit(grid_sizes=(4,))) if make is plain else arrays(reference_shapes(deit()))
    expected = initial_weights(deit(), to_file(torch, tmp_path / "bare.pth", tensors))
    initial = initial_weights(deit(), to_file(torch, tmp_path / "in.pth", tensors, "state_dict", prefix))
    assert initial.weights.keys() == expected.weights.keys() and initial.parts.keys() == expected.parts.keys()
    assert all(np.array_equal(value, expected.weights[name]) for name, value in initial.weights.items())
    assert initial.report[1].startswith(f"names: {prefix}{next(iter(tensors))} is read as {next(iter(tensors))}")


def test_wrappers_inside_of_names(torch, tmp_path: Path):
    """Of sharded training, of checkpointed activations and of a compiled part."""
    tensors = plain(deit(grid_sizes=(4,)))
    for inside in ("_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "_orig_mod.", "module."):
        wrapped = {re.sub(r"^(blocks\.\d\.)", rf"\1{inside}", name): value for name, value in tensors.items()}
        initial = initial_weights(deit(), to_file(torch, tmp_path / "in.pth", wrapped))
        assert "exits.2.blocks.1.attn.qkv.weight" in initial.weights


def test_the_tensors_of_several_networks_are_refused(torch, tmp_path: Path):
    tensors = plain(deit(grid_sizes=(4,)))
    both = {f"student.{k}": v for k, v in tensors.items()} | {f"teacher.{k}": v for k, v in tensors.items()}
    with pytest.raises(CheckpointError, match=r"several networks \(student\., teacher\.\); save the weights of one"):
        initial_weights(deit(), to_file(torch, tmp_path / "in.pth", both))


@pytest.mark.parametrize("name", ["weights.ckpt", "pytorch_model.bin", "weights", "weights.pth.tar"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_is_known_by_its_content(torch, name: str, legacy: bool, tmp_path: Path):
    state_dict = {key: torch.from_numpy(value) for key, value in plain(deit(grid_sizes=(4,))).items()}
    torch.save({"model": state_dict}, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    assert "exits.2.blocks.1.attn.qkv.weight" in initial_weights(deit(), tmp_path / name).weights
    save_checkpoint(tmp_path / "own.ckpt", arrays(parameter_shapes(deit())), {"model": deit()})
    (tmp_path / "own.ckpt").rename(tmp_path / name)
    assert "checkpoint of dvt_deit_small" in initial_weights(deit(), tmp_path / name).report[0]


def test_a_plain_t2t_vit(torch, tmp_path: Path):
    tensors = plain(t2t((4,)), **{"head.weight": (5, 16), "head.bias": (5,)})
    initial = initial_weights(t2t(), to_file(torch, tmp_path / "in.pth.tar", tensors, "state_dict_ema"))
    features = "tokens.performer2.random_features"
    assert not any("pos_embed" in name for name in initial.weights)
    for k in range(3):
        np.testing.assert_array_equal(
            initial.weights[f"exits.{k}.{features}"], tensors["tokens_to_token.attention2.w"], err_msg=str(k)
        )
    assert [f"exits.{k}.tokens.performer1.kqv.weight" in initial.weights for k in range(3)] == [False, False, True]


def test_a_distilled_deit_loses_its_second_token(torch, tmp_path: Path):
    extra = {"dist_token": (1, 1, 16), "head_dist.weight": (7, 16), "head_dist.bias": (7,), "pos_embed": (1, 18, 16)}
    tensors = plain(deit(grid_sizes=(4,)), **extra)
    initial = initial_weights(deit(), to_file(torch, tmp_path / "in.pth", tensors, "model"))
    positions = tensors["pos_embed"]
    np.testing.assert_array_equal(initial.weights["exits.2.pos_embed"][:, 0], positions[:, 0])
    np.testing.assert_array_equal(initial.weights["exits.2.pos_embed"][:, 1:], positions[:, 2:])
    text = "\n".join(initial.report)
    assert "as in the file, without that of the distillation token" in text
    assert "not taken, no place in this model: dist_token, head_dist.weight, head_dist.bias" in text


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"conv1.weight": np.zeros(3, np.float32)}, "holds another network: needed are the tensors of a DVT"),
        (plain(deit(grid_sizes=(4,)), pos_embed=(1, 13, 16)), "its 13 positions are not a square grid and 1 more"),
        (
            {k: v for k, v in plain(deit(grid_sizes=(4,))).items() if "blocks." not in k},
            "a plain backbone from PyTorch (model) with no blocks.*.attn.qkv.weight",
        ),
        (plain(t2t((4,))), "soft splits (T2T-ViT), needed patch embedding (DeiT)"),
    ],
)
def test_files_of_which_nothing_fits_are_refused(torch, tensors: dict[str, np.ndarray], words: str, tmp_path: Path):
    with pytest.raises(CheckpointError) as refused:
        initial_weights(deit(), to_file(torch, tmp_path / "in.pth", tensors, "model"))
    assert words in str(refused.value)


def test_without_pytorch_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "in.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match=r"pip install 'torch"):
        initial_weights(deit(), tmp_path / "in.pth")
