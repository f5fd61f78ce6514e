"""Bundles for the tests of the runners, and the photographs that they classify."""

from pathlib import Path

import bundles
import numpy as np
import pytest


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small three-exit model with both reuses in every format, whose images differ in confidence."""
    return bundles.write(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def photographs() -> np.ndarray:
    """200 model inputs for `bundle`: parts of real photographs."""
    return bundles.photographs(200)
