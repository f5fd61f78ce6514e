"""What happens to gradients and losses between the backward pass and the optimizer, as cells of the compiled step: the
mean over all ranks, and the check that all values are finite."""

import itertools
from collections.abc import Sequence

from mindspore import Tensor, amp, nn, ops

from dvt import device

# Mapped over the gradients: a Python loop in a branch of a graph nests calls until MindSpore gives up.
_flatten = ops.MultitypeFuncGraph("flatten")
_cut_out = ops.MultitypeFuncGraph("cut_out")
_sum_up = ops.MultitypeFuncGraph("sum_up")


@_flatten.register("Tensor")
def _flatten_one(x: Tensor) -> Tensor:
    return x.reshape(-1)


@_cut_out.register("Tensor", "Number", "Number", "Tensor")
def _cut_out_one(flat: Tensor, start: int, size: int, like: Tensor) -> Tensor:
    return ops.slice(flat, (start,), (size,)).reshape(like.shape)


@_sum_up.register("Tensor")
def _sum_up_one(x: Tensor) -> Tensor:
    return x.sum()


class Mean(nn.Cell):
    """The mean of a float32 tensor over all `count` ranks."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.all_reduce = ops.AllReduce()

    def construct(self, x: Tensor) -> Tensor:
        return self.all_reduce(x) / self.count


class GradientsMean(nn.Cell):
    """The mean of a tuple of float32 tensors, of `sizes` elements each, over all `count` ranks.

    It is one message: hundreds of small ones cost the CPU more than a step itself.
    """

    def __init__(self, sizes: Sequence[int], count: int) -> None:
        super().__init__()
        self.mean = Mean(count)
        self.sizes = tuple(sizes)
        self.starts = tuple(itertools.accumulate((0, *self.sizes[:-1])))
        self.map = ops.HyperMap()

    def construct(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        joined = self.mean(ops.concat(self.map(_flatten, tensors)))
        return self.map(ops.partial(_cut_out, joined), self.starts, self.sizes, tensors)


def finite_check() -> nn.Cell:
    """A cell that says whether all of a tuple of float32 tensors are finite.

    On the CPU a sum that overflows counts as not finite too: MindSpore's check of every element takes longer there than
    the optimizer, and such gradients have no finite squares.
    """
    return _SumsAreFinite() if device.current_target() == "CPU" else _AllFinite()


class _SumsAreFinite(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.map = ops.HyperMap()
        self.add = ops.AddN()
        self.is_finite = ops.IsFinite()

    def construct(self, tensors: tuple[Tensor, ...]) -> Tensor:
        return self.is_finite(self.add(self.map(_sum_up, tensors)))


class _AllFinite(nn.Cell):
    def construct(self, tensors: tuple[Tensor, ...]) -> Tensor:
        return amp.all_finite(tensors)
