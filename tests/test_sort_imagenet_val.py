"""scripts/sort_imagenet_val.py on made files of ImageNet's layouts: nothing is lost, and it can be run again."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "sort_imagenet_val.py"
WNIDS = ["n01751748", "n09193705", "n01440764", "n01751748", "n15075141"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images, each with its number as content, and a file that is none."""
    (tmp_path / "val").mkdir()
    for i in range(1, 6):
        image(tmp_path / "val", i).write_text(str(i))
    (tmp_path / "val" / "README").write_text("keep")
    return tmp_path / "val"


def image(folder: Path, number: int) -> Path:
    return folder / f"ILSVRC2012_val_{number:08d}.JPEG"


def in_order(path: Path) -> Path:
    path.write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    return path


def by_name(path: Path) -> Path:
    rows = [f"ILSVRC2012_val_{i:08d}.JPEG {wnid}\n" for i, wnid in enumerate(WNIDS, start=1)]
    path.write_text("".join(reversed(rows)) + "\n")
    return path


def kaggle(path: Path) -> Path:
    rows = [f"ILSVRC2012_val_{i:08d},{wnid} 85 1 499 272 {wnid} 1 1 9 9\n" for i, wnid in enumerate(WNIDS, start=1)]
    path.write_text("ImageId,PredictionString\n" + "".join(rows[::2] + rows[1::2]))
    return path


def devkit(path: Path) -> Path:
    """Identifiers of the kit, which are not in the order of the wnids, and classes that no image shows."""
    io = pytest.importorskip("scipy.io")
    ids = {"n09193705": 1, "n01440764": 2, "n15075141": 3, "n01751748": 4, "n00001740": 1001}
    synsets = np.zeros(len(ids), [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")])
    for row, (wnid, number) in zip(synsets, ids.items(), strict=True):
        row["ILSVRC2012_ID"], row["WNID"], row["words"] = number, wnid, "words"
    (path / "data").mkdir(parents=True)
    io.savemat(path / "data" / "meta.mat", {"synsets": synsets})
    lines = "".join(f"{ids[wnid]}\n" for wnid in WNIDS)
    (path / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text(lines)
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)


def all_there(folder: Path) -> bool:
    return sorted(file.read_text() for file in folder.rglob("ILSVRC*")) == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("labels", [in_order, by_name, kaggle, devkit])
def test_images_go_to_their_classes(folder, tmp_path, labels):
    done = run(folder, labels(tmp_path / "labels"))
    assert done.returncode == 0 and done.stdout == "moved 5 images; 5 are in folders of their classes\n", done.stderr
    assert all(image(folder / wnid, i).read_text() == str(i) for i, wnid in enumerate(WNIDS, start=1))
    assert all_there(folder) and (folder / "README").read_text() == "keep"
    again = run(folder, tmp_path / "labels")
    assert (again.returncode, again.stdout) == (0, "moved 0 images; 5 are in folders of their classes\n")


def test_an_interrupted_run_is_completed(folder, tmp_path):
    labels = in_order(tmp_path / "labels")
    assert "would move 5 images; 0 are in" in run(folder, labels, "--dry_run").stdout
    (folder / WNIDS[1]).mkdir()
    image(folder, 2).rename(image(folder / WNIDS[1], 2))
    assert "moved 4 images; 5 are in" in run(folder, labels).stdout and all_there(folder)


def test_nothing_is_moved_where_something_is_unclear(folder, tmp_path):
    labels = in_order(tmp_path / "labels")
    image(folder / WNIDS[0], 1).parent.mkdir()
    image(folder / WNIDS[0], 1).write_text("another")
    before = sorted(folder.rglob("*"))
    refused = [("is there already", run(folder, labels))]
    image(folder / WNIDS[0], 1).unlink()
    labels.write_text("n01440764\n")
    refused.append(("has no class for 4 images, such as ILSVRC2012_val_00000002.JPEG", run(folder, labels)))
    labels.write_text("tench\n")
    refused.append(("line 1 is 'tench'", run(folder, labels)))
    refused.append(("does not say the classes", run(folder, tmp_path / "nowhere")))
    refused.append(("is not a folder", run(tmp_path / "nowhere", labels)))
    for message, done in refused:
        assert done.returncode == 2 and message in done.stderr, done.stderr
    assert sorted(folder.rglob("*")) == [path for path in before if path != image(folder / WNIDS[0], 1)]
    assert all_there(folder)
