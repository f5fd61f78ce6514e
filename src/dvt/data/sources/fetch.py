"""Gets the Fashion-MNIST files where they are not there yet: from the Debian/Ubuntu package, or by download.

The package is tried only where that can work without asking anybody: apt-get is there, and this process is root or may
use sudo without a password. A download is checked by the SHA-256 of the decompressed files, so neither a mirror nor an
unencrypted connection needs to be trusted.
"""

import contextlib
import gzip
import hashlib
import http.client
import logging
import os
import shutil
import subprocess
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path

from dvt.errors import DataError

PACKAGE = "dataset-fashion-mnist"
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

DOWNLOAD_TIMEOUT = 30
"""Seconds without a byte before a download is given up."""
APT_TIMEOUT = 600
"""Seconds that one call of apt-get may take."""
_BLOCK = 1 << 18

_log = logging.getLogger(__name__)


class FetchError(Exception):
    """One way of getting the files failed; the message becomes a part of the final DataError."""


def fetch_fashion_mnist(
    debian_folder: Path, cache_folder: Path, tried: Sequence[str] = (), base_urls: Sequence[str] = BASE_URLS
) -> Path:
    """The folder that holds the four files, after installing the package or downloading them.

    Args:
        debian_folder: Where the package puts them.
        cache_folder: Where a download goes.
        tried: What was tried before, for the message.
        base_urls: Locations to download from, in this order.

    Raises:
        DataError: All ways failed; the message lists them and says what to do.
    """
    tried = list(tried)
    try:
        install_package()
        if all(_present(debian_folder, name) for name in SHA256):
            return debian_folder
        tried.append(f"apt-get install {PACKAGE} worked, but {debian_folder} lacks the files")
    except FetchError as error:
        tried.append(str(error))
    for url in base_urls:
        try:
            for name, digest in SHA256.items():
                if not _present(cache_folder, name):
                    download(f"{url.rstrip('/')}/{name}.gz", cache_folder / f"{name}.gz", digest)
            return cache_folder
        except FetchError as error:
            tried.append(str(error))
    raise DataError(
        f"Fashion-MNIST is not here and cannot be fetched (tried: {'; '.join(tried)}). Install the Debian package with"
        f" 'sudo apt-get install {PACKAGE}', or put {', '.join(f'{name}.gz' for name in SHA256)} into a folder and give"
        " it as data.path"
    )


def install_package() -> None:
    """Installs the Debian package.

    Raises:
        FetchError: It cannot be installed here, or apt-get failed.
    """
    if shutil.which("apt-get") is None:
        raise FetchError(f"package {PACKAGE}: no apt-get here")
    prefix = []
    if os.geteuid() != 0:
        if shutil.which("sudo") is None or _run(["sudo", "-n", "true"], 10) is not None:
            raise FetchError(f"package {PACKAGE}: neither root nor sudo without a password")
        prefix = ["sudo", "-n"]
    apt = [*prefix, "apt-get", "-o", "DPkg::Lock::Timeout=60", "-q"]
    install = [*apt, "install", "-y", "--no-install-recommends", PACKAGE]
    _log.info("installing the package %s with apt-get (31 MB)", PACKAGE)
    failure = _run(install, APT_TIMEOUT)
    if failure is not None:
        # On a fresh machine the package lists are missing or old.
        _run([*apt, "update"], APT_TIMEOUT)
        failure = _run(install, APT_TIMEOUT)
    if failure is not None:
        raise FetchError(f"apt-get install {PACKAGE}: {failure}")


def download(url: str, file: Path, sha256: str) -> None:
    """Downloads a gzip file and moves it to its place once its decompressed content has the right SHA-256.

    Raises:
        FetchError: No connection, no such file, no answer for `DOWNLOAD_TIMEOUT` seconds, cut short, another content,
            or no room to write to. Nothing is left behind.
    """
    from tqdm import tqdm

    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as answer, part.open("wb") as out:
            size = int(answer.headers.get("Content-Length") or 0) or None
            with tqdm(total=size, desc=file.name, unit="B", unit_scale=True) as bar:
                while block := answer.read(_BLOCK):
                    out.write(block)
                    bar.update(len(block))
        if _digest(part) != sha256:
            raise FetchError(f"{url}: the content is not that of Fashion-MNIST (wrong SHA-256)")
        os.replace(part, file)
    # URLError and timeouts are OSErrors; EOFError and zlib.error come from a gzip stream that is cut short or damaged.
    except (OSError, http.client.HTTPException, EOFError, ValueError, zlib.error) as error:
        raise FetchError(f"{url}: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with gzip.open(file) as content:
        while block := content.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _present(folder: Path, name: str) -> bool:
    return (folder / name).is_file() or (folder / f"{name}.gz").is_file()


def _run(command: list[str], timeout: float) -> str | None:
    """None if the command worked, else the last line it wrote to stderr."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"
