"""Ranks with other code, data or weights are found, and an error of one ends all; one rank agrees with itself."""

import re

import numpy as np
import pytest

from dvt.cluster.ranks import ALONE, Ranks
from dvt.errors import ConfigError, DataError
from dvt.training.agreement import (
    SharedDataError,
    errors_shared,
    ranks_that_differ,
    require_same_fingerprint,
    require_same_weights,
)


def test_ranks_with_one_fingerprint_may_train_together():
    require_same_fingerprint([7.0])
    require_same_fingerprint([123456.0] * 8)


def test_the_ranks_that_differ_are_listed():
    with pytest.raises(ConfigError, match=re.escape("rank 2 (000005), 5 (000006) runs other code")) as caught:
        require_same_fingerprint([7, 7, 5, 7, 7, 6])
    assert "other 4 of 6 ranks (000007)" in str(caught.value)


def test_of_two_that_differ_rank_0_is_taken_as_right():
    with pytest.raises(ConfigError, match=r"rank 1 \(000009\)"):
        require_same_fingerprint([8, 9])


def test_ranks_are_compared_with_rank_0():
    assert ranks_that_differ([7, 7, 7]) == []
    assert ranks_that_differ([7, 8, 7, 9]) == [1, 3]


def test_one_rank_agrees():
    require_same_weights({"w": np.zeros(3, np.float32)}, ALONE)


def test_an_error_is_raised_once_the_work_is_done():
    with errors_shared(ALONE):
        pass
    with pytest.raises(SharedDataError, match="^" + "x" * 3000 + "$"), errors_shared(ALONE):
        raise DataError("x" * 3000)
    with pytest.raises(ZeroDivisionError), errors_shared(ALONE):
        raise ZeroDivisionError


class RankOf3(Ranks):
    """Rank 0 of three, which sends zeros; the other two send `message`."""

    message: np.ndarray

    def gather(self, values: np.ndarray) -> np.ndarray:
        assert not values.any()
        return np.stack([values, self.message, self.message]).astype(np.float32)


class Noting(Ranks):
    """A single rank that notes what it sends."""

    def gather(self, values: np.ndarray) -> np.ndarray:
        RankOf3.message = values
        return super().gather(values)


@pytest.mark.parametrize("text", ["image file /a/Läufer.png cannot be read", "ä" * 700])
def test_the_error_of_another_rank_is_raised_here_too(text: str):
    """As far as 1000 bytes go; a character that is cut is left out."""
    with pytest.raises(SharedDataError), errors_shared(Noting()):
        raise DataError(text)
    with pytest.raises(SharedDataError) as raised, errors_shared(RankOf3(0, 3)):
        pass
    assert str(raised.value) == text[:500]


def test_a_rank_with_other_weights_is_named():
    class OtherWeights(Ranks):
        def gather(self, values: np.ndarray) -> np.ndarray:
            return np.stack([values, values + 1])

    with pytest.raises(ConfigError, match="rank 1 of 2 has other weights than rank 0"):
        require_same_weights({"w": np.zeros(3, np.float32)}, OtherWeights(0, 2))
