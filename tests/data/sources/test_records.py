"""MindRecord files: the same batches as from the image folder, MindSpore's own reader agrees, faults are named."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_files import write_image

from dvt.cli.main import main
from dvt.config import AugmentSection, DataSection
from dvt.data import load_splits
from dvt.data.sources import record_writer
from dvt.data.sources.record_writer import write_records
from dvt.data.sources.records import RecordSet
from dvt.errors import ConfigError, DataError

pytest.importorskip("mindspore.mindrecord")

AUGMENT = AugmentSection(policy="rand-m9-mstd0.5-inc1", interpolation="random", erasing=0.5, mixup=0.8)


def load(folder, **keys):
    return load_splits(DataSection(path=str(folder), **keys), 16, 0, AUGMENT)


@pytest.fixture
def records(image_folder, tmp_path):
    """Record files of `image_folder`, three per part."""
    assert write_records(image_folder, tmp_path / "records", shards=3) == {"train": 18, "val": 9}
    return tmp_path / "records"


def arrays(splits):
    batches = [*splits.training(5).epoch(2), *splits.batches("val", 4)]
    return [array.copy() for batch in batches for array in batch]


def test_batches_are_those_of_the_folder(image_folder, records):
    folder, stored = load(image_folder), load(records, workers=3)
    assert stored.class_names == folder.class_names and stored.sizes == folder.sizes
    assert stored.preprocessing == folder.preprocessing
    assert stored.identity() == folder.identity()  # a run may go on with either
    for got, expected in zip(arrays(stored), arrays(folder), strict=True):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(
        stored.batch("calibration", np.arange(18))[0], folder.batch("calibration", np.arange(18))[0]
    )


@pytest.mark.slow
def test_batches_from_processes_are_those_of_the_folder(image_folder, records):
    expected = arrays(load(image_folder, workers=1))
    for got, same in zip(arrays(load(records, worker_type="process", workers=2)), expected, strict=True):
        np.testing.assert_array_equal(got, same)


def test_the_reader_of_mindspore_finds_the_same(image_folder, tmp_path):
    """Over several pages of 32 MiB, too."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "owl"):
        for i in range(10):  # a file may carry anything after the image
            with open(image_folder / "train" / name / f"large{i}.bmp", "wb") as file:
                file.write((image_folder / "train" / name / "d.bmp").read_bytes() + rng.bytes(3 * 2**20 + 77 * i))
    write_records(image_folder, tmp_path / "records", shards=2, parts=["train"])
    import mindspore.dataset as ds

    found = RecordSet.open(tmp_path / "records", "train")
    assert len(found) == 48
    columns = ["index", "label", "file_name", "image"]
    dataset = ds.MindDataset(found.files, columns_list=columns, shuffle=False)
    seen = set()
    for index, label, name, image in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True):
        record = found[int(index)]
        assert record.read() == image.tobytes()
        assert record.name == str(name) and found.labels[int(index)] == label
        assert record.read() == (image_folder / "train" / str(name)).read_bytes()
        seen.add(int(index))
    assert seen == set(range(48))


def test_one_file_per_part_and_one_part_at_a_time(image_folder, tmp_path):
    target = tmp_path / "records"
    write_records(image_folder, target, shards=1, parts=["val"])
    assert sorted(file.name for file in target.iterdir()) == [
        "val.mindrecord0",
        "val.mindrecord0.db",
        "val.records.json",
    ]
    with pytest.raises(DataError, match=r"no complete records of train: train\.records\.json is missing"):
        load(target)
    write_records(image_folder, target, shards=50, parts=["train"])  # no more files than images
    assert len(list(target.glob("train.mindrecord*.db"))) == 18
    assert load(target).sizes["train"] == 18
    with pytest.raises(DataError, match="holds the records of val already"):
        write_records(image_folder, target, parts=["val"])


def test_the_command(image_folder, tmp_path, capsys):
    assert main(["records", str(image_folder), str(tmp_path / "records"), "--shards", "2", "--part", "val"]) == 0
    assert "val: 9 images" in capsys.readouterr().out
    assert main(["records", str(tmp_path / "nowhere"), str(tmp_path / "other")]) == 2
    assert "nowhere is not a folder" in capsys.readouterr().err
    for wrong in (["--shards", "0"], ["--part", "test"]):
        assert main(["records", str(image_folder), str(tmp_path / "other"), *wrong]) == 2
    with pytest.raises(ConfigError, match="1 and 1000"):
        write_records(image_folder, tmp_path / "other", shards=1001)
    assert not (tmp_path / "other").exists()


def test_the_script_explains_itself():
    script = Path(__file__).resolve().parents[3] / "scripts" / "make_mindrecord.py"
    run = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and "--shards" in run.stdout and "data_path" in run.stdout


def test_a_bad_image_is_refused(image_folder, tmp_path):
    (image_folder / "train" / "owl" / "b.PNG").write_text("no image")
    with pytest.raises(DataError, match=r"owl/b\.PNG cannot be read"):
        write_records(image_folder, tmp_path / "records")
    assert not list((tmp_path / "records").iterdir())


def cut_short(*files):
    for file in files:
        file.write_bytes(file.read_bytes()[:40])


def test_bad_images_are_left_out_within_the_limit(image_folder, tmp_path, caplog):
    """What is left is what a folder without them gives, but for the numbers of the images."""
    bad = [sorted((image_folder / "train" / name).iterdir())[1] for name in ("cat", "owl")]
    cut_short(*bad)
    policy = DataSection(on_bad_image="skip", max_bad_images=2.0)
    assert write_records(image_folder, tmp_path / "skipped", 3, data=policy) == {"train": 16, "val": 9}
    assert [message.split(": ")[0] for message in caplog.messages] == [
        "bad image 1 of train, skipped",
        "bad image 2 of train, skipped",
    ]
    assert all(file.name in message for file, message in zip(bad, caplog.messages, strict=True))
    for limit in (0.06, 1.0):
        with pytest.raises(DataError, match="2 of the 18 images of train cannot be read, more than the 1 that"):
            write_records(image_folder, tmp_path / "none", 3, data=replace(policy, max_bad_images=limit))
    assert not list((tmp_path / "none").iterdir())
    for file in bad:
        file.unlink()
    for got, expected in zip(arrays(load(tmp_path / "skipped")), arrays(load(image_folder)), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_class_without_a_readable_image_is_named(image_folder, tmp_path):
    cut_short(*(image_folder / "val" / "dog").iterdir())
    policy = DataSection(on_bad_image="skip", max_bad_images=0.9)
    with pytest.raises(DataError, match="no image of val/dog can be read"):
        write_records(image_folder, tmp_path / "records", parts=["val"], data=policy)


def test_the_command_leaves_bad_images_out(image_folder, tmp_path, capsys):
    cut_short(sorted((image_folder / "val" / "cat").iterdir())[0])
    command = [str(image_folder), str(tmp_path / "records"), "--part", "val"]
    assert main(["records", *command]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert main(["records", *command, "--on_bad_image", "skip"]) == 0
    said = capsys.readouterr()
    assert "val: 8 images" in said.out and "bad image 1 of val, skipped: image file " in said.err
    assert main(["records", *command, "--on_bad_image", "skip", "--max_bad_images", "-1"]) == 2
    assert "max_bad_images is -1" in capsys.readouterr().err


def test_what_ends_before_it_is_verified_leaves_nothing_that_looks_whole(image_folder, tmp_path, monkeypatch):
    target = tmp_path / "records"

    def spoil(folder, part, written):
        file = next(folder.glob("*.mindrecord0"))
        content = bytearray(file.read_bytes())
        content[RecordSet.open(folder, part)[0].offset + 20] ^= 1
        file.write_bytes(content)
        verify(folder, part, written)

    verify = record_writer._verify
    monkeypatch.setattr(record_writer, "_verify", spoil)
    with pytest.raises(DataError, match=r"cat/a\.jpg was not read back as it was written"):
        write_records(image_folder, target, shards=2)
    assert not list(target.iterdir())
    monkeypatch.undo()

    def stop(source, destination):
        if str(destination).endswith("1"):
            raise KeyboardInterrupt
        move(source, destination)

    move = os.replace
    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_records(image_folder, target, shards=2)
    monkeypatch.undo()
    assert [file.name for file in target.glob("train*")]
    with pytest.raises(DataError, match=r"train\.records\.json is missing; make the records again"):
        load(target)
    write_records(image_folder, target, shards=1)  # over what was left
    assert load(target).sizes["train"] == 18 and len(list(target.iterdir())) == 6


def missing(folder):
    (folder / "val.mindrecord1").unlink()


def missing_index(folder):
    (folder / "val.mindrecord1.db").unlink()


def cut(folder):
    file = folder / "val.mindrecord1"
    file.write_bytes(file.read_bytes()[:-5])


def no_header(folder):
    file = folder / "val.mindrecord1"
    file.write_bytes(b"\0" * file.stat().st_size)


def huge_header(folder):
    file = folder / "val.mindrecord1"
    file.write_bytes(b"\xff" * 7 + b"\x7f" + file.read_bytes()[8:])


def index_beyond_the_file(folder):
    with sqlite3.connect(folder / "val.mindrecord1.db") as index:
        index.execute("UPDATE INDEXES SET PAGE_OFFSET_BLOB_END = 4000000000000000000")


def text_in_the_index(folder):
    with sqlite3.connect(folder / "val.mindrecord1.db") as index:
        index.execute("UPDATE INDEXES SET PAGE_ID_BLOB = 'x'")


def description_of_something_else(folder):
    (folder / "val.records.json").write_text('{"format": 1, "images": 9}')


def label_of_no_class(folder):
    with sqlite3.connect(folder / "val.mindrecord1.db") as index:
        index.execute("UPDATE INDEXES SET label_0 = 3")


def no_index(folder):
    file = folder / "val.mindrecord1.db"
    file.write_bytes(b"x" * file.stat().st_size)


def another_index(folder):
    shutil.copy(folder / "val.mindrecord0.db", folder / "val.mindrecord1.db")


def newer_format(folder):
    file = folder / "val.records.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 2}))


def no_description(folder):
    (folder / "val.records.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing, r"val\.mindrecord1 is missing"),
        (missing_index, r"val\.mindrecord1\.db is missing"),
        (cut, r"val\.mindrecord1 has [\d,]+ bytes, but [\d,]+ were written"),
        (no_header, r"the MindRecord header of .*val\.mindrecord1 cannot be read"),
        (huge_header, r"the MindRecord header of .*val\.mindrecord1 cannot be read"),
        (index_beyond_the_file, r"the index .*val\.mindrecord1\.db does not fit"),
        (text_in_the_index, r"the index .*val\.mindrecord1\.db cannot be read"),
        (description_of_something_else, r"val\.records\.json does not describe records"),
        (label_of_no_class, r"val\.mindrecord\* hold labels of no class"),
        (no_index, r"val\.mindrecord1\.db cannot be read"),
        (another_index, r"val\.mindrecord\* hold 9 images, which are not the 9"),
        (newer_format, r"val\.records\.json has format 2; this version reads format 1"),
        (no_description, r"val\.records\.json cannot be read"),
    ],
)
def test_damaged_files_are_named_at_once(records, spoil, message):
    spoil(records)
    with pytest.raises(DataError, match=message):
        load(records)


def test_files_that_break_later_are_named(records):
    splits = load(records)
    found = RecordSet.open(records, "train")[7]
    file = records / found.file.rsplit("/", 1)[1]
    content = file.read_bytes()
    file.write_bytes(content[: found.offset + 10])
    with pytest.raises(DataError, match=rf"{file.name} is cut short in image {found.name}"):
        splits.batch("train", [7])
    file.write_bytes(content[: found.offset - 8] + b"\1" * 8 + content[found.offset :])
    with pytest.raises(DataError, match=rf"{file.name} does not fit its index"):
        splits.batch("train", [7])
    file.write_bytes(content[: found.offset] + b"\1" * found.length + content[found.offset + found.length :])
    with pytest.raises(
        DataError, match=rf"image file {found.name} in .*{file.name} cannot be read: it is none of JPEG"
    ):
        splits.batch("train", [7])
    file.unlink()
    with pytest.raises(DataError, match=rf"{file.name} cannot be read: No such file"):
        splits.batch("train", [7])


def test_other_classes_in_val_than_in_train(image_folder, records, tmp_path):
    for part in ("train", "val"):
        (image_folder / part / "owl").rename(image_folder / part / "eagle")
    write_records(image_folder, tmp_path / "others", parts=["val"], shards=3)
    for file in (tmp_path / "others").iterdir():
        shutil.copy(file, records / file.name)
    with pytest.raises(DataError, match="only in val: eagle; only in train: owl"):
        load(records)


def test_indexes_hold_no_path_of_this_machine(records, image_folder):
    """The files can be moved, and tell nobody where they were made."""
    names = sqlite3.connect(records / "train.mindrecord0.db").execute("SELECT file_name_0 FROM INDEXES").fetchall()
    assert all(name.count("/") == 1 for (name,) in names)
    moved = records.rename(records.with_name("moved"))
    assert load(moved).sizes["val"] == 9
    content = (moved / "train.mindrecord0").read_bytes() + (moved / "train.records.json").read_bytes()
    assert str(image_folder.parent).encode() not in content


def test_an_image_too_large_for_a_page_is_named(image_folder, tmp_path, monkeypatch):
    write_image(image_folder / "train" / "cat" / "huge.bmp", (300, 300))
    monkeypatch.setattr(record_writer, "MAX_IMAGE_BYTES", 200_000)
    with pytest.raises(DataError, match=r"cat/huge\.bmp has 0 MiB; a record holds at most"):
        write_records(image_folder, tmp_path / "records", parts=["train"])
