"""Damaged image files through the image loader: model inputs or a DataError, within 10 seconds and 1 GB.

bash scripts/run_tests.sh --soak tests/fuzz --fuzz-seconds 60 --fuzz-seed 3
"""

import io

import numpy as np
import pytest
from PIL import Image

from dvt.data import Preprocessing
from dvt.data.decode import read_image
from dvt.errors import DataError
from fuzz.harness import run_fuzz
from fuzz.mutations import mutated

PREPROCESSING = Preprocessing("image_folder", 55, 64, 3, (0.5,) * 3, (0.5,) * 3)
KEPT: tuple[tuple[int, int], ...] = ()
"""(seed, case) of failures found before, which stay fixed."""

# Most damage cannot be told from a picture, or is told by a warning of PIL beside it.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")


def load_image(data: bytes) -> None:
    """What evaluation and `dvt predict` do with a file."""
    values = PREPROCESSING(read_image(io.BytesIO(data), name=lambda: "a file"))
    assert values.shape == (3, 55, 55) and np.isfinite(values).all()


def corpus() -> list[bytes]:
    """One small file per format, mode and compression that is read."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    colour = Image.fromarray(pixels).resize((96, 72), Image.Resampling.BICUBIC)
    grey16 = Image.fromarray(np.asarray(colour)[..., 0].astype(np.uint16) * 257)
    saved = [
        (colour, {"format": "JPEG"}),
        (colour, {"format": "JPEG", "progressive": True, "subsampling": 0}),
        (colour.convert("CMYK"), {"format": "JPEG"}),
        (colour.convert("L"), {"format": "JPEG", "optimize": True}),
        (colour, {"format": "PNG"}),
        (grey16, {"format": "PNG"}),
        (colour.quantize(32), {"format": "PNG", "transparency": 3}),
        (colour.convert("RGBA"), {"format": "PNG"}),
        (colour.convert("1"), {"format": "PNG"}),
        (colour, {"format": "WEBP"}),
        (colour, {"format": "WEBP", "lossless": True}),
        (colour, {"format": "BMP"}),
        (colour.quantize(16), {"format": "BMP"}),
        (colour.quantize(64), {"format": "GIF", "save_all": True, "append_images": [colour.quantize(8)]}),
        (colour, {"format": "TIFF"}),
        (colour, {"format": "TIFF", "compression": "tiff_lzw"}),
        (grey16, {"format": "TIFF", "compression": "tiff_adobe_deflate"}),
        (colour, {"format": "PPM"}),
    ]
    files = []
    for image, options in saved:
        file = io.BytesIO()
        image.save(file, **options)
        files.append(file.getvalue())
    return files


@pytest.mark.parametrize(("seed", "case"), KEPT)
def test_what_failed_once_stays_mended(seed, case):
    try:
        load_image(mutated(corpus(), seed, case))
    except DataError as error:
        assert "a file cannot be read" in str(error)


def test_damaged_images_for_a_moment():
    outcome = run_fuzz(load_image, corpus(), (DataError,), seconds=2, seed=0)
    assert not outcome.failures, str(outcome)
    assert outcome.read > 20 and outcome.refused > 20


@pytest.mark.soak
def test_damaged_images_for_minutes(request):
    seconds, seed = (request.config.getoption(name) for name in ("--fuzz-seconds", "--fuzz-seed"))
    outcome = run_fuzz(load_image, corpus(), (DataError,), seconds, seed)
    print(outcome)
    assert not outcome.failures, str(outcome)
