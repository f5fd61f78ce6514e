"""Ranks with other code, data or weights are found, and an error of one ends all; one rank agrees with itself."""

import re

import numpy as np
import pytest

from dvt.cluster.ranks import ALONE, Ranks
from dvt.errors import ConfigError, DataError
from dvt.training.agreement import (
    SharedDataError,
    errors_shared,
    require_same_weights,
)


@pytest.mark.parametrize(
    ("differences", "listed"),
    [
        ([0], None),
        ([0] * 8, None),
        ([0, 0, 1, 0, 0, 2], "rank 2 (......), 5 (......) has other weights than the other 4 of 6 ranks (......)"),
        ([0, 1], "rank 1 (......) has other weights than the other 1 of 2 ranks"),
        ([1, 0, 0], "rank 0 (......) has other weights than the other 2 of 3 ranks"),
    ],
)
def test_the_ranks_that_differ_from_most_are_listed(differences: list[int], listed: str | None):
    class Others(Ranks):
        def gather(self, values: np.ndarray) -> np.ndarray:
            return np.stack([values + each for each in differences])

    weights, ranks = {"w": np.zeros(3, np.float32)}, Others(0, len(differences))
    if listed is None:
        require_same_weights(weights, ranks)
        return
    with pytest.raises(ConfigError, match=re.escape(listed).replace(re.escape("......"), "[0-9a-f]{6}")):
        require_same_weights(weights, ranks)


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
