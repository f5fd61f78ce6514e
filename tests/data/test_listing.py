"""What counts as an image in a folder: the same for training, records, `dvt predict` and `dvt infer`."""

import logging
import os
import shutil
from pathlib import Path

import pytest
from data_files import write_image

from dvt.config import DataSection
from dvt.data import load_splits
from dvt.data.classes import ModelClasses
from dvt.data.image_files import AGAIN, DANGLING, HIDDEN, NO_FILE, NO_IMAGE, images_below
from dvt.data.sources.image_folder import images_to_classify
from dvt.data.sources.record_writer import write_records
from dvt.errors import DataError
from dvt.evaluation.predict import find_images

READ = ("a.jpg", "b.JPEG", "c.png", "d.WebP", "e.bmp", "f.gif", "g.tif", "h.TIFF", "i.ppm", "j.jfif", "k.pgm")
HIDDEN_NAMES = ("._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", ".b.png")


def fill(folder: Path) -> Path:
    """Images of all formats, a link to one, and what computers leave beside them."""
    for name in READ:
        write_image(folder / name, (20, 20), mode="L" if name.endswith("pgm") else "RGB")
    (folder / "linked.png").symlink_to(folder / "c.png")
    for name in HIDDEN_NAMES:
        (folder / name).write_bytes(b"\0\5\26\7")
    write_image(folder / ".ipynb_checkpoints" / "c-checkpoint.png", (20, 20))
    return folder


def by_predict(folder: Path) -> list[str]:
    return list(find_images([str(folder)]))


def by_infer(folder: Path) -> list[str]:
    return images_to_classify(folder, ModelClasses(1, ["cat"]))[0]


@pytest.mark.parametrize("find", [by_predict, by_infer])
def test_every_format_and_links_are_found_and_nothing_hidden(tmp_path, find):
    folder = fill(tmp_path / "p")
    assert [Path(file).name for file in find(folder)] == sorted([*READ, "linked.png"])


def test_what_is_left_out_is_counted_by_reason(tmp_path):
    folder = fill(tmp_path / "p")
    write_image(folder / "below" / "l.png", (20, 20))
    (folder / "looks_like.jpg").mkdir()  # a folder is no image whatever its name
    (folder / "notes.txt").write_text("x")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "below" / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    elsewhere = write_image(tmp_path / "elsewhere" / "m.gif", (20, 20)).parent
    (folder / "linked_folder").symlink_to(elsewhere)
    listed = images_below(folder)
    found = [os.path.relpath(file, folder) for file in listed.images]
    assert found == sorted([*READ, "linked.png", "below/l.png", "linked_folder/m.gif"])
    counts = {reason: len(paths) for reason, paths in listed.left_out.items()}
    assert counts == {HIDDEN: 1 + len(HIDDEN_NAMES), NO_IMAGE: 1, DANGLING: 1, AGAIN: 1, NO_FILE: 1}
    (note,) = listed.notes(folder)
    assert f"6 {HIDDEN} (.DS_Store, ._a.jpg and 4 more)" in note and f"1 {NO_IMAGE} (notes.txt)" in note


def test_predict_says_what_it_leaves_out(tmp_path, capsys):
    by_predict(fill(tmp_path / "p"))
    assert capsys.readouterr().err == f"left out in {tmp_path}/p: 6 hidden (.DS_Store, ._a.jpg and 4 more)\n"


@pytest.mark.parametrize("find", [by_predict, by_infer])
def test_a_folder_without_images_is_refused_with_what_it_holds(tmp_path, find):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"holds no images; .*\.tiff.*left out .*1 not an image .*notes\.txt"):
        find(tmp_path)


@pytest.fixture
def classes(tmp_path) -> Path:
    """train/ and val/ with two classes each, one of them a link, all filled."""
    for part in ("train", "val"):
        fill(tmp_path / "photos" / part / "cat")
        dog = fill(tmp_path / f"{part}_dog")
        (tmp_path / "photos" / part / "dog").symlink_to(dog)
    return tmp_path / "photos"


def test_training_and_records_and_infer_read_the_same(classes, tmp_path, caplog):
    caplog.set_level(logging.INFO, "dvt")
    count = 2 * (len(READ) + 1)
    splits = load_splits(DataSection(path=str(classes)), 16, 0)
    assert splits.sizes["train"] == splits.sizes["val"] == count
    assert f"left out in {classes}/train: 12 hidden (cat/.DS_Store, cat/._a.jpg and 10 more)" in splits.describe()
    pytest.importorskip("mindspore")
    assert write_records(classes, tmp_path / "records", shards=1) == {"train": count, "val": count}
    assert f"left out in {classes}/val: 12 hidden" in caplog.text
    files, labels, (note,) = images_to_classify(classes, ModelClasses(3, ["dog", "owl", "cat"]))
    assert len(files) == count and labels == [2] * (count // 2) + [0] * (count // 2) and "12 hidden" in note
    assert len(images_to_classify(classes / "val", ModelClasses(7))[0]) == count


def stray(part: Path) -> None:
    write_image(part / "stray.gif", (20, 20))


def folder_below(part: Path) -> None:
    write_image(part / "cat" / "more" / "x.png", (20, 20))


def folder_named_as_an_image(part: Path) -> None:
    (part / "cat" / "x.jpg").mkdir()


def text_file(part: Path) -> None:
    (part / "cat" / "notes.txt").write_text("x")


def dangling(part: Path) -> None:
    (part / "cat" / "x.png").symlink_to("nowhere")


def nothing_but_hidden(part: Path) -> None:
    for file in (part / "dog").iterdir():
        if not file.name.startswith("."):
            file.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (stray, r"val/stray\.gif lies outside of a class folder"),
        (folder_below, r"cat/more is a folder"),
        (folder_named_as_an_image, r"cat/x\.jpg is a folder"),
        (text_file, r"cat/notes\.txt is not an image"),
        (dangling, r"cat/x\.png is a link to nowhere, which does not exist"),
        (nothing_but_hidden, r"no images in 1 class folder\(s\) of .*val: dog"),
    ],
)
def test_class_folders_hold_images_alone_for_every_reader(classes, tmp_path, spoil, message):
    spoil(classes / "val")
    readers = [
        lambda: load_splits(DataSection(path=str(classes)), 16, 0),
        lambda: write_records(classes, tmp_path / "records"),
    ]
    if spoil is not nothing_but_hidden:  # a class without images matters to training alone
        readers.append(lambda: images_to_classify(classes, ModelClasses(2, ["cat", "dog"])))
    for read in readers:
        with pytest.raises(DataError, match=message):
            read()
    assert not (tmp_path / "records").exists()


def test_records_are_not_written_beside_pictures(classes, tmp_path, monkeypatch):
    """Nor is it possible under another name of the folder, nor beside those of another data set."""
    (tmp_path / "same").symlink_to(classes)
    other = tmp_path / "other" / "val"
    other.mkdir(parents=True)
    monkeypatch.chdir(classes)
    below = classes / "train", classes / "val" / "cat", tmp_path / "same" / "train" / "new"
    for output in (classes, tmp_path / "same", classes / "train" / "..", Path(), other.parent, *below):
        with pytest.raises(DataError, match="records must not lie beside images; give another folder"):
            write_records(classes, output)
    assert sorted(os.listdir(classes)) == ["train", "val"]


def test_the_log_says_whether_records_or_pictures_are_read(classes, tmp_path):
    pytest.importorskip("mindspore")
    assert f"images of {classes}\n" in load_splits(DataSection(path=str(classes)), 16, 0).describe()
    write_records(classes, tmp_path / "records", shards=1)
    for file in (tmp_path / "records").iterdir():
        shutil.copy(file, classes)
    said = load_splits(DataSection(path=str(classes)), 16, 0).describe()
    assert f"images of the record files in {classes}; train/ and val/ beside them: not read" in said
