"""Operators that must be others on some devices: the one place where models and training ask which device it is.

On Ascend the AICPU, a slow processor beside the cores, would compute shifts of integers, `ops.unfold` and `ops.pad`,
and no document promises that int32 sums and products wrap around. So a number modulo 2**32 is an int32 tensor
elsewhere, and there two tensors, its upper and its lower 16 bits: no sum or product of these leaves int32, and no
quotient needs more digits than float32 has. Below, `Word` is either.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from mindspore import Tensor, amp, mint, ops
from mindspore import dtype as mstype

from dvt import device

Word = Any
Halves = tuple[Tensor, Tensor]

_map, _add_all, _is_finite = ops.HyperMap(), ops.AddN(), ops.IsFinite()


class Operators(NamedTuple):
    """What depends on the device.

    Attributes:
        unfold: (B, I, S, S), kernel, stride, padding -> overlapping patches (B, I*kernel*kernel, T), channel-major.
        pad: (B, I, S, S), padding of the four sides -> the images within zeros.
        branches: Whether a graph may ask for the value of a tensor, for which an Ascend would wait for the host.
        chained: Whether a message to other ranks must wait for the one before, lest ranks send them in different
            orders. On Ascend their order is that of the graph.
        all_finite: Tuple of float32 tensors -> whether all their elements are finite, a boolean scalar.
        word, number: From int32 tensors to words and back.
        add, multiply: A word and a word, a word and a Python int32 -> their sum or product modulo 2**32.
        fold: A word and 15 or 16 -> the word, exclusive or itself shifted right by so many bits.
    """

    unfold: Callable[[Tensor, int, int, int], Tensor]
    pad: Callable[[Tensor, tuple[int, ...]], Tensor]
    branches: bool
    chained: bool
    all_finite: Callable[[tuple[Tensor, ...]], Tensor]
    word: Callable[[Tensor], Word]
    number: Callable[[Word], Tensor]
    add: Callable[[Word, Word], Word]
    multiply: Callable[[Word, int], Word]
    fold: Callable[[Word, int], Word]


def operators() -> Operators:
    """Those of the device of this process."""
    return {"CPU": ON_CPU, "Ascend": ON_ASCEND}.get(device.current_target(), ON_GPU)


def _unfold(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    return ops.unfold(x, kernel, stride=stride, padding=padding)


def _unfold_on_ascend(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    return mint.nn.functional.unfold(x, kernel, stride=stride, padding=padding)


def _sum_up(x: Tensor) -> Tensor:
    return x.sum()


def _sums_are_finite(tensors: tuple[Tensor, ...]) -> Tensor:
    # A sum that overflows counts as not finite too: MindSpore's check of every element takes longer on the CPU than the
    # optimizer, and such gradients have no finite squares.
    return _is_finite(_add_all(_map(_sum_up, tensors)))


def _int32(number: int) -> Tensor:
    # Constants are tensors: MindSpore 2.7 folds a constant tensor times a Python number in float32.
    return Tensor(number, mstype.int32)


def _same(x: Tensor) -> Tensor:
    return x


def _add(x: Tensor, y: Tensor) -> Tensor:
    return x + y


def _multiply(x: Tensor, constant: int) -> Tensor:
    return x * _int32(constant)


def _fold(x: Tensor, bits: int) -> Tensor:
    # The shift keeps the sign; the mask makes it a logical one.
    shifted = ops.bitwise_and(ops.bitwise_right_shift(x, _int32(bits)), _int32((1 << (32 - bits)) - 1))
    return ops.bitwise_xor(x, shifted)


def _low_bits(x: Tensor) -> Tensor:
    return ops.bitwise_and(x, _int32(0xFFFF))


def _quotient(x: Tensor, divisor: int) -> Tensor:
    return ops.floor_divide(x, _int32(divisor))


def _halves(x: Tensor) -> Halves:
    low = _low_bits(x)
    return _low_bits(_quotient(x - low, 0x10000)), low


def _joined(x: Halves) -> Tensor:
    high, low = x
    signed = ops.bitwise_xor(high, _int32(0x8000)) - _int32(0x8000)
    return signed * _int32(0x10000) + low


def _add_halves(x: Halves, y: Halves) -> Halves:
    low = x[1] + y[1]
    return _low_bits(x[0] + y[0] + _quotient(low, 0x10000)), _low_bits(low)


def _multiply_halves(x: Halves, constant: int) -> Halves:
    constant_low = (constant & 0xFFFF) - ((constant & 0x8000) << 1)  # with its sign: a product with 16 bits fits int32
    constant_high = (constant - constant_low) >> 16
    high, low = x
    product = low * _int32(constant_low)
    product_low = _low_bits(product)
    crossed = _low_bits(low * _int32(constant_high)) + _low_bits(high * _int32(constant_low))
    return _low_bits(crossed + _quotient(product - product_low, 0x10000)), product_low


def _fold_halves(x: Halves, bits: int) -> Halves:
    high, low = x
    if bits == 16:
        return high, ops.bitwise_xor(low, high)
    moved = ops.bitwise_and(high, _int32(0x7FFF)) * _int32(2) + _quotient(low, 0x8000)
    return ops.bitwise_xor(high, _quotient(high, 0x8000)), ops.bitwise_xor(low, moved)


ON_CPU = Operators(_unfold, ops.pad, True, True, _sums_are_finite, _same, _same, _add, _multiply, _fold)
ON_GPU = ON_CPU._replace(branches=False, all_finite=amp.all_finite)
ON_ASCEND = Operators(
    _unfold_on_ascend,
    mint.nn.functional.pad,
    False,
    False,
    amp.all_finite,
    _halves,
    _joined,
    _add_halves,
    _multiply_halves,
    _fold_halves,
)
