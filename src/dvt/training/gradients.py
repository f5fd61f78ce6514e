"""The mean of losses and gradients over all ranks, as cells of the compiled step."""

import itertools
from collections.abc import Iterator, Sequence

from mindspore import Tensor, nn, ops

from dvt.models.per_device import operators

MESSAGE_ELEMENTS = 25 * 2**18  # float32, 25 MiB
"""So many gradients are sent together: enough that the start of a message costs little, few enough that the first
messages are under way while the other gradients are computed."""


def _flatten(x: Tensor) -> Tensor:
    return x.reshape(-1)


_cut_out = ops.MultitypeFuncGraph("cut_out")  # a plain function may not be partial, see `dvt.training.step`


@_cut_out.register("Tensor", "Number", "Number", "Tensor")
def _cut_out_one(flat: Tensor, start: int, size: int, like: Tensor) -> Tensor:
    return ops.slice(flat, (start,), (size,)).reshape(like.shape)


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

    They travel in a few messages, those of the last parameters first, since backward passes end with the first ones.
    """

    def __init__(self, sizes: Sequence[int], count: int, most: int = MESSAGE_ELEMENTS) -> None:
        super().__init__()
        self.mean, self.chained = Mean(count), operators().chained
        self.sizes = tuple(sizes)
        self.messages = tuple(messages(sizes, most))
        self.map = ops.HyperMap()

    def construct(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        means, before = (), None
        for first, stop, starts in self.messages:
            joined = ops.concat(self.map(_flatten, tensors[first:stop]))
            if before is not None:  # in this order on all ranks
                joined = ops.depend(joined, before)
            mean = self.mean(joined)
            before = mean if self.chained else joined
            cut_out = ops.partial(_cut_out, mean)
            means = self.map(cut_out, starts, self.sizes[first:stop], tensors[first:stop]) + means
        return means


def messages(sizes: Sequence[int], most: int) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """(first, stop, starts) of each message: which of the tensors it holds, and at which of its elements each begins.

    A message has at most so many elements, or one larger tensor.
    """
    stop = len(sizes)
    while stop:
        first = stop - 1
        while first and sum(sizes[first - 1 : stop]) <= most:
            first -= 1
        yield first, stop, tuple(itertools.accumulate(sizes[first : stop - 1], initial=0))
        stop = first
