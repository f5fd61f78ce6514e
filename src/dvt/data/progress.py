"""Progress bars of long work, on terminals alone: a file or a pipe would get a line without end."""

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(work: Iterable | None = None, **options: Any) -> tqdm:
    """A bar on standard error, over `work` or moved by hand; `options` are those of tqdm (`total`, `unit`, `desc`)."""
    return tqdm(work, disable=None, **options)
