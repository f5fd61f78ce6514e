"""Image files of every odd kind, through each of the ways in which files are read: the same pixels, or named refusals.

Training reads through `Splits.batches`, evaluation through `Splits.batch`, `dvt predict` and `dvt infer` through
`Preprocessing`, and record files are read back by `Splits` again.
"""

import os
import shutil
import subprocess
import sys
import traceback
import tracemalloc
import unicodedata
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dvt.config import DataSection
from dvt.data import Preprocessing, load_splits
from dvt.data.decode import read_image
from dvt.data.sources.record_writer import write_records
from dvt.errors import DataError
from reliability.pictures import BAD, claim_size, make_folder, text

EXIF_ORIENTATION = 0x0112
UNPRIVILEGED = 65534  # the user that owns nothing


def load(folder: Path, **keys):
    return load_splits(DataSection(path=str(folder), workers=1, **keys), 24, 0)


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "photos")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_bad_files_are_refused_by_name_wherever_they_are_read(folder, spoil, tmp_path):
    file = folder / "train" / "red" / "00.jpg"
    spoil(file)
    splits = load(folder)
    message = rf"red/00\.jpg cannot be read: .*({BAD[spoil]}).*; replace or remove it"
    readers = (
        lambda: list(splits.training(5).epoch(0)) + list(splits.training(5).epoch(1)),
        lambda: list(splits.batches("train", 5)),
        lambda: splits.batch("train", range(splits.sizes["train"])),
        lambda: Preprocessing.from_dict(splits.preprocessing)(file),
        lambda: write_records(folder, tmp_path / "records"),
    )
    for read in readers:
        with pytest.raises(DataError, match=message):
            read()
    assert not list((tmp_path / "records").iterdir())


def colours() -> np.ndarray:
    """(40, 50, 3) smooth pixels, which JPEG keeps."""
    y, x = np.mgrid[0:40, 0:50]
    return np.stack([40 + 4 * x, 30 + 5 * y, 220 - 2 * x - 2 * y], axis=-1).clip(0, 255).astype(np.uint8)


def grey16(file: Path) -> None:
    values = colours()[..., 0].astype(np.uint16) * 256 + 77
    Image.fromarray(values).save(file, "PNG")


def cmyk(file: Path) -> None:
    Image.fromarray(colours()).convert("CMYK").save(file, "JPEG", quality=98)


def palette(file: Path) -> None:
    Image.fromarray(colours()).quantize(256).save(file, "PNG")


def transparent(file: Path) -> None:
    Image.fromarray(np.dstack([colours(), np.full((40, 50), 9, np.uint8)])).save(file, "PNG")


def animated(file: Path) -> None:
    frames = [Image.fromarray(colours()).quantize(256), Image.new("P", (50, 40))]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], loop=0)


def rotated(file: Path) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    Image.fromarray(colours()).save(file, "JPEG", quality=98, subsampling=0, exif=exif)


@pytest.mark.parametrize(
    ("save", "tolerance"), [(grey16, 0), (cmyk, 6), (palette, 16), (transparent, 0), (animated, 16), (rotated, 6)]
)
def test_unusual_files_show_the_colours_they_hold(folder, save, tolerance, tmp_path):
    """16 bits are not cut to white, CMYK is not inverted, an animation is its first frame, and the orientation that a
    camera noted is left alone as in the published training: alike in training, evaluation, prediction and records."""
    file = folder / "train" / "red" / "00.png"
    save(file)
    expected = np.repeat(colours()[..., :1], 3, axis=-1) if save is grey16 else colours()
    pixels = np.asarray(read_image(file))
    assert pixels.shape == (40, 50, 3)
    assert np.abs(pixels.astype(int) - expected).max() <= tolerance

    write_records(folder, tmp_path / "records", shards=1)
    splits, records = load(folder), load(tmp_path / "records")
    place = splits.sizes["train"] // 2  # red comes after blue
    as_predicted = Preprocessing.from_dict(splits.preprocessing)(file)
    for source in (splits, records):
        np.testing.assert_array_equal(source.batch("train", [place])[0][0], as_predicted)
    for (images, _), (same, _) in zip(splits.training(6).epoch(0), records.training(6).epoch(0), strict=True):
        np.testing.assert_array_equal(images, same)


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")


BOMB = zlib.compress(bytes(200_000_000))
METADATA = {
    "compressed text": chunk(b"zTXt", b"k\0\0" + zlib.compress(b"x" * 3_000_000)),
    "text that unpacks to 200 MB": chunk(b"zTXt", b"k\0\0" + BOMB),
    "international text": chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(b"x" * 3_000_000)),
    "many texts": chunk(b"tEXt", b"k\0" + b"x" * 1_000_000) * 70,
    "colour profile": chunk(b"iCCP", b"k\0\0" + BOMB),
    "damaged orientation": chunk(b"eXIf", b"II*\0\x08\0\0\0\5\0\x12\1"),
    "damaged checksum": chunk(b"tEXt", b"k\0x")[:-4] + b"\0\0\0\0",
    "animation": chunk(b"acTL", bytes(7) + b"\2" + bytes(4)),
}


@pytest.mark.parametrize("place", ["before the pixels", "after the pixels"])
@pytest.mark.parametrize("kind", METADATA)
def test_metadata_of_a_png_neither_counts_nor_takes_memory(tmp_path, kind, place):
    file = tmp_path / "a.png"
    Image.fromarray(colours()).save(file)
    png = file.read_bytes()
    at = 33 if place == "before the pixels" else len(png) - 12  # behind IHDR, or before IEND
    file.write_bytes(png[:at] + METADATA[kind] + png[at:])
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(np.asarray(read_image(file)), colours())
        assert tracemalloc.get_traced_memory()[1] < 3 * file.stat().st_size + 2**20
    finally:
        tracemalloc.stop()


def test_nothing_is_printed_of_damaged_metadata(tmp_path):
    """PIL would warn in every worker, without the name of the file."""
    jpeg, tiff = tmp_path / "a.jpg", tmp_path / "b.tif"
    for file in (jpeg, tiff):
        Image.fromarray(colours()).save(file)
    content, exif = jpeg.read_bytes(), b"Exif\0\0II*\0\x08\0\0\0\5\0\x12\1\3\0\1\0\0\0"
    jpeg.write_bytes(content[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + content[2:])
    content = bytearray(tiff.read_bytes())
    content[-4:] = b"\0\0\1\0"  # the place of a next directory, beyond the end of the file
    tiff.write_bytes(content + b"\0")
    claim_size(tmp_path / "c.png", 10_000)  # from this size on PIL warns of decompression bombs
    code = """
import sys
from dvt.data.decode import read_image
from dvt.errors import DataError
for file in sys.argv[1:]:
    try:
        read_image(file)
    except DataError:
        print(file)
"""
    files = [str(file) for file in sorted(tmp_path.iterdir())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code, *files], env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, f"{tmp_path}/c.png\n", "")


@pytest.mark.parametrize("size", [(1, 1), (20_000, 20), (3, 9000)])
def test_absurd_shapes_become_model_inputs(folder, size):
    """Without the 65 million pixels that a 20,000 x 20 image has once its shorter side is 256."""
    stripes = np.zeros((size[1], size[0], 3), np.uint8)
    stripes[: size[1] // 2 + 1] = 200
    Image.fromarray(stripes).save(folder / "train" / "red" / "00.png")
    splits = load(folder)
    shown = np.concatenate([images for images, _ in splits.training(8).epoch(0)])
    assert shown.shape == (24, 3, 24, 24) and np.isfinite(shown).all()
    assert np.isfinite(splits.batch("train", [12])[0]).all()


def test_only_the_centre_of_a_very_long_image_is_resized():
    """To one level the same as resizing all of it, where that is possible."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 700, 3), dtype=np.uint8))
    prepared = Preprocessing("image_folder", 55, 64, 3, (0.5,) * 3, (0.5,) * 3)
    whole = image.resize((64 * 700 // 9, 64), Image.Resampling.BICUBIC)
    left = round((whole.width - 55) / 2)
    expected = np.asarray(whole.crop((left, 4, left + 55, 59))).astype(int)
    difference = np.abs(prepared.pixels(image).astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def test_names_with_spaces_and_letters_of_any_script(folder, tmp_path):
    names = ("a b.png", "größe №1.png", "写真.png", "😀.png", "-n.png", "100%.png")
    for name in names:
        shutil.copy(folder / "train" / "red" / "00.png", folder / "train" / "red" / name)
    for part in ("train", "val"):
        (folder / part / "blue").rename(folder / part / "sky blue, 青")
    splits = load(folder)
    assert splits.class_names == ("red", "sky blue, 青") and splits.sizes["train"] == 24 + len(names)
    write_records(folder, tmp_path / "records")
    records = load(tmp_path / "records")
    assert records.class_names == splits.class_names
    every = np.arange(splits.sizes["train"])
    np.testing.assert_array_equal(records.batch("train", every)[0], splits.batch("train", every)[0])
    text(folder / "train" / "red" / "写真.png")
    with pytest.raises(DataError, match="red/写真.png cannot be read"):
        load(folder).batch("train", every)


def test_a_name_that_no_log_can_hold_is_refused(folder):
    bad = os.fsencode(folder / "train" / "red") + b"/\xff.png"
    try:
        shutil.copy(os.fsencode(folder / "train" / "red" / "00.png"), bad)
    except OSError:
        pytest.skip("this file system takes no such names")
    with pytest.raises(DataError, match=r"red/\\udcff\.png is not valid UTF-8; rename it"):
        load(folder)


def test_dangling_links_are_named(folder):
    link = folder / "train" / "red" / "00.png"
    link.unlink()
    link.symlink_to(folder / "moved" / "00.png")
    with pytest.raises(DataError, match=r"red/00\.png is a link to .*moved/00\.png, which does not exist"):
        load(folder)
    with pytest.raises(DataError, match=r"00\.png does not exist: it is a link to .*moved/00\.png"):
        read_image(link)


def test_a_file_that_goes_away_after_it_was_listed_is_named(folder):
    splits = load(folder)
    (folder / "train" / "blue" / "03.png").unlink()
    with pytest.raises(DataError, match=r"blue/03\.png does not exist"):
        list(splits.training(6).epoch(0))


def test_classes_that_differ_by_case_alone(folder):
    for part in ("train", "val"):
        shutil.copytree(folder / part / "red", folder / part / "Red", dirs_exist_ok=True)
    if len(os.listdir(folder / "train")) == 2:
        pytest.skip("this file system ignores case")
    splits = load(folder)
    assert splits.class_names == ("Red", "blue", "red")
    shutil.rmtree(folder / "val" / "Red")
    with pytest.raises(DataError, match="differ .only in train: Red.; they must be the same$"):
        load(folder)
    shutil.rmtree(folder / "train" / "red")
    with pytest.raises(DataError, match=r"only in val: red; only in train: Red.*differ by case.*rename those"):
        load(folder)


def test_accents_in_another_unicode_form(folder):
    name = "café"
    (folder / "train" / "blue").rename(folder / "train" / unicodedata.normalize("NFC", name))
    (folder / "val" / "blue").rename(folder / "val" / unicodedata.normalize("NFD", name))
    with pytest.raises(DataError, match="by the Unicode form of accents alone: rename those"):
        load(folder)


def as_nobody(work, folder: Path) -> str:
    """What `work` returns in `folder` in a process of a user who owns nothing."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.chdir(folder)  # what lies above need not be open to all
            os.setgid(UNPRIVILEGED)
            os.setuid(UNPRIVILEGED)
            said = work()
        except BaseException:
            said = traceback.format_exc()
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def refusal(work) -> str:
    """The message of the DataError that `work` raises."""
    with pytest.raises(DataError) as error:
        work()
    return str(error.value)


def test_files_without_permission_are_named(folder, monkeypatch):
    """Root may read everything, so that as root the test takes another user."""
    monkeypatch.chdir(folder)
    for each in (folder, *folder.rglob("*")):
        each.chmod(0o755)
    root = Path(".")
    run = partial(as_nobody, folder=folder) if os.getuid() == 0 else lambda work: work()
    file = root / "train" / "red" / "00.png"
    file.chmod(0)
    splits = load(root)
    said = run(lambda: refusal(lambda: splits.batch("train", [12])))
    assert said == "image file train/red/00.png cannot be read: Permission denied; replace or remove it"
    file.parent.chmod(0)
    try:
        assert run(lambda: refusal(lambda: load(root))) == "cannot read train/red: Permission denied"
        assert "train/red/00.png cannot be read: Permission denied" in run(lambda: refusal(lambda: read_image(file)))
    finally:
        file.parent.chmod(0o755)
