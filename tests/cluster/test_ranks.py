"""One rank exchanges nothing; several are tested by whole jobs (tests/training/test_distributed.py)."""

import numpy as np
import pytest

from dvt.cluster.diagnosis import recognise
from dvt.cluster.ranks import ALONE, Ranks
from dvt.errors import DVTError


def test_one_rank_exchanges_nothing():
    values = np.array([1.0, 2.0**24])
    assert ALONE.sum(values).tolist() == values.tolist() and ALONE.sum(values).dtype == np.float32
    assert ALONE.gather(values).tolist() == [values.tolist()]
    assert ALONE.shard == (0, 1)
    ALONE.leave()


LOST = (
    "Launch kernel failed, name:Default/AllReduce-op0",
    "\n----\n- Kernel error:\n----\nLaunch kernel failed: Default/mean-Mean/AllReduce-op0\n\nIn file gradients.py:41",
    "EI0002: The wait execution of the Notify register times out",
)


@pytest.mark.parametrize("said", LOST)
def test_a_lost_rank_is_no_bug_of_this_package(said: str):
    expected = "rank 1 cannot go on: another rank, or the connection"
    with pytest.raises(DVTError, match=expected) as lost, Ranks(1, 2).losses_named():
        raise RuntimeError(said)
    assert recognise(f"error: {lost.value}").follows  # for the launcher it is no cause


@pytest.mark.parametrize(("ranks", "said"), [(ALONE, "EI0002: notify times out"), (Ranks(1, 2), "name:MatMul failed")])
def test_other_errors_stay_what_they_are(ranks: Ranks, said: str):
    with pytest.raises(RuntimeError, match=said), ranks.losses_named():
        raise RuntimeError(said)
