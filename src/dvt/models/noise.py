"""Dropout and stochastic depth whose masks are a pure function of a key, so that a resumed run draws what an unbroken
one would have drawn and every rank draws differently: MindSpore's generator cannot be put back in graph mode.

A training step hands one int32 key to the model; every place that drops something mixes its own number, its `site`,
into it. The mask is a hash modulo 2**32, the same on every device (`dvt.models.per_device`; the constants are those of
the "lowbias32" integer hash). Axis letters: B batch, T tokens, E channels.
"""

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from dvt.models.per_device import Word, operators

_GOLDEN = -1640531527  # 2**32 / golden ratio, as int32
_MULTIPLIERS = (2146121005, -2073254261)


def site_number(*place: int) -> int:
    """An int32 that is another one for each place of the model: exit, layer, position within the layer."""
    number = 0
    for part in place:
        number = (number * 257 + part + 1) & 0x7FFFFFFF
    return number


class IntegerHash(nn.Cell):
    """A word (`dvt.models.per_device`) of any shape -> a word, every bit of which depends on every bit of the input."""

    def __init__(self) -> None:
        super().__init__()
        *_, self.word, self.number, self.add, self.multiply, self.fold = operators()

    def construct(self, x: Word) -> Word:
        x = self.multiply(self.fold(x, 16), _MULTIPLIERS[0])
        x = self.multiply(self.fold(x, 15), _MULTIPLIERS[1])
        return self.fold(x, 16)

    def keyed(self, key: Word, number: int) -> Word:
        """The hash of a key and one number."""
        return self.construct(self.add(key, self.word(Tensor(number, mstype.int32))))

    def numbered(self, count: int, key: Word) -> Word:
        """The hashes (count,) of a key and the numbers 0 to count - 1."""
        return self.construct(self.add(self.multiply(self.word(_count(count)), _GOLDEN), key))


class Dropout(nn.Cell):
    """In training with a key, sets each element of (B, T, E) to zero with probability `rate`, scales the others up. The
    hashes of a token and of a channel are joined by one product, quicker than a full hash per element."""

    def __init__(self, rate: float, site: int) -> None:
        super().__init__()
        self.rate, self.site = rate, site
        self.threshold = Tensor(_int32_quantile(rate), mstype.int32)
        self.hash = IntegerHash()

    def construct(self, x: Tensor, noise_key: Tensor | None) -> Tensor:
        if noise_key is None or self.rate == 0 or not self.training:
            return x
        batch, tokens, channels = x.shape
        number, word, add = self.hash.number, self.hash.word, self.hash.add
        key = self.hash.keyed(word(noise_key), self.site)
        rows = number(self.hash.numbered(batch * tokens, key)).reshape(batch, tokens, 1)
        columns = number(self.hash(add(word(_count(channels)), self.hash.keyed(key, 1))))  # (E,)
        # Spread first: on the CPU an operator that broadcasts holds 16 bytes per element (docs/performance.md).
        mixed = ops.bitwise_xor(ops.broadcast_to(rows, x.shape), ops.broadcast_to(columns, x.shape))
        keep = number(self.hash.multiply(word(mixed), _MULTIPLIERS[1])) >= self.threshold  # (B, T, E)
        return x * (keep.astype(x.dtype) * (1.0 / (1.0 - self.rate)))


class StochasticDepth(nn.Cell):
    """What the two branches of every block are multiplied with in training: 0 for an image whose branch is dropped. The
    rate rises linearly over the L layers; kept branches are scaled up. Drawn for all at once, to compile sooner."""

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
        """Number of images B -> float32 (B, 1, 1) for the two branches of layer after layer, 2L in all, or None."""
        if noise_key is None or not self.on or not self.training:
            return None
        key = self.hash.keyed(self.hash.word(noise_key), self.site)
        drawn = self.hash.number(self.hash.numbered(self.depth * 2 * images, key)).reshape(self.depth, 2, images)
        keep = (drawn >= self.thresholds).astype(mstype.float32) * self.scales
        return self.unstack(keep.reshape(2 * self.depth, images, 1, 1))


class NoiseKey(nn.Cell):
    """The key of one batch: seed and number of the batch, both int32 -> int32."""

    def __init__(self) -> None:
        super().__init__()
        self.hash = IntegerHash()

    def construct(self, seed: Tensor, batch: Tensor) -> Tensor:
        word = self.hash.word
        return self.hash.number(self.hash(self.hash.add(word(seed), self.hash(word(batch)))))


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
