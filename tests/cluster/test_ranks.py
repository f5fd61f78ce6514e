"""One rank exchanges nothing; several are tested by whole jobs (tests/training/test_distributed.py)."""

import numpy as np

from dvt.cluster.ranks import ALONE


def test_one_rank_exchanges_nothing():
    values = np.array([1.0, 2.0**24])
    assert ALONE.sum(values).tolist() == values.tolist() and ALONE.sum(values).dtype == np.float32
    assert ALONE.gather(values).tolist() == [values.tolist()]
    assert ALONE.shard == (0, 1)
    ALONE.leave()
