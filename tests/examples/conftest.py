"""The quick start model as a bundle."""

from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def service_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ONNX files of checkpoints/quickstart.ckpt: three exits, 54 x 54 grey, named thresholds."""
    from dvt.deploy.bundle import export_checkpoint

    folder = tmp_path_factory.mktemp("service") / "bundle"
    export_checkpoint(str(ROOT / "checkpoints/quickstart.ckpt"), folder, ["ONNX"], "CPU")
    return folder


@pytest.fixture(scope="session")
def spread() -> np.ndarray:
    """Thresholds with which the test's photographs leave at all three exits."""
    return np.array([0.95, 0.9, 0.0])
