"""Gradients before the optimizer: all finite or not, and their mean; over ranks it is tested by whole jobs."""

import numpy as np
import pytest
from mindspore import Tensor

from dvt.training.gradients import finite_check, gradients_mean, mean_over_ranks


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


def test_one_rank_is_its_own_mean():
    x = Tensor(np.array([1.0, 2.0], np.float32))
    assert mean_over_ranks(1)(x).asnumpy().tolist() == [1.0, 2.0]
    assert len(gradients_mean([2, 2], 1)((x, x))) == 2
