"""Fashion-MNIST: IDX files, where they are looked for, and how they are downloaded."""

import gzip
import hashlib
import http.server
import shutil
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from data_files import write_idx

from dvt.config import DataSection
from dvt.data import load_splits
from dvt.data.sources import fashion_mnist
from dvt.errors import DataError

REAL = fashion_mnist.DEBIAN_FOLDER
needs_real_files = pytest.mark.skipif(
    bool(fashion_mnist.missing_files(REAL)), reason="package dataset-fashion-mnist is not installed"
)


def load(folder, image_size=28, **keys):
    return load_splits(DataSection(dataset="fashion_mnist", path=str(folder), **keys), image_size, 0)


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No Fashion-MNIST in the usual places."""
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr(fashion_mnist, "CACHE_FOLDER", tmp_path / "cache")
    return tmp_path


def test_gzip_and_plain_files(fashion_folder):
    splits = load(fashion_folder)
    assert (
        splits.preprocessing["in_channels"] == 1
        and len(splits.class_names) == 10
        and splits.class_names[9] == "Ankle boot"
    )
    assert splits.sizes == {"train": 200, "calibration": 200, "val": 60}
    np.testing.assert_array_equal(splits.labels("val"), np.arange(60) * 7 % 10)
    images, _ = splits.batch("val", np.arange(60))
    pixels = fashion_mnist.read_idx(fashion_folder / "t10k-images-idx3-ubyte.gz")
    np.testing.assert_allclose(images[:, 0], (pixels / 255 - 0.2860) / 0.3530, atol=1e-5)
    assert load(fashion_folder, image_size=56).batch("val", [0])[0].shape == (1, 1, 56, 56)
    assert next(load(fashion_folder).training(50).epoch(0))[0].shape == (50, 1, 28, 28)


@needs_real_files
def test_real_files_are_those_of_the_checksums():
    train, _ = fashion_mnist.read_part(REAL, "train")
    val, labels = fashion_mnist.read_part(REAL, "val")
    assert train.shape == (60000, 28, 28) and val.shape == (10000, 28, 28)
    assert np.bincount(labels).tolist() == [1000] * 10
    assert abs(train.mean() / 255 - fashion_mnist.DEFAULTS.mean[0]) < 1e-4
    assert abs(train.std() / 255 - fashion_mnist.DEFAULTS.std[0]) < 1e-4
    for name, digest in fashion_mnist.SHA256.items():
        content = gzip.decompress((REAL / f"{name}.gz").read_bytes())
        assert hashlib.sha256(content).hexdigest() == digest


def test_damaged_files_are_named(fashion_folder):
    images = fashion_folder / "t10k-images-idx3-ubyte.gz"
    content = images.read_bytes()
    images.write_bytes(content[:-50])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz cannot be read"):
        load(fashion_folder)
    images.write_bytes(gzip.compress(gzip.decompress(content)[:-50]))
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz is cut short"):
        load(fashion_folder)
    images.write_bytes(gzip.compress(b"something else"))
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz is not an IDX file"):
        load(fashion_folder)
    write_idx(images, np.zeros((60, 14, 14)))
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz holds an array of shape \(60, 14, 14\)"):
        load(fashion_folder)
    images.write_bytes(content)
    labels = fashion_folder / "t10k-labels-idx1-ubyte"
    write_idx(labels, np.zeros(59))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte holds labels of shape \(59,\) for 60 images"):
        load(fashion_folder)
    write_idx(labels, np.full(60, 10))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte holds label 10"):
        load(fashion_folder)


@pytest.mark.parametrize(
    ("shape", "values", "message"),
    [
        ((60, 28, 28), 200_000_000, "is longer than it should be: its header states 47,040 values"),
        ((60, 28, 28), 47_039, "is cut short: its header states 47,040 values"),
        ((2**31 - 1, 28, 28), 100, "its header states an array of shape"),
        ((-1, 28, 28), 100, "its header states an array of shape"),
        ((60, 28), 100_000_000, "is longer than it should be"),
    ],
)
def test_no_more_is_decompressed_than_the_header_states(tmp_path, shape, values, message):
    file = tmp_path / "x.gz"
    with gzip.open(file, "wb", compresslevel=1) as content:
        content.write(bytes([0, 0, 8, len(shape)]) + np.array(shape, ">i4").tobytes())
        for start in range(0, values, 1_000_000):
            content.write(bytes(min(1_000_000, values - start)))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=rf"x\.gz {message}|x\.gz is no file of Fashion-MNIST: {message}"):
            fashion_mnist.read_idx(file)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_without_a_folder_debian_then_cache(fashion_folder, nowhere):
    fashion_folder.rename(nowhere / "cache")
    assert fashion_mnist.find_files(None) == nowhere / "cache"
    shutil.copytree(nowhere / "cache", nowhere / "debian")
    assert fashion_mnist.find_files(None) == nowhere / "debian"


@pytest.mark.parametrize("dataset", ["fashion_mnist", "fashion_mnist_scale"])
def test_a_given_folder_is_used_or_refused(dataset, fashion_folder, nowhere):
    """Never another one in its place: what was trained on would not be what was asked for."""
    assert fashion_mnist.find_files(str(fashion_folder)) == fashion_folder
    shutil.copytree(fashion_folder, nowhere / "cache")
    (nowhere / "file").touch()
    (nowhere / "empty").mkdir()
    (fashion_folder / "t10k-labels-idx1-ubyte").unlink()
    for name, fault in (
        ("nowhere", "nowhere is not a folder"),
        ("file", "file is not a folder"),
        ("empty", r"empty lacks train-images-idx3-ubyte\[.gz\]"),
        (fashion_folder.name, r"lacks t10k-labels-idx1-ubyte\[.gz\]"),
    ):
        with pytest.raises(DataError, match=f"data.path .*{fault}; give the folder of the four files .* leave it out"):
            load_splits(DataSection(dataset=dataset, path=str(nowhere / name)), 28, 0)


def test_one_sentence_tells_what_was_tried(nowhere, monkeypatch):
    urls = ("http://127.0.0.1:9/a/", "http://127.0.0.1:9/b/")
    monkeypatch.setattr(fashion_mnist.fetch_fashion_mnist, "__defaults__", ((), urls))
    (nowhere / "cache").mkdir()
    with pytest.raises(DataError) as error:
        load_splits(DataSection(dataset="fashion_mnist"), 28, 0)
    for words in ("/cache;", "/debian;", *urls, "data.path", "apt-get install dataset-fashion-mnist"):
        assert words in str(error.value)


class TestDownload:
    """Downloads from a server on this machine that holds small files in the place of the real ones."""

    @pytest.fixture
    def server(self, fashion_folder, nowhere, monkeypatch):
        digests = {}
        for name in fashion_mnist.SHA256:
            file = fashion_folder / name
            if file.is_file():
                file.with_name(f"{name}.gz").write_bytes(gzip.compress(file.read_bytes()))
            digests[name] = hashlib.sha256(gzip.decompress((fashion_folder / f"{name}.gz").read_bytes())).hexdigest()
        monkeypatch.setattr(fashion_mnist, "SHA256", digests)

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args):
                super().__init__(*args, directory=str(fashion_folder))

            def log_message(self, *args):
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()

    def test_files_arrive_in_the_cache(self, server, nowhere):
        broken = "http://127.0.0.1:9/"
        cache = fashion_mnist.fetch_fashion_mnist(nowhere / "cache", base_urls=(broken, server))
        assert sorted(file.name for file in cache.iterdir()) == sorted(f"{name}.gz" for name in fashion_mnist.SHA256)
        assert len(fashion_mnist.read_part(cache, "train")[0]) == 200
        assert fashion_mnist.find_files(None) == cache

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (gzip.compress(b"other content"), "wrong SHA-256"),
            (gzip.compress(bytes(5000))[:-9], "end-of-stream"),
            (b"<html>Not Found</html>", "gzip"),
            (gzip.compress(bytes(60_000_000), 1), "wrong SHA-256"),
            (None, "404"),
        ],
        ids=["other content", "cut short", "no gzip", "unpacks to more than the files hold", "missing"],
    )
    def test_wrong_content_is_refused(self, server, fashion_folder, nowhere, content, message):
        file = fashion_folder / "train-labels-idx1-ubyte.gz"
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(DataError, match=message) as error:
            fashion_mnist.fetch_fashion_mnist(nowhere / "cache", base_urls=(server,))
        assert "train-labels-idx1-ubyte.gz" in str(error.value)
        assert [file.name for file in (nowhere / "cache").iterdir()] == ["train-images-idx3-ubyte.gz"]

    def test_a_folder_that_cannot_be_written(self, server, nowhere):
        (nowhere / "cache").write_text("a file in its place")
        with pytest.raises(DataError, match="cache"):
            fashion_mnist.fetch_fashion_mnist(nowhere / "cache", base_urls=(server,))


def test_without_a_home_folder_the_path_must_be_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container whose user /etc/passwd does not know."""
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path)
    monkeypatch.setattr(fashion_mnist, "CACHE_FOLDER", Path("~nobody-of-that-name/.cache"))
    with pytest.raises(DataError, match="no home folder is known"):
        fashion_mnist.find_files(None)
