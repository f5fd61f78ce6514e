"""Downloads the Fashion-MNIST files.

Each is checked by the SHA-256 of its decompressed content, so neither a mirror nor an unencrypted connection needs to
be trusted.
"""

import gzip
import hashlib
import http.client
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path

from dvt.data.progress import progress
from dvt.errors import DataError
from dvt.safe_files import replacing

PACKAGE = "dataset-fashion-mnist"
"""The Debian and Ubuntu package that holds the files."""
BASE_URLS = (
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
"""The publisher's two locations."""
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""Of the decompressed files, as the Debian package dataset-fashion-mnist 0.0~git20200523 holds them."""
TIMEOUT = 30
"""Seconds without a byte before a download is given up."""
_BLOCK = 1 << 18


class FetchError(Exception):
    """A location from which the files cannot be had; the message becomes a part of the final DataError."""


def fetch_fashion_mnist(folder: Path, tried: Sequence[str] = (), base_urls: Sequence[str] = BASE_URLS) -> Path:
    """Downloads those of the four files that are not in `folder`, and returns it.

    Args:
        folder: Made if need be.
        tried: What was tried before, for the message.
        base_urls: Locations to download from, in this order.

    Raises:
        DataError: All locations failed; the message lists them and says what to do.
    """
    tried = list(tried)
    for url in base_urls:
        try:
            for name, digest in SHA256.items():
                if not is_present(folder, name):
                    _download(f"{url.rstrip('/')}/{name}.gz", folder / f"{name}.gz", digest)
            return folder
        except FetchError as error:
            tried.append(str(error))
    raise DataError(
        f"Fashion-MNIST is not here and cannot be downloaded (tried: {'; '.join(tried)}). Install the Debian package"
        f" with 'sudo apt-get install {PACKAGE}', or put {', '.join(f'{name}.gz' for name in SHA256)} into a folder and"
        " give it as data.path"
    )


def is_present(folder: Path, name: str) -> bool:
    """Whether the folder holds one of the files, gzip or plain."""
    return (folder / name).is_file() or (folder / f"{name}.gz").is_file()


def _download(url: str, file: Path, sha256: str) -> None:
    """Raises FetchError if the file cannot be had or written, or holds something else. It is there whole or not at
    all."""
    digest = hashlib.sha256()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, part.open("wb") as out:
                size = int(answer.headers.get("Content-Length") or 0) or None
                with progress(total=size, desc=file.name, unit="B", unit_scale=True) as bar:
                    while block := answer.read(_BLOCK):
                        out.write(block)
                        bar.update(len(block))
            with gzip.open(part) as content:
                while block := content.read(_BLOCK):
                    digest.update(block)
            if digest.hexdigest() != sha256:
                raise ValueError("the content is not that of Fashion-MNIST (wrong SHA-256)")
    # URLError and timeouts are OSErrors; EOFError and zlib.error come from a gzip stream that is cut short or damaged.
    except (OSError, http.client.HTTPException, EOFError, ValueError, zlib.error) as error:
        raise FetchError(f"{url}: {error}") from error
