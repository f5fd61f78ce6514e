"""`dvt infer`: predictions of image files, and the accuracy where folders say the class."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import bundles
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from dvt.cli import main as cli
from dvt.data.classes import ModelClasses, imagenet_classes
from dvt.data.sources.image_folder import images_to_classify
from dvt.deploy import Cascade, export_bundle

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six parts of photographs in class folders below val/."""
    folder = tmp_path_factory.mktemp("data")
    for name, picture in zip(("bee", "dog"), load_sample_images().images, strict=True):
        (folder / "val" / name).mkdir(parents=True)
        for index in range(3):
            Image.fromarray(picture[60 * index :][:200, :260]).save(folder / "val" / name / f"{index}.png")
    return folder


def test_predictions_and_summary(bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "predictions.csv"
    assert cli.main(["infer", str(bundle), str(data), "--batch_size", "4", "--output", str(output)]) == 0
    rows = list(csv.DictReader(output.open(encoding="utf-8")))
    cascade = Cascade(bundle)
    files, labels, _ = images_to_classify(data, ModelClasses(len(bundles.CLASS_NAMES), bundles.CLASS_NAMES))
    assert [row["file"] for row in rows] == files and len(files) == 6 and labels == [1, 1, 1, 3, 3, 3]
    expected = cascade.predict(np.stack([cascade.preprocessing(file) for file in files]))
    assert [int(row["label"]) for row in rows] == expected.labels.tolist()
    assert [row["class"] for row in rows] == [bundles.CLASS_NAMES[label] for label in expected.labels]
    assert [int(row["exit"]) for row in rows] == (expected.exit_index + 1).tolist()
    np.testing.assert_allclose([float(row["confidence"]) for row in rows], expected.confidence, atol=1e-4)
    summary = capsys.readouterr().err
    assert f"{cascade.runs_on}: 6 images" in summary and "thresholds 0.4: not certified\n" in summary
    assert f"top-1 accuracy {100 * np.mean(expected.labels == labels):.2f} %" in summary
    assert f"left at exits 1: {100 * np.mean(expected.exit_index == 0):.1f} %" in summary


def test_a_photograph_on_its_side_is_turned_unless_exif_is_ignored(
    bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.open(data / "val" / "bee" / "0.png").rotate(180).save(tmp_path / "photo.png", exif=exif)
    upright = cascade_rows(capsys, bundle, data / "val" / "bee" / "0.png")
    turned, said = cascade_rows(capsys, bundle, tmp_path / "photo.png")
    stored, said_ignored = cascade_rows(capsys, bundle, tmp_path / "photo.png", "--exif", "ignore")
    assert turned == upright[0] != stored
    assert "EXIF orientation: honour" in said and "EXIF orientation: ignore" in said_ignored


def cascade_rows(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[list[str], str]:
    """What `dvt infer` says of one file, without its name; and the summary."""
    assert cli.main(["infer", *map(str, words)]) == 0
    printed = capsys.readouterr()
    return printed.out.splitlines()[1].split(",")[1:], printed.err


def test_a_flat_folder_one_file_and_thresholds(bundle: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    flat = data / "val" / "bee"
    assert cli.main(["infer", str(bundle), str(flat), "--thresholds", "2", "2", "2"]) == 0
    printed = capsys.readouterr()
    assert [line.rsplit(",", 1)[1] for line in printed.out.splitlines()[1:]] == ["3"] * 3
    assert "accuracy" not in printed.err
    assert cli.main(["infer", str(bundle), str(flat / "0.png"), "--thresholds", "0.1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{bundle}", "/no/such/place"], "is neither a file nor a folder"),
        (["{bundle}", "{data}", "--batch_size", "0"], "batch_size is 0"),
        (["{bundle}", "{data}", "--thresholds", "fast"], "no thresholds 'fast'"),
        (["{bundle}", "{data}", "--thresholds", "inf,0,0"], "thresholds is [inf, 0.0, 0.0]; it must be"),
        (["{bundle}", "{data}", "--thresholds=-0.5,0,0"], "each of at least 0"),
        (["{bundle}", "{data}", "--thresholds", "true,0,0"], "give 3 numbers, with commas in between"),
        (["{bundle}", "{data}", "--thresholds", "0.5,0"], "3 exits need"),
        (["{data}", "{data}"], "is not a bundle"),
        (["{bundle}", "{data}", "--output", "/proc/no/file"], "cannot write /proc/no/file"),
        (["{bundle}", "{bundle}"], "holds no images"),
        (["{bundle}", "{data}", "--output", "{data}"], "cannot write"),
    ],
)
def test_mistakes(arguments: list[str], message: str, bundle: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["infer", *[each.format(bundle=bundle, data=data) for each in arguments]]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("batch_size", [1, 4])
def test_bad_images_are_named_and_the_rest_is_done(
    batch_size: int, bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = shutil.copytree(data, tmp_path / "data")
    (folder / "val" / "bee" / "1.png").write_bytes(b"no image")
    whole = (folder / "val" / "dog" / "2.png").read_bytes()
    (folder / "val" / "dog" / "2.png").write_bytes(whole[: len(whole) // 2])
    output = tmp_path / "made" / "for it" / "rows.csv"
    command = ["infer", str(bundle), str(folder), "--batch_size", str(batch_size), "--output", str(output)]
    assert cli.main(command) == 1
    rows = list(csv.DictReader(output.open(encoding="utf-8")))
    assert [row["file"][-9:] for row in rows] == ["bee/0.png", "bee/2.png", "dog/0.png", "dog/1.png"]
    said = capsys.readouterr().err
    assert "bee/1.png cannot be read" in said and "dog/2.png cannot be read" in said
    assert "4 images" in said and "2 of 6 files could not be classified" in said


def test_rows_are_written_as_they_come(bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What ends the command later loses none that were classified before."""
    output, plain = tmp_path / "rows.csv", Cascade.predict

    def until_the_third(cascade: Cascade, images: np.ndarray, thresholds: object) -> object:
        if output.exists() and len(output.read_text().splitlines()) == 3:
            raise KeyboardInterrupt
        return plain(cascade, images, thresholds)

    monkeypatch.setattr(Cascade, "predict", until_the_third)
    assert cli.main(["infer", str(bundle), str(data), "--batch_size", "1", "--output", str(output)]) == 130
    assert len(output.read_text().splitlines()) == 3


def test_other_classes_and_no_preprocessing(
    bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(data / "val" / "bee", tmp_path / "images" / "wasp")
    assert cli.main(["infer", str(bundle), str(tmp_path / "images")]) == 2
    assert "are no classes of the model: wasp. It has" in capsys.readouterr().err
    folder = shutil.copytree(bundle, tmp_path / "copy")
    content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps({**content, "preprocessing": None}), encoding="utf-8")
    assert cli.main(["infer", str(folder), str(data)]) == 2
    assert "does not say how images become model inputs" in capsys.readouterr().err


def test_a_map_says_which_classes_folders_show(
    bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "map.json").write_text('{"wasp": "bee", "wolf": 3}')
    for name, given in (("bee", "wasp"), ("dog", "wolf")):
        shutil.copytree(data / "val" / name, tmp_path / "images" / given)
    assert cli.main(["infer", str(bundle), str(data)]) == 0
    by_name = capsys.readouterr().err.split("; ")[-2]
    images, option = str(tmp_path / "images"), ["--class_map", str(tmp_path / "map.json")]
    assert cli.main(["infer", str(bundle), images, *option]) == 0
    assert capsys.readouterr().err.split("; ")[-2] == by_name and by_name.startswith("top-1 accuracy ")
    (tmp_path / "images" / "wolf").rename(tmp_path / "images" / "fox")
    assert cli.main(["infer", str(bundle), images, *option]) == 2
    assert "no classes of the model: fox. " in (said := capsys.readouterr().err) and "or give --class_map FILE" in said
    assert cli.main(["infer", str(bundle), images + "/fox", *option]) == 2
    assert "class_map is set, but" in (said := capsys.readouterr().err) and "leave it out" in said


def test_classes_of_imagenet_are_written_as_words(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Also where the bundle has no names, as those of released files."""
    wnids = list(imagenet_classes())
    for name, names in (("bare", None), ("named", wnids[::-1])):
        folder, model = tmp_path / name, bundles.model(num_classes=1000)
        export_bundle(model, folder, ["ONNX"], {"all": (0, 0, 0)}, names, bundles.PREPROCESSING, [1])
        assert cli.main(["infer", str(folder), str(data / "val" / "bee" / "0.png")]) == 0
        [row] = csv.DictReader(capsys.readouterr().out.splitlines())
        assert row["class"] == imagenet_classes()[(names or wnids)[int(row["label"])]]


def test_the_script(bundle: Path, data: Path):
    command = ["bash", ROOT / "scripts" / "run_infer_onnx.sh", bundle, data]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 7 and "top-1 accuracy" in done.stderr
