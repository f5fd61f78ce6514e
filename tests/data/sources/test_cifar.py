"""CIFAR binary files, written here in the published layout."""

import numpy as np
import pytest
from PIL import Image

from dvt.config import DataSection
from dvt.data import load_splits
from dvt.data.sources.cifar import DEFAULTS
from dvt.errors import DataError


def write(file, images, *labels):
    """Records: one byte per label, then the pixels, channel by channel."""
    records = [*(label[:, None] for label in labels), images.transpose(0, 3, 1, 2).reshape(len(images), -1)]
    file.write_bytes(np.concatenate(records, axis=1).astype(np.uint8).tobytes())


@pytest.fixture
def cifar10(tmp_path):
    """Folder that holds cifar-10-batches-bin, 5 x 20 + 20 images; the test images and labels."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        images, labels = rng.integers(0, 256, (20, 32, 32, 3)), rng.permutation(np.arange(20) % 10)
        write(folder / name, images, labels)
    (folder / "batches.meta.txt").write_text("\n".join(f"class{i}" for i in range(10)) + "\n\n")
    return tmp_path, images.astype(np.uint8), labels


def load(path, dataset="cifar10", image_size=32, **keys):
    return load_splits(DataSection(dataset=dataset, path=str(path), **keys), image_size, 0)


def normalised(pixels):
    return ((pixels / 255 - np.array(DEFAULTS.mean)) / np.array(DEFAULTS.std)).transpose(2, 0, 1)


def test_images_labels_and_names(cifar10):
    parent, images, labels = cifar10
    for path in (parent, parent / "cifar-10-batches-bin"):
        splits = load(path)
        assert splits.class_names[3] == "class3" and len(splits.class_names) == 10
        assert splits.sizes == {"train": 100, "calibration": 100, "val": 20}
        assert splits.labels("val").tolist() == labels.tolist()
        got, _ = splits.batch("val", [7])
        np.testing.assert_allclose(got[0], normalised(images[7]), atol=1e-5)


def test_images_are_resized_as_pil_does(cifar10):
    parent, images, _ = cifar10
    got, _ = load(parent, image_size=64).batch("val", np.arange(20))
    expected = np.asarray(Image.fromarray(images[18]).resize((64, 64), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(got[18], normalised(expected), atol=1e-5)


def test_training_images_are_shifted(cifar10):
    splits = load(cifar10[0], image_size=48, workers=2)
    images, labels = next(splits.training(40).epoch(0))
    assert images.shape == (40, 3, 48, 48) and images.dtype == np.float32
    black = (images == normalised(np.zeros((1, 1, 3))).astype(np.float32)).all(axis=(1, 3)).sum(axis=1)  # rows
    assert black.max() == 6 and black.min() == 0  # 48 // 8


def test_cifar100_uses_the_fine_labels(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("train.bin", 200), ("test.bin", 100)):
        write(tmp_path / name, rng.integers(0, 256, (count, 32, 32, 3)), np.zeros(count), np.arange(count) % 100)
    (tmp_path / "fine_label_names.txt").write_text("\n".join(f"fine{i}" for i in range(100)))
    splits = load(tmp_path, "cifar100")
    assert splits.class_names[99] == "fine99"
    np.testing.assert_array_equal(splits.labels("val"), np.arange(100))


def test_faults_name_the_file(cifar10):
    folder = cifar10[0] / "cifar-10-batches-bin"
    with pytest.raises(DataError, match=r"data\.path is not set"):
        load_splits(DataSection(dataset="cifar10"), 32, 0)
    with pytest.raises(DataError, match="nowhere is not a folder"):
        load(folder / "nowhere")
    with pytest.raises(DataError, match=r"train\.bin.*cifar-100-binary"):
        load(folder, "cifar100")
    meta = folder / "batches.meta.txt"
    meta.write_text("cat\ndog\n")
    with pytest.raises(DataError, match=r"batches\.meta\.txt lists 2 class names; 10"):
        load(folder)
    meta.write_text("\n".join("abcdefghij"))
    test = folder / "test_batch.bin"
    content = test.read_bytes()
    test.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"test_batch\.bin has 61459 bytes.*3073"):
        load(folder)
    test.write_bytes(b"\x0b" + content[1:])
    with pytest.raises(DataError, match=r"test_batch\.bin holds label 11"):
        load(folder)
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"lacks data_batch_3\.bin"):
        load(folder)
