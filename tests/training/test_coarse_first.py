"""Training that begins with the first exit alone: what is trained, what the finer exits start from, and resuming."""

import shutil
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

import dvt
from dvt.checkpoint import read_checkpoint
from dvt.checkpoint.transfer import resize_positions
from dvt.config import RunConfig, TrainSection
from dvt.config.files import config_from_dict
from dvt.errors import ConfigError
from dvt.models.cascade import DVT
from dvt.training.coarse_first import FirstExit, hand_over, start_finer_exits
from dvt.training.interrupt import StopBetweenSteps
from dvt.training.run import train
from dvt.training.step import TrainStep

TINY = {
    "num_classes": 5,
    "image_size": 24,
    "grid_sizes": (2, 3),
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "mlp_hidden": 24,
    "drop_path_rate": 0.0,
}
TAKEN = ("blocks.0.norm1.gamma", "blocks.0.attn.qkv.weight", "blocks.0.attn.proj.bias", "blocks.0.mlp.fc2.weight")
TAKEN += ("norm.beta", "head.weight", "cls_token")
NEW_WEIGHTS = ("tokens.proj.weight", "blocks.0.norm2.gamma", "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc1.bias")
NEW_WEIGHTS += ("blocks.0.feature_reuse.fc1.weight", "relation_reuse.fc1.weight")


def values_of(parameters: list) -> dict[str, np.ndarray]:
    return {parameter.name: parameter.asnumpy().copy() for parameter in parameters}


@pytest.fixture(scope="module")
def handed_over() -> tuple[DVT, dict, dict, dict]:
    """A model after two steps of its first exit and the hand-over, its weights before, and the states of both steps."""
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_seed(0)
    model = dvt.build_model("dvt_deit_small", **TINY)
    fresh = values_of(model.get_parameters())
    section = TrainSection(ema_decay=0.5)
    rates = np.full(4, 1e-2, np.float32)
    coarse = TrainStep(FirstExit(model), section, rates)
    coarse.set_train()
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((6, 3, 24, 24)).astype(np.float32), rng.integers(0, 5, 6).astype(np.int32)
    losses = [coarse(Tensor(images), Tensor(labels)).asnumpy() for _ in range(2)]
    assert losses[0].shape == (1,)
    start_finer_exits(model)
    full = TrainStep(model, section, rates)
    hand_over(model, coarse, full)
    return model, fresh, coarse.state(), full.state()


def test_finer_exits_start_from_what_fits(handed_over):
    model, fresh, _, _ = handed_over
    now = values_of(model.get_parameters())
    assert any((now[name] != fresh[name]).any() for name in now if name.startswith("exits.0."))
    for name in TAKEN:
        np.testing.assert_array_equal(now[f"exits.1.{name}"], now[f"exits.0.{name}"], err_msg=name)
        assert name.endswith(("gamma", "beta")) or (now[f"exits.1.{name}"] != fresh[f"exits.1.{name}"]).any()
    for name in NEW_WEIGHTS:
        np.testing.assert_array_equal(now[f"exits.1.{name}"], fresh[f"exits.1.{name}"], err_msg=name)
    resized = resize_positions(now["exits.0.pos_embed"], 3)
    np.testing.assert_allclose(now["exits.1.pos_embed"], resized, atol=1e-6)


def test_moments_and_averages_are_taken_along(handed_over):
    model, _, coarse, full = handed_over
    assert full["global_step"] == 2 and full["batches"] == 2
    assert full["adam_beta1_power"] == 1 and coarse["adam_beta1_power"] < 0.9
    for name in TAKEN:
        for prefix in ("adam_moment1.", "adam_moment2.", "ema."):
            expected = coarse[f"{prefix}exits.0.{name}"]
            np.testing.assert_array_equal(full[f"{prefix}exits.0.{name}"], expected)
            np.testing.assert_array_equal(full[f"{prefix}exits.1.{name}"], expected)
    now = values_of(model.get_parameters())
    for name in NEW_WEIGHTS:
        assert not full[f"adam_moment2.exits.1.{name}"].any()
        np.testing.assert_array_equal(full[f"ema.exits.1.{name}"], now[f"exits.1.{name}"])
    assert all((full[name] >= 0).all() for name in full if name.startswith("adam_moment2."))


@pytest.mark.parametrize("keys", [{"coarse_first_epochs": 3}, {"coarse_first_epochs": 1, "exit_weights": [0, 1]}])
def test_what_leaves_nothing_to_train_is_refused(keys: dict):
    with pytest.raises(ConfigError, match="coarse_first_epochs"):
        TrainSection(epochs=3, warmup_epochs=0, **keys)


def run_config(output: Path, **keys: object) -> RunConfig:
    sizes = {key: list(value) if isinstance(value, tuple) else value for key, value in TINY.items()}
    del sizes["num_classes"]
    data = {"dataset": "fashion_mnist_scale", "train_images": 128, "val_images": 20, "calibration_images": 20}
    section = {"epochs": 4, "batch_size": 16, "warmup_epochs": 0, "schedule_unit": "step", "learning_rate": 3e-3}
    section |= {"coarse_first_epochs": 2, "eval_every_epochs": 0, "ema_decay": 0.9, **keys}
    return config_from_dict(
        {"model": {"name": "dvt_deit_small", **sizes}, "data": data, "train": section, "output": str(output)}
    )


def test_a_single_exit_has_no_finer_ones(tmp_path: Path):
    config = run_config(tmp_path / "run")
    config.model.grid_sizes = [2]
    with pytest.raises(ConfigError, match="two exits or more"):
        train(config)


@pytest.mark.slow
@pytest.mark.parametrize("stopped_after", [16, 20], ids=["between", "all exits"])
def test_a_run_stopped_in_either_phase_ends_like_one_that_was_not(
    stopped_after: int, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """8 steps per epoch; the first two epochs are the first exit's."""
    seen = 0
    call = TrainStep.__call__

    def counted(self: TrainStep, *arguments: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        return call(self, *arguments)

    stops = property(lambda self: seen >= stopped_after, lambda self, value: None)
    monkeypatch.setattr(TrainStep, "__call__", counted)
    monkeypatch.setattr(StopBetweenSteps, "requested", stops, raising=False)
    with pytest.raises(KeyboardInterrupt):
        train(run_config(tmp_path / "run"))
    monkeypatch.undo()
    state = read_checkpoint(tmp_path / "run" / "state.ckpt")
    assert (state.metadata["step"], state.metadata["first_exit_only"]) == (stopped_after, stopped_after <= 16)
    config = run_config(tmp_path / "run")
    config.resume = True
    train(config)
    for name in ("last.ckpt", "state.ckpt"):
        wanted = read_checkpoint(unbroken / name).weights
        for key, value in read_checkpoint(tmp_path / "run" / name).weights.items():
            np.testing.assert_allclose(value, wanted[key], atol=1e-6, err_msg=f"{name}: {key}")
    shutil.rmtree(tmp_path / "run")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    train(run_config(folder))
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert rows[1].count(",") == rows[3].count(",") and rows[1] != rows[3]
    return folder
