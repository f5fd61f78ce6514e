"""`data.on_bad_image`: what a run does with images that cannot be read, through data, training and evaluation."""

import csv
from pathlib import Path

import numpy as np
import pytest

from dvt.checkpoint import read_checkpoint
from dvt.config import AugmentSection, DataSection, RunConfig
from dvt.config.files import config_from_dict
from dvt.data import load_splits
from dvt.data.augment.draws import stream_key
from dvt.data.bad_images import LEFT_OUT
from dvt.data.sources.record_writer import write_records
from dvt.errors import ConfigError, DataError
from reliability.pictures import TINY_MODEL, empty, jpeg_cut_short, make_folder, text

AUGMENT = AugmentSection(policy="rand-m9-mstd0.5-inc1", erasing=0.5, mixup=0.8)
BAD = {"blue/02.png": empty, "blue/11.png": jpeg_cut_short, "red/05.png": text}
"""Training images that are spoilt."""
BAD_POSITIONS = [2, 11, 17]  # blue comes first


@pytest.fixture
def folder(tmp_path):
    root = make_folder(tmp_path / "photos")
    for name, spoil in BAD.items():
        spoil(root / "train" / name)
    return root


def load(folder: Path, workers: int = 1, augment: AugmentSection | None = None, **keys):
    keys = {"on_bad_image": "skip", "max_bad_images": 3.0} | keys
    return load_splits(DataSection(path=str(folder), workers=workers, **keys), 24, 0, augment, label_smoothing=0.1)


def batches(splits, size=4, epoch=1, shard=(0, 1), skip=0):
    return list(splits.training(size, shard).epoch(epoch, skip))


def assert_same(got, expected):
    assert len(got) == len(expected)
    for batch, same in zip(got, expected, strict=True):
        for array, wanted in zip(batch, same, strict=True):
            np.testing.assert_array_equal(array, wanted)


def shown_instead(positions: np.ndarray) -> np.ndarray:
    """The rule, written down a second time: of each place in an order, which position is shown."""
    shown = []
    for place in range(len(positions)):
        while positions[place % len(positions)] in BAD_POSITIONS:
            place += 1
        shown.append(positions[place % len(positions)])
    return np.array(shown)


def test_training_shows_the_next_readable_image_of_the_order(folder):
    splits = load(folder)
    made = batches(splits)
    # Purpose 3 of `dvt.data.augment.draws` is the order, and this is epoch 1.
    order = np.random.default_rng(stream_key(0, 3, 1)).permutation(24)
    shown = shown_instead(order)
    assert (shown != order).sum() == len(BAD)
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in made]), shown // 12)
    images = np.concatenate([images for images, _ in made])
    assert images.shape == (24, 3, 24, 24)
    for place in np.flatnonzero(shown != order):  # as the other image itself looks in this epoch
        np.testing.assert_array_equal(images[place], images[order.tolist().index(shown[place])])
    assert splits.bad_images.replaced == {1: 3}


@pytest.mark.parametrize("augment", [None, AUGMENT], ids=["plain", "mixed"])
def test_replacements_do_not_depend_on_workers_or_the_place_of_a_resumption(folder, augment):
    expected = batches(load(folder, augment=augment))
    assert_same(batches(load(folder, workers=3, augment=augment)), expected)
    assert_same(batches(load(folder, workers=3, augment=augment), skip=2), expected[2:])
    splits = load(folder, augment=augment)
    batches(splits, epoch=0)  # nor on what was read before
    assert_same(batches(splits), expected)


@pytest.mark.slow
def test_replacements_do_not_depend_on_processes(folder):
    expected = batches(load(folder, augment=AUGMENT))
    assert_same(batches(load(folder, workers=2, augment=AUGMENT, worker_type="process")), expected)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_together_are_shown_what_one_process_is(folder, ranks):
    """Batches of the same shape on all ranks, whichever of them meets the bad images."""
    whole = batches(load(folder), size=4 * ranks)
    shards = [batches(load(folder), shard=(rank, ranks)) for rank in range(ranks)]
    assert {images.shape for shard in shards for images, _ in shard} == {(4, 3, 24, 24)}
    together = [tuple(np.concatenate(parts) for parts in zip(*rows, strict=True)) for rows in zip(*shards, strict=True)]
    assert_same(together, whole)


def test_evaluation_leaves_them_out_at_their_place(folder):
    splits, repaired = load(folder), load(make_folder(folder.parent / "repaired"))
    for ranks in (1, 2):
        rows = [list(splits.batches("train", 5, shard=(rank, ranks))) for rank in range(ranks)]
        images, labels = (np.concatenate(column) for column in zip(*(b for part in rows for b in part), strict=True))
        assert len(labels) == 24 and np.flatnonzero(labels == LEFT_OUT).tolist() == BAD_POSITIONS
        good = labels != LEFT_OUT
        expected, expected_labels = repaired.batch("train", np.flatnonzero(good))
        np.testing.assert_array_equal(images[good], expected)
        np.testing.assert_array_equal(labels[good], expected_labels)
    less = splits.without("train", BAD_POSITIONS)
    assert less.sizes["train"] == 21 and splits.sizes["train"] == 24
    np.testing.assert_array_equal(less.batch("train", np.arange(21))[0], expected)


def test_record_files_whose_images_are_bad(tmp_path):
    """Damaged after they were written: the writer refuses what cannot be decoded."""
    root = make_folder(tmp_path / "photos")
    write_records(root, tmp_path / "records", shards=1)
    splits = load(tmp_path / "records")
    record = splits.views["train"].images.items[2]
    with open(record.file, "r+b") as file:
        file.seek(record.offset)
        file.write(b"\0" * 16)
    assert np.concatenate([labels for _, labels in splits.batches("train", 6)]).tolist().index(LEFT_OUT) == 2
    assert len(batches(splits)) == 6 and splits.bad_images.replaced == {1: 1}


def test_each_file_is_logged_once_with_its_reason(folder, caplog):
    splits = load(folder)
    for epoch in range(3):
        batches(splits, epoch=epoch)
    assert len(caplog.messages) == 3
    for number, message in enumerate(caplog.messages, start=1):
        assert message.startswith(f"bad image {number} of train, skipped: image file ")
    for name in BAD:
        assert sum(f"train/{name} cannot be read: " in message for message in caplog.messages) == 1


@pytest.mark.parametrize(("allowed", "limit"), [(1.0, 1), (2.0, 2), (0.09, 2), (0.01, 1)])
def test_more_bad_images_than_allowed_end_the_run(folder, allowed, limit):
    splits = load(folder, max_bad_images=allowed)
    assert splits.bad_images.limit("train") == limit
    with pytest.raises(DataError) as error:
        batches(splits)
    assert f"{limit + 1} of the 24 images of train cannot be read" in str(error.value)
    assert f"more than the {limit} that data.max_bad_images {allowed:g} allows" in str(error.value)
    assert "replace or remove them, or raise the limit" in str(error.value)
    assert len(batches(load(folder, max_bad_images=0.125))) == 6  # exactly as many


def test_a_data_set_without_a_readable_image_ends_the_run(folder):
    for file in folder.glob("train/*/*"):
        empty(file)
    with pytest.raises(DataError, match="24 of the 24 images of train cannot be read"):
        batches(load(folder, max_bad_images=1000.0))


def test_a_file_that_goes_away_in_mid_run_is_skipped_from_then_on(folder):
    splits, begun_later = (load(folder, max_bad_images=4.0) for _ in range(2))
    batches(splits, epoch=0)
    (folder / "train" / "red" / "00.png").unlink()
    assert_same(batches(splits), batches(begun_later))
    assert splits.bad_images.replaced == {0: 3, 1: 4}


@pytest.mark.parametrize("value", [0.0, -1.0, 1.5, float("inf"), float("nan")])
def test_limits_that_mean_nothing_are_refused(value):
    with pytest.raises(ConfigError, match=r"data\.max_bad_images is "):
        DataSection(max_bad_images=value)


def config(folder: Path, output: Path, skip: bool, resume: bool = False) -> RunConfig:
    policy = {"on_bad_image": "skip", "max_bad_images": 2.0} if skip else {}
    return config_from_dict(
        {
            "model": TINY_MODEL,
            "data": {"path": str(folder), "calibration_images": 8, "workers": 1, **policy},
            "train": {"epochs": 2, "batch_size": 2, "warmup_epochs": 0, "ema_decay": 0.5},
            "eval": {"batch_size": 5, "throughput_images": 5},
            "output": str(output),
            "resume": resume,
            "device_target": "CPU",
        }
    )


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory) -> Path:
    """One training image is bad, the last of the first epoch, and one to validate on."""
    root = make_folder(tmp_path_factory.mktemp("spoilt"))
    files = sorted(root.glob("train/*/*"))
    text(files[np.random.default_rng(stream_key(0, 3, 0)).permutation(24)[-1]])
    jpeg_cut_short(root / "val" / "red" / "04.png")
    return root


@pytest.fixture(scope="module")
def run(spoilt, tmp_path_factory) -> Path:
    """A run that skipped them."""
    pytest.importorskip("mindspore")
    from dvt.training.run import train

    return train(config(spoilt, tmp_path_factory.mktemp("skipping") / "run", skip=True)).parent


def test_a_run_that_skips_says_what_and_how_many(run):
    log = (run / "train.log").read_text()
    for epoch in (1, 2):
        assert f"epoch {epoch}/2: 1 of the training images shown could not be read; other images" in log
    assert log.count("1 of 12 images of val cannot be read; accuracy is over the other 11") == 2
    assert log.count("bad image 1 of train, skipped: image file ") == 1
    assert log.count("val/red/04.png cannot be read: image file is truncated") == 1
    with (run / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            right = float(row["val_accuracy_exit_1"]) * 11 / 100
            assert right == pytest.approx(round(right))


@pytest.mark.slow
def test_a_run_that_a_bad_image_ended_goes_on_with_skip_as_if_unbroken(spoilt, run, tmp_path):
    from dvt.training.run import train

    with pytest.raises(DataError, match=r"(?s)cannot be read.*--resume goes on"):
        train(config(spoilt, tmp_path / "run", skip=False))
    train(config(spoilt, tmp_path / "run", skip=True, resume=True))
    expected = read_checkpoint(run / "state.ckpt").weights
    for name, value in read_checkpoint(tmp_path / "run" / "state.ckpt").weights.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_evaluation_is_over_the_others_and_says_so(spoilt, run, tmp_path, capsys):
    from dvt.evaluation.run import evaluate_checkpoint

    weights, report = str(run / "last.ckpt"), tmp_path / "report"
    results = evaluate_checkpoint(weights, 2, config(spoilt, tmp_path, skip=True), str(report))
    assert results.num_images == 11 and results.images_left_out == {"val": 1}
    assert "1 images of val could not be read and are left out" in capsys.readouterr().out
    assert "unreadable images of val" in (report / "report.html").read_text()
    with np.load(report / "predictions.npz") as predictions:
        assert predictions["labels"].tolist() == [0] * 6 + [1] * 5
    with pytest.raises(DataError, match=r"red/04\.png cannot be read"):
        evaluate_checkpoint(weights, 2, config(spoilt, tmp_path, skip=False), str(tmp_path / "fails"))
