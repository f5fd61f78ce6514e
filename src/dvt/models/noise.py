"""Dropout and stochastic depth whose masks are a pure function of a key, so that a resumed run draws what an unbroken
one would have drawn and every rank draws differently.

MindSpore's generator begins again in each process and cannot be put back in graph mode. Here a training step hands one
int32 key to the model, made of seed, step and rank; every place that drops something mixes its own number, its `site`,
into it. The mask is a hash in int32 arithmetic that wraps around (the constants are those of the "lowbias32" integer
hash; tests hold the same in NumPy; tried on the CPU). Axis letters: B batch, T tokens, E channels.
"""

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

_GOLDEN = -1640531527  # 2**32 / golden ratio, as int32
_MULTIPLIERS = (2146121005, -2073254261)
_LOW_BITS = {15: 0x1FFFF, 16: 0xFFFF}  # what is left of an int32 after a logical shift


def site_number(*place: int) -> int:
    """An int32 that is another one for each place of the model: exit, layer, position within the layer."""
    number = 0
    for part in place:
        number = (number * 257 + part + 1) & 0x7FFFFFFF
    return number


class IntegerHash(nn.Cell):
    """int32 of any shape -> int32, every bit of which depends on every bit of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.xor, self.and_, self.shift = ops.BitwiseXor(), ops.BitwiseAnd(), ops.RightShift()
        # As a tensor: MindSpore 2.7 folds constants times a Python number in float32.
        self.golden = Tensor(_GOLDEN, mstype.int32)
        self.shifts = {bits: Tensor(bits, mstype.int32) for bits in _LOW_BITS}
        self.masks = {bits: Tensor(mask, mstype.int32) for bits, mask in _LOW_BITS.items()}

    def construct(self, x: Tensor) -> Tensor:
        x = self._fold(x, 16) * _MULTIPLIERS[0]
        x = self._fold(x, 15) * _MULTIPLIERS[1]
        return self._fold(x, 16)

    def _fold(self, x: Tensor, bits: int) -> Tensor:
        # RightShift keeps the sign; the mask makes the shift a logical one.
        return self.xor(x, self.and_(self.shift(x, self.shifts[bits]), self.masks[bits]))


class Dropout(nn.Cell):
    """In training, sets each element of (B, T, E) to zero with probability `rate` and scales the others up.

    The hash of a token and the hash of a channel are joined by one product: quicker than a full hash per element, and
    far better than a mask needs to be. Without a key, or outside of training, the input is returned.
    """

    def __init__(self, rate: float, site: int) -> None:
        super().__init__()
        self.rate, self.site = rate, site
        self.threshold = Tensor(_int32_quantile(rate), mstype.int32)
        self.hash = IntegerHash()
        self.xor = ops.BitwiseXor()

    def construct(self, x: Tensor, noise_key: Tensor | None) -> Tensor:
        if noise_key is None:
            return x
        if self.rate == 0 or not self.training:
            return x
        batch, tokens, channels = x.shape
        key = self.hash(noise_key + self.site)
        rows = self.hash(_count(batch * tokens) * self.hash.golden + key).reshape(batch, tokens, 1)
        columns = self.hash(_count(channels) + self.hash(key + 1))  # (E,)
        # Spread first: on the CPU an operator that broadcasts holds 16 bytes per element (docs/performance.md).
        mixed = self.xor(ops.broadcast_to(rows, x.shape), ops.broadcast_to(columns, x.shape))
        keep = mixed * _MULTIPLIERS[1] >= self.threshold  # (B, T, E)
        return x * (keep.astype(x.dtype) * (1.0 / (1.0 - self.rate)))


class StochasticDepth(nn.Cell):
    """What the two branches of every block are multiplied with in training: 0 for an image whose branch is dropped.

    The rate rises linearly over the L layers to `rate`; kept branches are scaled up. Drawn for all layers at once: a
    hash per block would double the time that a model takes to compile.
    """

    def __init__(self, rate: float, depth: int, site: int) -> None:
        super().__init__()
        self.rates = np.linspace(0.0, rate, depth).tolist()
        self.on = rate > 0
        self.depth, self.site = depth, site
        self.thresholds = Tensor(np.array([_int32_quantile(each) for each in self.rates], np.int32).reshape(-1, 1, 1))
        self.scales = Tensor(np.array([1 / (1 - each) for each in self.rates], np.float32).reshape(-1, 1, 1))
        self.hash = IntegerHash()
        self.unstack = ops.Unstack(axis=0)

    def construct(self, images: int, noise_key: Tensor | None) -> tuple[Tensor, ...] | None:
        """Number of images B -> float32 (B, 1, 1) for the two branches of layer after layer, 2L in all.

        None without a key, with rate 0, or outside of training.
        """
        if noise_key is None:
            return None
        if not self.on or not self.training:
            return None
        key = self.hash(noise_key + self.site)
        drawn = self.hash(_count(self.depth * 2 * images) * self.hash.golden + key).reshape(self.depth, 2, images)
        keep = (drawn >= self.thresholds).astype(mstype.float32) * self.scales
        return self.unstack(keep.reshape(2 * self.depth, images, 1, 1))


class DrawnKey(nn.Cell):
    """A key from MindSpore's generator, another one at each call: 31 random bits."""

    def __init__(self) -> None:
        super().__init__()
        self.coins = nn.Dropout(p=0.5)
        self.powers = Tensor(2 ** np.arange(31, dtype=np.int32))

    def construct(self) -> Tensor:
        heads = self.coins(ops.ones((31,), mstype.float32)) > 0
        return (heads.astype(mstype.int32) * self.powers).sum().astype(mstype.int32)  # the sum is int64


def _count(stop: int) -> Tensor:
    # `ops.arange` counts as a side effect, which MindSpore warns of and which makes recomputation do nothing.
    return ops.range(0, stop, 1).astype(mstype.int32)


def _int32_quantile(share: float) -> int:
    """The int32 that a share of all int32 is below."""
    return -(2**31) + round(share * 2**32)
