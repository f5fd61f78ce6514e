"""That ranks with other data or weights are found, and an error of one ends all; one rank agrees with itself."""

import numpy as np
import pytest

from dvt import device
from dvt.errors import DataError
from dvt.training.agreement import SharedDataError, errors_shared, ranks_that_differ, require_same_weights


def test_ranks_are_compared_with_rank_0():
    assert ranks_that_differ([7, 7, 7]) == []
    assert ranks_that_differ([7, 8, 7, 9]) == [1, 3]


def test_one_rank_agrees():
    require_same_weights({"w": np.zeros(3, np.float32)})


def test_an_error_is_raised_once_the_work_is_done():
    with errors_shared():
        pass
    with pytest.raises(SharedDataError, match="^" + "x" * 3000 + "$"), errors_shared():
        raise DataError("x" * 3000)
    with pytest.raises(ZeroDivisionError), errors_shared():
        raise ZeroDivisionError


@pytest.mark.parametrize("text", ["image file /a/Läufer.png cannot be read", "ä" * 700])
def test_the_error_of_another_rank_is_raised_here_too(text: str, monkeypatch: pytest.MonkeyPatch):
    """As far as 1000 bytes go; a character that is cut is left out."""
    sent: list[np.ndarray] = []
    monkeypatch.setattr(device, "gather_over_ranks", lambda values: sent.append(values) or values[None])
    with pytest.raises(SharedDataError), errors_shared():
        raise DataError(text)
    rows = np.stack([np.zeros(1000), *sent, *sent]).astype(np.float32)
    monkeypatch.setattr(device, "gather_over_ranks", lambda values: rows)
    with pytest.raises(SharedDataError) as raised, errors_shared():
        pass
    assert str(raised.value) == text[:500]
