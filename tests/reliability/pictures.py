"""An image folder of noisy pictures, and image files as users have them by accident."""

import io
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

COUNTS = {"train": 12, "val": 6}
"""Images per class."""
TINY_MODEL = {
    "name": "dvt_deit_small",
    "image_size": 24,
    "grid_sizes": [2, 3],
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "mlp_hidden": 16,
    "drop_path_rate": 0.0,
}


def make_folder(root: Path) -> Path:
    """Two classes, red and blue, of 12 training and 6 validation images each; no two are alike."""
    rng = np.random.default_rng(0)
    for part, count in COUNTS.items():
        for channel, name in ((0, "red"), (2, "blue")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 90, (32, 32, 3), np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(root / part / name / f"{i:02d}.png")
    return root


def jpeg_cut_short(file: Path) -> None:
    """A download that broke off."""
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 80, 3), np.uint8)).save(file, "JPEG")
    file.write_bytes(file.read_bytes()[:-300])


def empty(file: Path) -> None:
    """A disk that was full."""
    file.write_bytes(b"")


def text(file: Path) -> None:
    """A page of an error in the place of a picture."""
    file.write_text("<html>404 Not Found</html>")


def claim_size(file: Path, side: int) -> None:
    """A PNG of a few bytes whose header says that it is `side` x `side` pixels large."""
    content = io.BytesIO()
    Image.new("L", (8, 8)).save(content, "PNG")
    data = content.getvalue()
    header = data[12:16] + 2 * side.to_bytes(4, "big") + data[24:29]  # chunk name, width, height, the rest
    file.write_bytes(data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:])


def bomb(file: Path) -> None:
    """A file that would unpack to gigabytes."""
    claim_size(file, 40_000)


def too_large(file: Path) -> None:
    """Somewhat more pixels than are read."""
    claim_size(file, 10_000)


def floats(file: Path) -> None:
    """A TIFF of floats from 0 to 1, which PIL would turn into black."""
    Image.fromarray(np.linspace(0, 1, 900, dtype=np.float32).reshape(30, 30)).save(file, "TIFF")


def postscript(file: Path) -> None:
    """A format for which PIL would start another program."""
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")


BAD = {
    jpeg_cut_short: "image file is truncated",
    empty: "it is empty",
    text: "it is none of JPEG, PNG",
    bomb: "exceeds limit of .* pixels, could be decompression bomb",
    too_large: "it has 10,000 x 10,000 pixels, more than 89,478,485",
    floats: "floats or 32-bit numbers; save it with 8 or 16 bits",
    postscript: "it is none of JPEG, PNG",
}
"""Ways to make a bad image, and what the message says of each."""
