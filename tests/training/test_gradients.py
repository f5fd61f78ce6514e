"""Gradients before the optimizer: all finite or not. Their mean over ranks is tested by whole jobs."""

import numpy as np
import pytest
from mindspore import Tensor

from dvt.training.gradients import finite_check


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_value_that_is_not_finite_is_found(value: float, place: int):
    check = finite_check()
    arrays = [np.full(shape, 1e30, np.float32) for shape in ((3, 5), (1,), (2, 3, 4))]
    assert bool(check(tuple(Tensor(array) for array in arrays)).asnumpy())
    arrays[place].flat[-1] = value
    assert not bool(check(tuple(Tensor(array) for array in arrays)).asnumpy())


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_values_of_both_infinities_do_not_cancel():
    assert not bool(finite_check()((Tensor(np.array([np.inf, -np.inf], np.float32)),)).asnumpy())
