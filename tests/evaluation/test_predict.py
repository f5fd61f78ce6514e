"""`dvt predict` on files of every kind, good and bad, with the checkpoint that is shipped."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dvt.checkpoint import load_model, save_checkpoint
from dvt.cli import main as cli
from dvt.cli.support import shipped_checkpoint
from dvt.cost import cumulative_gmacs

SAVED = {"a.png": "L", "b.jpg": "RGB", "c.webp": "RGB", "d.png": "RGBA", "e.png": "P", "f.png": "1", "g.bmp": "RGB"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of all formats and modes, one of them in a folder below, and two that are no images."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, mode in SAVED.items():
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8)).convert(mode).save(root / name)
    (root / "below").mkdir()
    Image.fromarray(rng.integers(0, 65536, (54, 54)).astype(np.uint16)).save(root / "below" / "h.png")
    (root / "torn.jpg").write_bytes((root / "b.jpg").read_bytes()[:200])
    (root / "text.png").write_text("no image")
    (root / "notes.txt").write_text("not looked at")
    return root


def test_all_kinds_of_images_and_bad_ones_between(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["predict", str(folder), "--json"]) == 1
    captured = capsys.readouterr()
    answers = {Path(each["file"]).name: each for each in map(json.loads, captured.out.splitlines())}
    assert set(answers) == {*SAVED, "h.png", "torn.jpg", "text.png"}
    bad = {name for name, each in answers.items() if "error" in each}
    assert bad == {"torn.jpg", "text.png"}
    assert all(name in captured.err for name in bad) and "2 of 10 files" in captured.err
    costs = cumulative_gmacs(load_model(shipped_checkpoint())[1].model)
    for each in (each for name, each in answers.items() if name not in bad):
        assert each["gmacs"] == pytest.approx(costs[each["exit"] - 1])
        assert len(each["classes"]) == 5 and each["probabilities"] == sorted(each["probabilities"], reverse=True)
        assert each["milliseconds"] > 0


def test_one_line_per_image_and_thresholds_of_the_caller(folder: Path, capsys: pytest.CaptureFixture[str]):
    files = [str(folder / "a.png"), str(folder / "c.webp")]
    assert cli.main(["predict", *files, "--top", "2", "--thresholds", "[0, 0, 0]"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == files
    assert all(": exit 1, " in line and " GMACs, " in line and " ms: " in line for line in lines)
    assert cli.main(["predict", files[0], "--thresholds", "[2, 2, 0]"]) == 0
    assert ": exit 3, " in capsys.readouterr().out


def test_standard_input_missing_files_and_names_that_are_not_utf8(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff$1.png")
    shutil.copy(folder / "a.png", odd)
    for options in ([], ["--json"]):
        monkeypatch.setattr(sys, "stdin", (folder / "a.png").open())
        assert cli.main(["predict", *options, "-", odd, "no.png"]) == 1
        lines = capsys.readouterr().out.splitlines()
    first, second, last = map(json.loads, lines)
    assert (first["file"], second["file"]) == ("-", odd) and first["classes"] == second["classes"]
    assert "no.png does not exist" in last["error"]


def test_nothing_to_do_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["predict", str(tmp_path)]) == 2
    assert "holds no images; files must end in .jpg" in capsys.readouterr().err
    for given, message in (
        (["no.png"], "no.png does not exist"),
        (["no.png", "nor.png"], "no.png does not exist, nor do the other 1"),
        (["no*.jpg"], r"no\*.jpg does not exist"),
        (["https://example.org/cat.jpg"], "https://example.org/cat.jpg does not exist; .* .addresses are not fetched"),
    ):  # said before the checkpoint is looked at
        assert cli.main(["predict", *given, "--checkpoint", "no.ckpt"]) == 2
        assert re.search(message, capsys.readouterr().err)
    model, loaded = load_model(shipped_checkpoint())
    for missing, message in (
        (("thresholds", "early_exit"), "give --thresholds, 3 numbers"),
        (("preprocessing",), "does not say how"),
    ):
        metadata = {key: value for key, value in loaded.metadata.items() if key not in missing}
        save_checkpoint(tmp_path / "less.ckpt", model, metadata)
        assert cli.main(["predict", str(folder / "a.png"), "--checkpoint", str(tmp_path / "less.ckpt")]) == 2
        assert message in capsys.readouterr().err
