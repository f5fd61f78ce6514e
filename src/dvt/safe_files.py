"""Files that are there whole or not at all, and what a file is by its content.

`replacing` writes one file beside its place and moves it there when it is finished; `scratch_folder` and `put_in_place`
do so for several. `held` keeps a folder for one process.
"""

import codecs
import errno
import fcntl
import logging
import os
import shutil
import socket
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dvt.errors import ConfigError, DVTError, reason_of

HELD = ".in_use"  # the file that is locked in a folder that is held
_SCRATCH = ".saving-"  # in the names of the hidden folders in which files are written
_FULL = (errno.ENOSPC, errno.EDQUOT)
_IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR)

_START = 400  # bytes of a file that show what it is
_KINDS = {
    b"\x93NUMPY": ("other", "a single array of NumPy (.npy)"),
    b"\xff\xd8\xff": ("other", "a JPEG image"),
    b"\x89PNG": ("other", "a PNG image"),
    b"\x1f\x8b": ("other", "a gzip archive, to be unpacked first"),
    b"PK\x03\x04": ("PyTorch", "a PyTorch file"),
    b"\x80": ("PyTorch", "a PyTorch file"),
    b"\x08": ("other", "an ONNX model"),
    b"\n": ("MindSpore", "a MindSpore checkpoint"),
}

log = logging.getLogger(__name__)


def content_of(path: Path) -> tuple[str, str]:
    """What a file is by its start, whatever its name: a word for the program, "" if it is not known, and words for a
    message. It may be damaged further on. Raises OSError."""
    with path.open("rb") as file:
        start = file.read(_START)
    if not start:
        return "empty", "an empty file, cut short or damaged"
    with suppress(UnicodeDecodeError):
        cut = len(start) == _START  # perhaps in the middle of a character
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(start, final=not cut)
        if (words := text.split()) and "".join(words).isprintable():
            return "text", f"a text file that begins with {' '.join(words)[:60]!r}"
    if start[8:9] == b"{":
        return "safetensors", "a safetensors file"
    if start.startswith(b"PK\x03\x04"):
        length = int.from_bytes(start[26:28], "little")
        first = start[30 : 30 + length].decode("latin-1")  # name of the first file in the archive
        if first.endswith(".npy"):
            return "arrays", "a file of NumPy arrays (.npz)"
        if first and "/" not in first:  # in PyTorch's all names begin with that of a folder
            return "other", f"a ZIP archive that begins with {first!r}"
    return next((found for mark, found in _KINDS.items() if start.startswith(mark)), ("", ""))


def write_failure(path: Path, error: Exception) -> str:
    """Why `path` could not be written and what to do; on a full disk also how much is free there."""
    number, reason = getattr(error, "errno", None), reason_of(error)
    if number in _FULL:
        place = next(each for each in path.parents if each.exists())
        free = shutil.disk_usage(place).free / 2**20
        return f"{reason}: {free:.1f} MiB are free in {place}; make room or choose another folder"
    if number == errno.ENOENT and not path.parent.exists():
        return f"{reason}: the folder {path.parent} is gone, somebody has removed or renamed it"
    if number in _IN_THE_WAY:
        taken = next((each for each in (path, *path.parents) if each.exists() and not each.is_dir()), path)
        return f"{reason}: {taken} is a file; choose another folder, or move the file away"
    return f"{reason}; choose another folder, or change its permissions" if number else reason


@contextmanager
def explained(path: Path, raises: type[DVTError] = DVTError, what: str = "") -> Iterator[None]:
    """Around the writing of `path`: an OSError becomes a DVTError that names it (after `what`), why, and what to do."""
    try:
        yield
    except OSError as error:
        raise raises(f"cannot write {what}{path}: {write_failure(path, error)}") from error


def require_writable(folder: Path) -> None:
    """Raises ConfigError unless files can be written to the output folder `folder`, which may still have to be made."""
    with _made(folder):
        pass


@contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """Keeps other processes out of the output folder `folder` until the block ends, also where it is killed.

    The folder is made if need be; one that is still empty at the end is removed. Raises ConfigError where files cannot
    be written, or where another process does `what` there.
    """
    path = folder / HELD
    with _made(folder):
        while True:
            with explained(path, ConfigError):
                lock = path.open("a+b", buffering=0)
            with lock:
                _take(lock, folder, what)
                if not _is_at(path, lock):
                    continue  # the process that held it has removed it since it was opened
                try:
                    with explained(path, ConfigError):
                        lock.truncate(0)
                        lock.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
                    yield
                    return
                finally:
                    if _is_at(path, lock):
                        path.unlink()


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Makes `folder` with those above it, and removes at the end those made here that are empty. Raises ConfigError."""
    new: list[Path] = []
    try:
        with explained(folder, ConfigError, "to the output folder "):
            new += [each for each in (folder, *folder.parents) if not each.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        yield
    finally:
        for each in new:
            with suppress(OSError):  # not empty
                each.rmdir()


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _take(lock: BinaryIO, folder: Path, what: str) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read(200).decode(errors="replace") or "another process"
        raise ConfigError(
            f"{what} is already under way in {folder} ({holder}); wait for its end, or choose another folder"
        ) from None
    except OSError as error:
        text = "%s: the file system has no locks (%s); see to it that nothing else writes there"
        log.warning(text, folder, reason_of(error))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a name to write to; when the block ends well, what lies there becomes `path` in one step, as
    `put_in_place` does it, else it is gone. Raises OSError."""
    with scratch_folder(path.parent, path.stem) as scratch:
        written = scratch / path.name
        yield written
        put_in_place(written, path)


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yields a new hidden folder in `parent`, with `name` in its own, and removes it with all that is left in it.

    It is locked meanwhile. Folders of processes that were killed, which are locked no more, are removed by the next
    call, where the file system has locks for folders. Raises OSError.
    """
    for abandoned in parent.glob(f".*{_SCRATCH}*"):
        with suppress(OSError):  # another process has it, or it is not ours to remove
            _remove_unless_locked(abandoned)
    while True:
        scratch = parent / f".{name}{_SCRATCH}{uuid.uuid4().hex[:8]}"
        scratch.mkdir()
        try:
            lock = os.open(scratch, os.O_RDONLY)
        except FileNotFoundError:  # another process took it for an abandoned one
            continue
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)  # waits while another process looks whether it is abandoned
        if scratch.exists():
            break
        os.close(lock)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def _remove_unless_locked(folder: Path) -> None:
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(lock)


def put_in_place(written: Path, path: Path) -> None:
    """Moves a finished file out of a scratch folder to `path`: synced, in one step, and with the mode that the umask
    gives to new files (MindSpore leaves 0400). Raises OSError."""
    written.chmod(written.parent.stat().st_mode & 0o666)
    _sync(written)
    os.replace(written, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def private_cache(name: str) -> Path:
    """The folder `name` of this package in the user's cache, made for this user alone.

    What is in it is removed if others could have changed it. Raises PermissionError if they still could, other OSErrors
    if it cannot be made, RuntimeError if there is no home folder.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "dvt" / name
    for each in reversed((folder, *folder.parents)):
        each.mkdir(stat.S_IRWXU, exist_ok=True)
    mine = [each for each in (folder, folder.parent) if each.stat().st_uid == os.geteuid()]
    if not all(only_ours(each.resolve()) for each in mine):  # 0.1.0 left them to the umask
        for file in filter(Path.is_file, folder.iterdir()):
            file.unlink()
    for each in mine:
        each.chmod(stat.S_IRWXU)
    folder = folder.resolve()
    for each in (folder, *folder.parents):
        if not only_ours(each):
            remedy = "set XDG_CACHE_HOME to a folder of your own, or take their rights away (chmod go-w)"
            raise PermissionError(f"other users could change what is in {each}; {remedy}")
    return folder


def only_ours(path: Path) -> bool:
    """Whether this user and root (who owns /) alone own `path` and may write to it, or to what others have in it."""
    info = path.lstat()  # symbolic links count as open to all
    kept_apart = stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX
    closed = not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return info.st_uid in (os.geteuid(), 0, Path("/").stat().st_uid) and bool(closed or kept_apart)
