"""Operators of one device against those of the others: the same numbers, by arithmetic that needs no wrap-around."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor, nn

from dvt.models import per_device
from dvt.models.noise import _GOLDEN, _MULTIPLIERS
from dvt.models.per_device import ON_ASCEND, ON_CPU, ON_GPU, Operators

CONSTANTS = (_GOLDEN, *_MULTIPLIERS, -(2**31), 2**31 - 1, -1, 0x8000, 0x7FFF8000)
EDGES = [0, 1, -1, 2**31 - 1, -(2**31), 0x7FFF, 0x8000, -0x8000, 0xFFFF, 0x10000, -0x10000, 0x7FFF8000]
X = np.array(EDGES + list(np.random.default_rng(0).integers(-(2**31), 2**31, 2000)), np.int32)
Y = np.random.default_rng(1).permutation(X)


class Int32(np.ndarray):
    """Whole numbers in int64 that must stay within int32 from operation to operation."""

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: object, **_: object) -> np.ndarray:
        result = getattr(ufunc, method)(*(np.asarray(each, np.int64) for each in inputs))
        assert (result >= -(2**31)).all() and (result < 2**31).all(), ufunc
        return result.view(Int32)


def test_no_sum_or_product_on_ascend_leaves_int32(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("bitwise_and", "bitwise_xor", "floor_divide")
    monkeypatch.setattr(per_device, "ops", SimpleNamespace(**{name: getattr(np, name) for name in names}))
    monkeypatch.setattr(per_device, "_int32", np.int64)
    x, y = X.astype(np.int64).view(Int32), Y.astype(np.int64).view(Int32)
    with pytest.raises(AssertionError):
        ON_CPU.add(x, y)
    expect(lambda x, y: x + y, ON_ASCEND.add(ON_ASCEND.word(x), ON_ASCEND.word(y)))
    for constant in CONSTANTS:
        factor = np.uint32(constant & 0xFFFFFFFF)
        expect(lambda x, _, factor=factor: x * factor, ON_ASCEND.multiply(ON_ASCEND.word(x), constant))
    for bits in (15, 16):
        expect(lambda x, _, bits=bits: x ^ (x >> np.uint32(bits)), ON_ASCEND.fold(ON_ASCEND.word(x), bits))


def expect(function: Callable, word: tuple[Int32, Int32]) -> None:
    """The word of a function of X and Y in unsigned arithmetic."""
    number = np.asarray(ON_ASCEND.number(word))
    np.testing.assert_array_equal(number, function(X.view(np.uint32), Y.view(np.uint32)).view(np.int32))


class Arithmetic(nn.Cell):
    def __init__(self, operators: Operators) -> None:
        super().__init__(auto_prefix=False)
        *_, self.word, self.number, self.add, self.multiply, self.fold = operators

    def construct(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        x, y = self.word(x), self.word(y)
        words = self.add(x, y), self.multiply(x, _GOLDEN), self.fold(x, 15), self.fold(x, 16)
        return tuple([self.number(word) for word in words])


def test_compiled_arithmetic_is_the_same(graph_mode: None) -> None:
    on_cpu, on_ascend = (Arithmetic(each)(Tensor(X), Tensor(Y)) for each in (ON_CPU, ON_ASCEND))
    for one, other in zip(on_cpu, on_ascend, strict=True):
        np.testing.assert_array_equal(one.asnumpy(), other.asnumpy())


@pytest.mark.parametrize("all_finite", [ON_CPU.all_finite, ON_GPU.all_finite], ids=["sums", "elements"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_found(value: float, all_finite: object, pynative_mode: None) -> None:
    arrays = [np.full(shape, 1e30, np.float32) for shape in ((3, 5), (1,), (2, 3, 4))]
    assert bool(all_finite(tuple(Tensor(array) for array in arrays)).asnumpy())
    for array in arrays:
        good, array.flat[-1] = array.flat[-1], value
        assert not bool(all_finite(tuple(Tensor(each) for each in arrays)).asnumpy())
        array.flat[-1] = good


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_values_of_both_infinities_do_not_cancel(pynative_mode: None) -> None:
    assert not bool(ON_CPU.all_finite((Tensor(np.array([np.inf, -np.inf], np.float32)),)).asnumpy())
