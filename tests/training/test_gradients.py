"""Which gradients travel together. That their mean is right is tested by whole jobs."""

import numpy as np
import pytest
from mindspore import Tensor

from dvt.training.gradients import GradientsMean, messages


@pytest.mark.parametrize("most", [1, 5, 7, 100])
def test_messages_hold_every_tensor_once_and_the_last_ones_first(most: int) -> None:
    sizes = [3, 1, 4, 1, 5, 9, 2, 6]
    found = list(messages(sizes, most))
    covered = [place for first, stop, _ in found for place in reversed(range(first, stop))]
    assert covered == list(reversed(range(len(sizes))))
    for first, stop, starts in found:
        assert list(starts) == [sum(sizes[first:place]) for place in range(first, stop)]
        assert sum(sizes[first:stop]) <= most or stop == first + 1


@pytest.mark.parametrize("shapes", [((2, 3), (4,), (1, 5)), ((2, 3), (3, 2)) * 3], ids=["different", "equal"])
def test_tensors_come_back_in_their_places_and_shapes(shapes: tuple, graph_mode: None) -> None:
    rng = np.random.default_rng(0)
    tensors = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    for most in (6, 12, 100):
        cell = GradientsMean([each.size for each in tensors], 2, most)
        cell.mean.all_reduce = doubled  # two ranks with the same gradients
        for mean, tensor in zip(cell(tuple(Tensor(each) for each in tensors)), tensors, strict=True):
            np.testing.assert_array_equal(mean.asnumpy(), tensor)


def doubled(x: Tensor) -> Tensor:
    return x * 2.0
