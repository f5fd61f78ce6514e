"""That ranks with other data or weights are found; one rank agrees with itself."""

import numpy as np

from dvt.training.agreement import ranks_that_differ, require_same_weights


def test_ranks_are_compared_with_rank_0():
    assert ranks_that_differ([7, 7, 7]) == []
    assert ranks_that_differ([7, 8, 7, 9]) == [1, 3]


def test_one_rank_agrees():
    require_same_weights({"w": np.zeros(3, np.float32)})
