"""The loss and the compiled step: against NumPy, and what a step must leave behind.

Tests of what does not depend on the cascade take a model of one small exit, which compiles quickly.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

import dvt
from dvt.config import TrainSection
from dvt.errors import ConfigError
from dvt.models.precision import set_precision
from dvt.training.loss import ExitLosses
from dvt.training.step import TrainStep

TINY = {
    "num_classes": 5,
    "image_size": 24,
    "grid_sizes": (2, 3, 4),
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_hidden": 24,
    "drop_path_rate": 0.0,
}


@pytest.fixture
def model():
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_seed(0)
    return dvt.build_model("dvt_deit_small", **TINY)


def batch(count: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    images = rng.standard_normal((count, 3, 24, 24)).astype(np.float32)
    return images, rng.integers(0, 5, count).astype(np.int32)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return float(-(targets * (shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))).sum(axis=1).mean())


def test_losses_equal_numpy_for_labels_and_soft_targets(model) -> None:
    images, labels = batch()
    soft = np.eye(5, dtype=np.float32)[labels] * 0.9 + 0.1 / 5
    logits = [each.asnumpy() for each in model(Tensor(images))]
    expected = [cross_entropy(each, soft) for each in logits]
    losses = ExitLosses(model, label_smoothing=0.1)
    np.testing.assert_allclose(losses(Tensor(images), Tensor(labels)).asnumpy(), expected, atol=1e-5)
    np.testing.assert_allclose(losses(Tensor(images), Tensor(soft)).asnumpy(), expected, atol=1e-5)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


TWO = TINY | {"grid_sizes": (2, 3), "depth": 1}


def test_distillation_adds_the_divergence_from_the_last_exit(pynative_mode: None) -> None:
    model = dvt.build_model("dvt_deit_small", **TWO)
    images, labels = batch()
    logits = [each.asnumpy().astype(np.float64) for each in model(Tensor(images))]
    teacher = softmax(logits[1] / 3)
    divergence = 9 * (teacher * np.log(teacher / softmax(logits[0] / 3))).sum(axis=1).mean()
    targets = np.eye(5)[labels]
    expected = cross_entropy(logits[0], targets) + 0.7 * divergence, cross_entropy(logits[1], targets)
    losses = ExitLosses(model, 0.0, distillation=0.7, temperature=3.0)(Tensor(images), Tensor(labels)).asnumpy()
    np.testing.assert_allclose(losses, expected, atol=5e-5)
    assert divergence > 1e-3


def test_distillation_teaches_the_earlier_exits_alone(pynative_mode: None) -> None:
    """With targets of 0 there is no cross-entropy: all gradients come from the last exit, which has none itself."""
    model = dvt.build_model("dvt_deit_small", **TWO)
    images, _ = batch()
    parameters = model.trainable_params()
    gradients_of = ms.value_and_grad(ExitLosses(model, distillation=2.0), None, parameters)
    _, gradients = gradients_of(Tensor(images), Tensor(np.zeros((6, 5), np.float32)))
    taught = {p.name for p, gradient in zip(parameters, gradients, strict=True) if gradient.asnumpy().any()}
    assert {name.split(".")[1] for name in taught} == {"0"} and "exits.0.blocks.0.attn.qkv.weight" in taught


def test_training_overfits_a_batch_at_every_exit(model) -> None:
    images, labels = batch()
    step = TrainStep(
        model, TrainSection(ema_decay=0.0, weight_decay=0.0, label_smoothing=0.0), np.full(60, 3e-3, np.float32)
    )
    step.set_train()
    losses = [step(Tensor(images), Tensor(labels)).asnumpy() for _ in range(60)]
    assert (losses[-1] < 0.2 * losses[0]).all()


def test_exit_weights_choose_which_exits_learn() -> None:
    ms.set_context(mode=ms.GRAPH_MODE)
    model = dvt.build_model("dvt_deit_small", **TWO)
    images, labels = batch()
    before = {p.name: p.asnumpy().copy() for p in model.trainable_params()}
    train = TrainSection(ema_decay=0.0, weight_decay=0.0, exit_weights=[1.0, 0.0])
    step = TrainStep(model, train, np.full(1, 1e-3, np.float32))
    step(Tensor(images), Tensor(labels))
    changed = {p.name.split(".")[1] for p in model.trainable_params() if (p.asnumpy() != before[p.name]).any()}
    assert changed == {"0"}


ONE = TINY | {"grid_sizes": (2,), "depth": 1}


def one_step(train: TrainSection, rate: float | np.ndarray = 1e-2, steps: int = 8, seed: int = 0, **model_keys: object):
    """A fresh one-exit model, always the same, and its step."""
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_seed(0)
    model = dvt.build_model("dvt_deit_small", **{**ONE, **model_keys})
    model.set_train(True)
    set_precision(model, train.amp_level)
    step = TrainStep(model, train, np.full(steps, rate, np.float32), seed)
    step.set_train()
    return model, step


def weights_of(model) -> dict[str, np.ndarray]:
    return {p.name: p.asnumpy().copy() for p in model.trainable_params()}


def assert_close(model, others: dict[str, np.ndarray], atol: float) -> None:
    for name, value in weights_of(model).items():
        np.testing.assert_allclose(value, others[name], atol=atol, err_msg=name)


def test_average_follows_the_weights_and_the_counter_the_steps() -> None:
    images, labels = batch()
    rates = np.array([1e-3, 0.0], np.float32)
    model, step = one_step(TrainSection(ema_decay=0.75, weight_decay=0.05), rates, steps=2)
    before = weights_of(model)
    step(Tensor(images), Tensor(labels))
    moved = weights_of(model)
    for name, average in step.ema_weights().items():
        np.testing.assert_allclose(average, 0.75 * before[name] + 0.25 * moved[name], atol=1e-6)
    step(Tensor(images), Tensor(labels))  # learning rate 0: nothing moves
    assert_close(model, moved, atol=0)
    assert int(step.global_step.asnumpy()) == 2


def test_accumulation_equals_one_large_batch() -> None:
    images, labels = batch(6)
    keys = {"optimizer": "sgd", "clip_norm": 0.05, "ema_decay": 0.5}
    whole_model, whole = one_step(TrainSection(**keys))
    split_model, split = one_step(TrainSection(**keys, accumulation_steps=3))
    before = weights_of(split_model)
    for _ in range(3):
        loss = whole(Tensor(images), Tensor(labels)).asnumpy()
        parts = []
        for start in range(0, 6, 2):
            assert_close(split_model, before, atol=0)  # nothing moves before the last part
            part = slice(start, start + 2)
            parts.append(split(Tensor(images[part]), Tensor(labels[part])).asnumpy())
        before = weights_of(split_model)
        np.testing.assert_allclose(np.mean(parts, axis=0), loss, atol=1e-6)
    assert_close(split_model, weights_of(whole_model), atol=1e-6)
    for name, average in split.ema_weights().items():
        np.testing.assert_allclose(average, whole.ema_weights()[name], atol=1e-6)
    assert (int(split.global_step.asnumpy()), int(split.batches.asnumpy())) == (3, 9)
    assert all((part.asnumpy() == 0).all() for part in split.accumulated)


def test_clipping_bounds_the_global_norm() -> None:
    images, labels = batch()
    keys = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}
    norms = []
    for clip_norm in (None, 0.01):
        model, step = one_step(TrainSection(**keys, clip_norm=clip_norm), rate=1.0)
        before = weights_of(model)
        step(Tensor(images), Tensor(labels))
        moved = {name: value - before[name] for name, value in weights_of(model).items()}
        norms.append((np.sqrt(sum(np.square(m).sum() for m in moved.values())), moved))
    (free, free_moved), (clipped, clipped_moved) = norms
    assert free > 0.1 and clipped == pytest.approx(0.01, rel=1e-3)
    for name, value in clipped_moved.items():
        np.testing.assert_allclose(value, free_moved[name] * 0.01 / free, atol=1e-6)


@pytest.mark.parametrize(
    "keys",
    [{"optimizer": "adamw", "clip_norm": 1.0}, {"optimizer": "sgd", "accumulation_steps": 2}],
    ids=["adamw", "sgd, accumulated"],
)
def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing(keys: dict) -> None:
    """Neither weights nor averages nor the optimizer, after a step that has moved them all."""
    images, labels = batch()
    model, step = one_step(TrainSection(ema_decay=0.5, weight_decay=0.1, **keys))
    spoilt = images.copy()
    spoilt[0, 0, 0, 0] = np.nan

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        for _ in range(step.accumulation):
            step(Tensor(images), Tensor(labels))
        counted = ("global_step", "batches", "skipped_steps")
        return weights_of(model) | {k: v.copy() for k, v in step.state().items() if k not in counted}

    before, after = run(images), run(spoilt)
    for name, value in after.items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    assert int(step.skipped_steps.asnumpy()) == 1 and int(step.global_step.asnumpy()) == 2
    moved = run(images)
    assert all((value != before[name]).any() for name, value in moved.items() if name.endswith("head.weight"))
    assert all(np.isfinite(value).all() for value in moved.values())


def test_a_step_that_overflows_changes_nothing_but_the_loss_scale() -> None:
    images, labels = batch()
    train = TrainSection(amp_level="O1", loss_scale=1024.0, loss_scale_window=2, ema_decay=0.5)
    model, step = one_step(train)
    fresh = weights_of(model)
    spoilt = images.copy()
    spoilt[0, 0, 0, 0] = np.inf

    def scale() -> float:
        return float(step.loss_scale.asnumpy())

    assert not np.isfinite(step(Tensor(spoilt), Tensor(labels)).asnumpy()).all()
    assert_close(model, fresh, atol=0)
    assert scale() == 512 and int(step.skipped_steps.asnumpy()) == 1 and int(step.global_step.asnumpy()) == 1
    assert all(np.array_equal(average, fresh[name]) for name, average in step.ema_weights().items())
    for expected in (512, 1024, 1024):  # doubled after two good steps
        assert np.isfinite(step(Tensor(images), Tensor(labels)).asnumpy()).all()
        assert scale() == expected
    assert int(step.skipped_steps.asnumpy()) == 1
    assert any((value != fresh[name]).any() for name, value in weights_of(model).items())


def test_mixed_precision_follows_the_float32_step() -> None:
    images, labels = batch()
    keys = {"optimizer": "sgd", "momentum": 0.9}
    exact_model, exact = one_step(TrainSection(**keys), rate=0.1)
    half_model, half = one_step(TrainSection(**keys, amp_level="O2"), rate=0.1)
    for _ in range(3):
        losses = [step(Tensor(images), Tensor(labels)).asnumpy() for step in (exact, half)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=5e-3)
    assert losses[0] != losses[1]
    assert_close(half_model, weights_of(exact_model), atol=5e-3)


def test_noise_follows_seed_and_batch_alone_also_where_blocks_are_recomputed() -> None:
    """Equal weights (learning rate 0), equal batches: what differs is stochastic depth and dropout."""
    images, labels = batch()
    train, noise = TrainSection(optimizer="sgd"), {"drop_path_rate": 0.5, "dropout_rate": 0.2, "depth": 2}
    rates = np.array([0.0, 0.0, 0.0, 0.0, 1e-2, 1e-2, 0.0, 0.0], np.float32)

    def losses(step: TrainStep, count: int) -> list[float]:
        return [float(step(Tensor(images), Tensor(labels)).asnumpy()[0]) for _ in range(count)]

    model, step = one_step(train, rates, seed=1, **noise)
    first = losses(step, 3)
    assert len(set(first)) == 3
    step.load_state({"batches": 0})
    assert losses(step, 1) == first[:1]
    _, other = one_step(train, rates, seed=2, **noise)
    assert not set(losses(other, 3)) & set(first)

    recomputed, again = one_step(train, rates, seed=1, **noise)
    for block in recomputed.exits[0].blocks:
        block.recompute()
    np.testing.assert_allclose(losses(again, 3), first, atol=1e-6)
    again.load_state({"batches": 0})
    np.testing.assert_allclose(losses(again, 4), first[:1] + losses(step, 3), atol=1e-6)  # two of which move weights
    assert_close(recomputed, weights_of(model), atol=1e-6)


def test_heads_learn_at_their_own_rate() -> None:
    images, labels = batch()
    train = TrainSection(optimizer="sgd", momentum=0.0, weight_decay=0.0, backbone_lr_scale=0.0)
    model, step = one_step(train, rate=0.1)
    before = weights_of(model)
    step(Tensor(images), Tensor(labels))
    changed = {name for name, value in weights_of(model).items() if (value != before[name]).any()}
    assert changed == {"exits.0.head.weight", "exits.0.head.bias"}


@pytest.mark.parametrize(
    ("key", "value"), [("distillation", -0.5), ("distillation_temperature", 0.0), ("distillation_temperature", 1e30)]
)
def test_odd_distillation_is_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"train.{key} is "):
        TrainSection(**{key: value})


def test_each_exit_has_its_share_of_the_learning_rate() -> None:
    images, labels = (Tensor(each) for each in batch())
    moved = {}
    for scales in (None, [0.0, 1.0], [0.5, 1.0]):
        ms.set_seed(0)
        model = dvt.build_model("dvt_deit_small", **TWO)
        before = {p.name: p.asnumpy().copy() for p in model.get_parameters()}
        step = TrainStep(model, TrainSection(exit_lr_scales=scales), np.full(9, 1e-3, np.float32))
        step.set_train(True)
        step(images, labels)
        moved[str(scales)] = {p.name: p.asnumpy() - before[p.name] for p in model.get_parameters()}
    for name, change in moved["None"].items():
        scale = 0.5 if name.startswith("exits.0.") else 1.0
        np.testing.assert_allclose(moved["[0.5, 1.0]"][name], scale * change, atol=2e-7)
        assert not moved["[0.0, 1.0]"][name].any() or name.startswith("exits.1.")
    assert moved["None"]["exits.0.blocks.0.attn.qkv.weight"].any()
    assert moved["[0.0, 1.0]"]["exits.1.blocks.0.attn.qkv.weight"].any()
