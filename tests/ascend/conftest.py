"""The simulated cards, made once. Tests are skipped, with the reason, where neither CANN nor stand-ins can be had."""

import pytest

from ascend.simulated import Ascend
from dvt.errors import DeviceError


@pytest.fixture(scope="session")
def ascend(tmp_path_factory: pytest.TempPathFactory) -> Ascend:
    try:
        return Ascend.make(tmp_path_factory.mktemp("ascend"))
    except DeviceError as error:
        pytest.skip(str(error))
