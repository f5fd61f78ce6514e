"""AdamW against ten reference steps of two groups, in graph mode and PyNative."""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from dvt.training.optimizer import AdamW, is_decayed

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


def test_only_matrices_decay() -> None:
    assert is_decayed(Parameter(Tensor(np.zeros((2, 2), np.float32))))
    assert not is_decayed(Parameter(Tensor(np.zeros(2, np.float32))))
