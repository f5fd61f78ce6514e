"""Damaged model files for minutes: the converter both ways and the manifest reader neither crash, hang nor eat memory.

python -m pytest -m soak tests/fuzz/test_fuzz_model_files.py --fuzz-seconds 60     # per target; 600 by default
"""

import io
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dvt.checkpoint import save_checkpoint
from dvt.checkpoint.pytorch import convert_from_pytorch, convert_to_pytorch
from dvt.convert import parameter_shapes, reference_shapes
from dvt.deploy.manifest import GraphFile, GraphSet, Manifest, Setting, exit_values, read_manifest, write_manifest
from dvt.errors import BundleError, CheckpointError
from dvt.models.variants import model_config
from fuzz.harness import run_fuzz

CONFIG = model_config(
    "dvt_deit_small", image_size=8, grid_sizes=(2, 4), embed_dim=4, depth=1, num_heads=1, mlp_hidden=4, num_classes=2
)
TRAILER = 17  # MindSpore's checksum: a mark and ten bytes
Target = Callable[[bytes], None]


def arrays(shapes: dict) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def pytorch_to_ckpt(folder: Path) -> tuple[Target, list[bytes]]:
    torch = pytest.importorskip("torch")
    content = {
        "model_state_dict": {name: torch.from_numpy(value) for name, value in arrays(reference_shapes(CONFIG)).items()},
        "dvt_model": CONFIG.to_dict(),
        "flops": [1.0, np.float64(2.0)],
        "dynamic_threshold": torch.zeros(4, 2),
    }
    corpus = []
    for zipped in (True, False):
        stream = io.BytesIO()
        torch.save(content, stream, _use_new_zipfile_serialization=zipped)
        corpus.append(stream.getvalue())

    def convert(data: bytes) -> None:
        (folder / "in.pth").write_bytes(data)
        convert_from_pytorch(folder / "in.pth", folder / "out.ckpt", force=True)

    return convert, corpus


def ckpt_to_pytorch(folder: Path) -> tuple[Target, list[bytes]]:
    """Every case is sealed with a right checksum: a wrong one is refused before anything is read."""
    pytest.importorskip("torch")
    results = {"flops": [1.0, 2.0], "dynamic_threshold": [[0.5, 0.0]]}
    save_checkpoint(folder / "in.ckpt", arrays(parameter_shapes(CONFIG)), {"model": CONFIG, "results": results})
    corpus = [(folder / "in.ckpt").read_bytes()[:-TRAILER]]

    def convert(data: bytes) -> None:
        (folder / "in.ckpt").write_bytes(data + b"crc_num" + zlib.crc32(data).to_bytes(10, "big"))
        convert_to_pytorch(folder / "in.ckpt", folder / "out.pth", force=True)

    return convert, corpus


def manifest(folder: Path) -> tuple[Target, list[bytes]]:
    files = tuple(GraphFile(f"exit_{k}.onnx", 9, "0" * 64, *exit_values(CONFIG, k)) for k in range(2))
    thresholds = {"recommended": Setting((0.7, -1e8), 0.2, 81.5)}
    graphs = {"ONNX": GraphSet("float32", files)}
    write_manifest(folder, Manifest(CONFIG, ["a", "ü"], None, [0.1, 0.3], [1, 8], thresholds, graphs, {"dvt": "0"}))
    path = folder / "manifest.json"
    corpus = [path.read_bytes()]

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_manifest(folder)

    return read, corpus


def check(make: Callable[[Path], tuple[Target, list[bytes]]], folder: Path, seconds: float, seed: int = 0) -> None:
    target, corpus = make(folder)
    outcome = run_fuzz(target, corpus, (CheckpointError, BundleError), seconds, seed)
    print(outcome)
    assert outcome.failures == [], outcome
    assert outcome.refused > 0


TARGETS = pytest.mark.parametrize("make", [pytorch_to_ckpt, ckpt_to_pytorch, manifest])


@TARGETS
def test_damaged_files_for_a_moment(make: Callable, tmp_path: Path):
    check(make, tmp_path, 1.0)


@pytest.mark.soak
@TARGETS
def test_damaged_files_for_minutes(make: Callable, tmp_path: Path, request: pytest.FixtureRequest):
    option = request.config.getoption
    check(make, tmp_path, option("--fuzz-seconds", 600.0), option("--fuzz-seed", 0))
