"""The harness itself: it sees kernels, types, memory and errors, and the simulation is one of Ascend."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from ascend.simulated import Ascend, Graphs

pytestmark = pytest.mark.slow


class Mixed(nn.Cell):
    def construct(self, x: Tensor) -> Tensor:
        return ops.unfold(x, 3).sum() + ops.relu(x.astype(ms.float16)).sum() + ops.lgamma(x).sum()


class Refused(nn.Cell):
    """Compiles on the CPU."""

    def construct(self, labels: Tensor) -> Tensor:
        return ops.one_hot(labels, 3)


def mixed() -> None:
    Mixed()(Tensor(np.ones((2, 3, 512, 512), np.float32)))


def refused() -> None:
    Refused()(Tensor(np.zeros(4, np.int32)))


@pytest.fixture(scope="module")
def graphs(ascend: Ascend) -> dict[str, Graphs]:
    return ascend.compile(__file__, ["mixed", "refused"])


def test_kernels_types_and_memory(graphs: dict[str, Graphs]) -> None:
    mixed = graphs["mixed"]
    assert not mixed.error
    assert mixed.aicpu() == {"Im2Col": 1, "Lgamma": 1} and mixed.of_kind("aclnn")["ReLU"] == 1
    assert {node.inputs[0] for node in mixed.nodes if node.operator == "ReLU"} == {"Float16"}
    assert mixed.peak_bytes > 9 * 2 * 3 * 500 * 500 * 4
    assert graphs["refused"].peak_bytes < mixed.peak_bytes


def test_an_error_is_that_of_ascend(graphs: dict[str, Graphs]) -> None:
    assert "For OneHot on Ascend" in graphs["refused"].error and not graphs["refused"].kernels
