"""The validation images alone: those of `load_splits`, where no training image is there any more."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from dvt.config import DataSection
from dvt.data import load_splits, load_validation
from dvt.data.sources.record_writer import write_records
from dvt.errors import ConfigError


def photographs(image_folder: Path, folder: Path) -> list[str]:
    shutil.copytree(image_folder, folder)
    return ["train"]


def records(image_folder: Path, folder: Path) -> list[str]:
    write_records(image_folder, folder)
    return ["train.*"]


def cifar10(image_folder: Path, folder: Path) -> list[str]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        labels, pixels = rng.permutation(10)[:, None], rng.integers(0, 256, (10, 3 * 32 * 32))
        (folder / name).write_bytes(np.concatenate([labels, pixels], axis=1).astype(np.uint8).tobytes())
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij"))
    return ["data_batch_*"]


@pytest.mark.parametrize("made", [photographs, records, cifar10, "fashion_mnist", "fashion_mnist_scale"])
def test_training_images_need_not_be_there(made, image_folder: Path, fashion_folder: Path, tmp_path: Path):
    if isinstance(made, str):
        folder, training, keys = fashion_folder, ["train-*"], {"dataset": made}
    else:
        folder, keys = tmp_path / "data", {"dataset": "cifar10" if made is cifar10 else "image_folder"}
        training = made(image_folder, folder)
    keys |= {"path": str(folder), "val_images": 7}
    before = load_splits(DataSection(**keys), 28, 3)
    images, identity = before.batch("val", np.arange(7)), before.identity()
    for pattern in training:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    mean, std = (list(before.preprocessing[key]) for key in ("mean", "std"))
    found = load_validation(DataSection(**keys, mean=mean, std=std), 28)
    assert found.sizes == {"val": 7}
    assert found.class_names == before.class_names and found.preprocessing == before.preprocessing
    for one, other in zip(found.batch("val", np.arange(7)), images, strict=True):
        np.testing.assert_array_equal(one, other)
    assert found.identity() == {"val": identity["val"]}
    if made == "fashion_mnist_scale":  # they are computed from training images
        with pytest.raises(ConfigError, match=r"data.mean and data.std are not set"):
            load_validation(DataSection(**keys), 28)
