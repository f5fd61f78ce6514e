"""The loss and the compiled step: against NumPy, and what a step must leave behind."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

import dvt
from dvt.config import TrainSection
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


def test_training_overfits_a_batch_at_every_exit(model) -> None:
    images, labels = batch()
    step = TrainStep(
        model, TrainSection(ema_decay=0.0, weight_decay=0.0, label_smoothing=0.0), np.full(60, 3e-3, np.float32)
    )
    step.set_train()
    losses = [step(Tensor(images), Tensor(labels)).asnumpy() for _ in range(60)]
    assert (losses[-1] < 0.2 * losses[0]).all()


def test_average_follows_the_weights_and_the_counter_the_steps(model) -> None:
    images, labels = batch()
    before = {p.name: p.asnumpy().copy() for p in model.trainable_params()}
    rates = np.array([1e-3, 0.0], np.float32)
    step = TrainStep(model, TrainSection(ema_decay=0.75, weight_decay=0.05), rates)
    step.set_train()
    step(Tensor(images), Tensor(labels))
    moved = {p.name: p.asnumpy().copy() for p in model.trainable_params()}
    for name, average in step.ema_weights().items():
        np.testing.assert_allclose(average, 0.75 * before[name] + 0.25 * moved[name], atol=1e-6)
    step(Tensor(images), Tensor(labels))  # learning rate 0: nothing moves
    for parameter in model.trainable_params():
        np.testing.assert_array_equal(parameter.asnumpy(), moved[parameter.name])
    assert int(step.global_step.asnumpy()) == 2


def test_exit_weights_choose_which_exits_learn(model) -> None:
    images, labels = batch()
    before = {p.name: p.asnumpy().copy() for p in model.trainable_params()}
    train = TrainSection(ema_decay=0.0, weight_decay=0.0, exit_weights=[1.0, 0.0, 0.0])
    step = TrainStep(model, train, np.full(1, 1e-3, np.float32))
    step(Tensor(images), Tensor(labels))
    changed = {p.name.split(".")[1] for p in model.trainable_params() if (p.asnumpy() != before[p.name]).any()}
    assert changed == {"0"}
