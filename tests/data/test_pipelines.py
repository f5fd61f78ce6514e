"""The pipelines of `mindspore.dataset`: the same batches as without it, epochs, and errors that come through."""

from itertools import chain

import numpy as np
import pytest

from dvt.config import DataSection
from dvt.data import load_splits
from dvt.errors import DataError

ds = pytest.importorskip("mindspore.dataset")
pipelines = pytest.importorskip("dvt.data.pipelines")


@pytest.fixture
def splits(fashion_folder):
    return load_splits(DataSection(dataset="fashion_mnist_scale", path=str(fashion_folder)), 28, 0)


def rows(dataset, **keys):
    return [(i.copy(), l.copy()) for i, l in dataset.create_tuple_iterator(output_numpy=True, **keys)]  # noqa: E741


def same(batches, expected):
    batches, expected = list(batches), list(expected)
    return len(batches) == len(expected) and all(
        np.array_equal(a, b)
        for got, want in zip(batches, expected, strict=True)
        for a, b in zip(got, want, strict=True)
    )


@pytest.mark.parametrize("batch_size", [7, 60, 100])
def test_evaluation_shows_every_image_once_in_order(splits, batch_size):
    dataset = splits.pipeline("val", batch_size)
    batches = rows(dataset, num_epochs=1)
    images, labels = (np.concatenate(column) for column in zip(*batches, strict=True))
    expected_images, expected_labels = splits.batch("val", np.arange(60))
    np.testing.assert_array_equal(images, expected_images)
    np.testing.assert_array_equal(labels, expected_labels)
    assert images.dtype == np.float32 and labels.dtype == np.int32
    assert dataset.get_dataset_size() == len(batches) == splits.num_batches("val", batch_size)
    assert same(rows(dataset, num_epochs=1), batches)


def test_columns_and_tensors(splits):
    row = next(splits.pipeline("val", 16).create_dict_iterator(num_epochs=1))
    assert set(row) == {"image", "label"}
    assert row["image"].shape == (16, 1, 28, 28)
    images, labels = next(iter(splits.pipeline("val", 16)))
    np.testing.assert_array_equal(images.asnumpy(), row["image"].asnumpy())
    assert str(labels.dtype) == "Int32"


def test_every_pass_is_the_next_epoch(splits):
    expected = [list(splits.training(64).epoch(epoch)) for epoch in range(4)]
    dataset = splits.pipeline("train", 64, training=True)
    assert dataset.output_shapes() == [[64, 1, 28, 28], [64]]  # looking does not use up an epoch
    assert same(rows(dataset, num_epochs=1), expected[0])
    iterator = dataset.create_tuple_iterator(num_epochs=2, output_numpy=True)
    for epoch in (1, 2):
        assert same(((i.copy(), l.copy()) for i, l in iterator), expected[epoch])  # noqa: E741
    assert same(rows(dataset, num_epochs=1), expected[3])
    assert same(rows(splits.pipeline("train", 64, training=True, epoch=2), num_epochs=1), expected[2])


def test_an_abandoned_pass_does_no_harm(splits):
    dataset = splits.pipeline("train", 20, training=True)
    for _ in dataset.create_tuple_iterator(num_epochs=1):
        break
    assert same(rows(dataset, num_epochs=1), splits.training(20).epoch(1))


@pytest.mark.parametrize("training", [False, True])
def test_an_unreadable_image_is_named(image_folder, training):
    """As a DataError where the first batch shows it, else in what MindSpore raises."""
    (image_folder / "train" / "owl" / "d.bmp").write_bytes(b"BM but not really")
    splits = load_splits(DataSection(path=str(image_folder), workers=2), 16, 0)
    with pytest.raises(DataError, match=r"owl/d\.bmp cannot be read"):
        splits.pipeline("train", 18, training=training)
    with pytest.raises((DataError, RuntimeError), match=r"owl/d\.bmp cannot be read"):
        list(splits.pipeline("train", 6, training=training))


def test_model_style_training(splits):
    import mindspore as ms
    from mindspore import nn

    ms.set_context(mode=ms.PYNATIVE_MODE)
    network = nn.SequentialCell(nn.Flatten(), nn.Dense(28 * 28, 10))
    loss = nn.SoftmaxCrossEntropyWithLogits(sparse=True, reduction="mean")
    model = ms.Model(network, loss, nn.SGD(network.trainable_params(), 0.01), metrics={"loss": nn.Loss()})
    model.train(2, splits.pipeline("train", 64, training=True), dataset_sink_mode=False)
    result = model.eval(splits.pipeline("val", 64), dataset_sink_mode=False)
    assert np.isfinite(result["loss"])


def test_sunk_batches_go_on_from_epoch_to_epoch(splits, monkeypatch):
    """With a stand-in for the transfer to a device, which the CPU does not have."""
    sizes = []

    def data_sink(step, dataset):
        sizes.append(ds.config.get_prefetch_size())
        iterator = dataset.create_tuple_iterator(num_epochs=3, output_numpy=True)
        rows = chain.from_iterable(iterator for _ in range(3))
        return lambda: step(*next(rows))

    monkeypatch.setattr(pipelines.ms, "data_sink", data_sink)
    before = ds.config.get_prefetch_size()
    training = splits.training(64)
    run = pipelines.sunk_into(
        lambda *row: [array.copy() for array in row], pipelines.as_dataset(training.epoch, training.per_epoch, 2)
    )
    assert same([run() for _ in range(6)], [*training.epoch(2), *training.epoch(3)])
    assert sizes == [pipelines.PREFETCH_BATCHES] and ds.config.get_prefetch_size() == before


def test_a_fault_in_sunk_data_is_named(monkeypatch):
    def batches(epoch):
        yield np.zeros((2, 1), np.float32), np.zeros(2, np.int32)
        raise DataError("x.jpg is bad")

    def data_sink(step, dataset):
        rows = dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)
        return lambda: step(*next(rows))

    monkeypatch.setattr(pipelines.ms, "data_sink", data_sink)
    run = pipelines.sunk_into(lambda *row: row, pipelines.as_dataset(batches, 2, 0))
    with pytest.raises(DataError, match="x.jpg is bad"):
        for _ in range(2):
            run()
