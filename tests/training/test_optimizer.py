"""AdamW against ten reference steps of two groups, SGD against its formula, in graph mode and PyNative."""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from dvt.training.optimizer import AdamW, Sgd, is_decayed, is_head

REFERENCE = np.load(Path(__file__).parents[1] / "reference" / "optimizer.npz")


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
def test_ten_steps_equal_the_reference(mode: int) -> None:
    ms.set_context(mode=mode)
    try:
        weight = Parameter(Tensor(REFERENCE["adamw/w"][0].astype(np.float32)), name="w")  # (4, 3): decayed
        bias = Parameter(Tensor(REFERENCE["adamw/b"][0].astype(np.float32)), name="b")  # (4,): not decayed
        optimizer = AdamW([weight, bias], weight_decay=0.05)
        for step, rate in enumerate(REFERENCE["adamw/lr"]):
            gradients = tuple(Tensor(REFERENCE[f"adamw/grad_{n}"][step].astype(np.float32)) for n in "wb")
            optimizer(gradients, Tensor(rate, ms.float32))
            np.testing.assert_allclose(weight.asnumpy(), REFERENCE["adamw/w"][step + 1], atol=3e-7)
            np.testing.assert_allclose(bias.asnumpy(), REFERENCE["adamw/b"][step + 1], atol=3e-7)
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
def test_sgd_equals_its_formula(mode: int) -> None:
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(shape).astype(np.float32) for shape in ((3, 2), (3,))]
    velocity = [np.zeros_like(value) for value in values]
    ms.set_context(mode=mode)
    try:
        parameters = [Parameter(Tensor(value), name=name) for name, value in zip("wb", values, strict=True)]
        optimizer = Sgd(parameters, weight_decay=0.1, lr_scales=[1.0, 0.01], momentum=0.9)
        for step in range(5):
            rate = 0.1 / (step + 1)
            gradients = [rng.standard_normal(value.shape).astype(np.float32) for value in values]
            optimizer(tuple(Tensor(g) for g in gradients), Tensor(rate, ms.float32))
            for i, (decay, scale) in enumerate(((0.1, 1.0), (0.0, 0.01))):
                velocity[i] = 0.9 * velocity[i] + gradients[i] + decay * values[i]
                values[i] = values[i] - rate * scale * velocity[i]
                np.testing.assert_allclose(parameters[i].asnumpy(), values[i], atol=1e-6)
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)


def test_heads_are_told_from_all_else() -> None:
    names = {"exits.2.head.bias": True, "head.weight": True, "exits.0.blocks.0.attn.qkv.weight": False}
    for name, expected in names.items():
        assert is_head(Parameter(Tensor(np.zeros(2, np.float32)), name=name)) is expected


def test_only_matrices_decay() -> None:
    assert is_decayed(Parameter(Tensor(np.zeros((2, 2), np.float32))))
    assert not is_decayed(Parameter(Tensor(np.zeros(2, np.float32))))
