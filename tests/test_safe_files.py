"""Files that are there whole or not at all; what cannot be written is reported with what to do.

How they survive kills and full disks is tested in tests/reliability.
"""

import errno
import os
import zipfile
from pathlib import Path

import pytest

from dvt.errors import ConfigError, DVTError
from dvt.safe_files import (
    HELD,
    content_of,
    explained,
    held,
    put_in_place,
    replacing,
    require_writable,
    scratch_folder,
    write_failure,
)


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path):
    path = tmp_path / "file"
    with replacing(path) as written:
        written.write_text("first")
    with pytest.raises(ZeroDivisionError), replacing(path) as written:
        written.write_text("second")
        raise ZeroDivisionError
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["file"]


def test_what_killed_processes_left_is_removed(tmp_path: Path):
    for name, files in (("empty", []), ("unlocked", ["lock", "file"])):
        (tmp_path / f".file.saving-{name}").mkdir()
        for file in files:
            (tmp_path / f".file.saving-{name}" / file).touch()
    with replacing(tmp_path / "file") as written:
        written.touch()
    assert os.listdir(tmp_path) == ["file"]


def test_a_scratch_folder_leaves_only_what_was_put_in_place(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), scratch_folder(tmp_path, "run") as scratch:
        for name in ("file", "other"):
            (scratch / name).write_text(name)
            (scratch / name).chmod(0o400)
        put_in_place(scratch / "file", tmp_path / "file")
        raise ZeroDivisionError
    (tmp_path / "plain").touch()
    assert sorted(os.listdir(tmp_path)) == ["file", "plain"]
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_check_leaves_nothing_and_a_held_folder_is_made(tmp_path: Path):
    require_writable(tmp_path / "new" / "folder")
    assert os.listdir(tmp_path) == []
    with held(tmp_path / "new" / "folder", "a test"):
        assert os.listdir(tmp_path / "new" / "folder") == [HELD]
    assert os.listdir(tmp_path) == []
    with held(tmp_path / "new" / "folder", "a test"):
        (tmp_path / "new" / "folder" / "kept").touch()
    assert os.listdir(tmp_path / "new" / "folder") == ["kept"]


def test_a_folder_that_was_removed_is_named(tmp_path: Path):
    path, message = tmp_path / "run" / "a", "cannot write .*run/a: .*: the folder .*run is gone"
    with pytest.raises(DVTError, match=message), explained(path), replacing(path):
        pass


@pytest.mark.parametrize("name", ["file", "file/run", "file/run/deeper"])
def test_a_file_in_the_place_of_a_folder_is_named(name: str, tmp_path: Path):
    (tmp_path / "file").touch()
    message = f"cannot write to the output folder .*{name}: .*: .*/file is a file; choose another folder"
    with pytest.raises(ConfigError, match=message):
        require_writable(tmp_path / name)


@pytest.mark.parametrize(
    ("number", "to_do"),
    [
        (errno.ENOSPC, "MiB are free in .*; make room or choose another folder"),
        (errno.EACCES, "Permission denied; choose another folder, or change its permissions"),
        (errno.EROFS, "Read-only file system; choose another folder"),
    ],
)
def test_every_refusal_of_the_system_says_what_to_do(number: int, to_do: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=f"cannot write .*file: .*{to_do}"), explained(tmp_path / "file", ConfigError):
        raise OSError(number, os.strerror(number))


def test_the_space_is_told_where_the_folder_is_yet_to_be_made(tmp_path: Path):
    message = write_failure(tmp_path / "new" / "file", OSError(errno.ENOSPC, "No space left on device"))
    assert f"MiB are free in {tmp_path};" in message


@pytest.mark.parametrize(
    ("start", "kind", "words"),
    [
        (b"", "empty", "empty"),
        (b"\n\n# Notes\n\nof mine", "text", "begins with '# Notes of mine'"),
        ("\ufeffZusammenfassung: größer".encode(), "text", "'Zusammenfassung"),
        (b"x" + "é".encode() * 400, "text", "begins with 'xé"),  # longer than what is looked at, and cut in a character
        (b"x" + b"\xe9", "", ""),
        (b"\x0a\xa8\x02\x0a\x11\x65exits.0", "MindSpore", "MindSpore checkpoint"),
        (b"\x80\x02}q\x00", "PyTorch", "PyTorch"),
        (b"PK\x03\x04", "PyTorch", "PyTorch"),  # cut short
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "other", "a PNG image"),
        (b"\x40\0\0\0\0\0\0\0{", "safetensors", "safetensors"),
        (bytes(8), "", ""),
    ],
)
def test_what_a_file_is_by_its_content(start: bytes, kind: str, words: str, tmp_path: Path):
    (tmp_path / "file").write_bytes(start)
    found, described = content_of(tmp_path / "file")
    assert found == kind and words in described


def test_archives_are_known_by_their_first_file(tmp_path: Path):
    for name, kind in (("labels.npy", "arrays"), ("model/data.pkl", "PyTorch"), ("[Content_Types].xml", "other")):
        with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
            archive.writestr(name, "content")
        assert content_of(tmp_path / "archive")[0] == kind
