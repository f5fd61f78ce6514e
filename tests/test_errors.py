"""What a clumsy user sees: one message with what was given and what to do, exit code 2, and no traceback."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dvt.cli import main as cli
from dvt.cli.launch import main as launch
from dvt.cli.support import run_command
from dvt.errors import ConfigError, work_begun

ROOT = Path(__file__).parents[1]
NOBODY = 65534

Main = Callable[[list[str]], int]


@pytest.fixture
def clumsy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with files of the wrong kind."""
    monkeypatch.chdir(tmp_path)
    for name in ("folder", "images", "bundle"):
        (tmp_path / name).mkdir()
    np.savez(tmp_path / "arrays.npz", labels=np.arange(3))
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    for name in ("empty.ckpt", "empty.yaml"):
        (tmp_path / name).touch()
    for name in ("text", "text.ckpt", "text.npz", "text.yaml", "text.pth"):
        (tmp_path / name).write_text("some notes: [")
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], main: Main, arguments: str) -> str:
    """The message of a call that must be refused; nothing but it may be printed."""
    assert main(arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: "), captured.err
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


# Arguments; what was given, as the message names it; what to do.
COMMANDS = [
    ("trian", "'trian'", "did you mean 'train'?"),
    ("train --model.name dvt_deit_smal", "'dvt_deit_smal'", "did you mean 'dvt_deit_small'?"),
    ("train --data.dataset fashion", "'fashion'", "it must be one of image_folder, cifar10"),
    ("train --data.path images --output run", "images has no folder train/", "images belong in train/CLASS/"),
    ("train --resume --output run", "run/state.ckpt", "leave --resume out"),
    ("train --config folder", "folder is a folder", "give a configuration file in YAML"),
    ("train --config empty.yaml", "empty.yaml is empty", "it must hold keys with values"),
    ("eval --checkpoint a.ckpt --config empty.yaml", "empty.yaml is empty", "it must hold keys with values"),
    ("train --config text.yaml", "text.yaml, line 1", "is not valid YAML"),
    ("train --config txt.yaml", "txt.yaml", "did you mean text.yaml?"),
    ("train --output text --data.path images", "output folder text: File exists: text is a file", "choose another"),
    (
        "train --output text/run --data.path images",
        "folder text/run: Not a directory: text is a file",
        "choose another",
    ),
    ("eval", "checkpoint", "`dvt eval --help`"),
    ("eval --checkpoint folder", "folder is a folder", "There is none in folder"),
    ("eval --checkpoint non.ckpt", "non.ckpt", "empty.ckpt, text.ckpt"),
    ("eval --checkpoint text", "text is not a checkpoint but a text file", "copy or save it again"),
    ("eval --checkpoint text.ckpt", "text.ckpt is not a checkpoint but a text file", "copy or save it again"),
    ("eval arrays.npz", "arrays.npz is not a checkpoint but a file of NumPy arrays", "`dvt thresholds arrays.npz`"),
    ("eval --checkpoint empty.ckpt", "empty.ckpt is not a checkpoint but an empty file", "copy or save it again"),
    ("export", "checkpoint", "`dvt export --help`"),
    ("export --checkpoint text.ckpt --format ONX", "'ONX'", "choose from MINDIR, ONNX"),
    ("export --checkpoint text.ckpt", "text.ckpt is not a checkpoint but a text file", "copy or save it again"),
    ("predict", "images", "`dvt predict --help`"),
    ("predict images", "the folder images holds no images", "files must end in .jpg"),
    ("predict text --topp 3", "--topp", "did you mean '--top'?"),
    ("predict text --checkpoint text.ckpt", "text.ckpt is not a checkpoint but a text file", "copy or save it again"),
    ("thresholds folder", "folder/predictions.npz", "`dvt eval` writes"),
    ("thresholds text.npz", "text.npz is not a predictions file", "but a text file that begins with"),
    ("thresholds arrays.npz", "arrays.npz lacks confidence, predicted, cost: it holds labels", "(K exits, n images)"),
    ("report non.ckpt --output report", "non.ckpt", "Checkpoints in ."),
    ("info dvt_deit_smal", "'dvt_deit_smal'", "did you mean"),
    ("infer", "bundle, data_path", "`dvt infer --help`"),
    ("infer folder images", "folder is not a bundle", "make one with export.py"),
    ("infer text images", "text is not a bundle, which is a folder, but a text file", "give the folder"),
    ("infer bundle images", "bundle/manifest.json", "Export the checkpoint again"),
    ("infer bundle images --batch-sise 3", "--batch_sise", "did you mean '--batch_size'?"),
    ("infer bundle images --backend onx", "'onx'", "choose from"),
    ("eval bundle", "bundle is a folder, not a checkpoint. It is a bundle", "`dvt infer` runs it"),
    ("convert", "input, output", "`dvt convert --help`"),
    ("convert non.pth out.ckpt", "non.pth", "there is no"),
    (
        "convert text.pth out.ckpt",
        "text.pth is not a checkpoint but a text file",
        "'some notes: ['; copy or save it again",
    ),
    (
        "convert text.ckpt out.pth.tar --to-pytorch",
        "text.ckpt is not a checkpoint but a text file",
        "copy or save it again",
    ),
    ("convert a b --to-pytorch --weights k", "--weights is for PyTorch files", "one set of weights"),
    ("records", "data_path, output", "--help` shows how to call it"),
    ("records nowhere out", "nowhere is not a folder", "holds train/CLASS/"),
    ("records images out --shards x", "shards is 'x'", "whole number"),
    ("records images out --shard 3", "--shard", "did you mean '--shards'?"),
    ("records images out --part trian", "'trian'", "there are train, val"),
    ("lite folder cpu", "folder is not a bundle", "make one with export.py"),
    ("lite folder gpu", "'gpu'", "one of cpu, ascend"),
]

SCRIPTS = [
    (launch, "--device_num x", "device_num is 'x'", "whole number"),
    (launch, "--device_num 2 -- --train.epoch 3", "--train.epoch", "did you mean '--train.epochs'?"),
]


@pytest.mark.parametrize(("arguments", "given", "to_do"), COMMANDS)
def test_commands_say_what_was_given_and_what_to_do(
    arguments: str, given: str, to_do: str, clumsy: Path, capsys: pytest.CaptureFixture[str]
):
    message = refused(capsys, cli.main, arguments)
    assert given in message
    assert to_do in message


@pytest.mark.parametrize(("main", "arguments", "given", "to_do"), SCRIPTS)
def test_scripts_say_what_was_given_and_what_to_do(
    main: Main, arguments: str, given: str, to_do: str, clumsy: Path, capsys: pytest.CaptureFixture[str]
):
    message = refused(capsys, main, arguments)
    assert given in message
    assert to_do in message


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """As a user whom file permissions bind; root they do not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    "arguments", ["eval --checkpoint text.ckpt", "train --config text.yaml", "thresholds text.npz"]
)
def test_unreadable_files_are_named(arguments: str, clumsy: Path, capsys: pytest.CaptureFixture[str]):
    import mindspore  # noqa: F401  the other user may not read where it is installed

    path = arguments.split()[-1]
    for folder in (clumsy, *clumsy.parents[:2]):  # pytest's are for their owner alone
        folder.chmod(0o755)
    Path(path).chmod(0)
    with unprivileged():
        message = refused(capsys, cli.main, arguments)
    assert path in message
    assert "Permission denied" in message


def test_debug_shows_the_traceback_of_a_mistake(clumsy: Path, capsys: pytest.CaptureFixture[str]):
    for arguments in ("eval --checkpoint folder --debug", "infer folder images --debug", "predict images --debug"):
        assert cli.main(arguments.split()) == 2
        text = capsys.readouterr().err
        assert "Traceback (most recent call last):" in text
        assert text.splitlines()[-1].startswith("error: ")


def test_a_bug_says_so_and_where_its_traceback_is(capsys: pytest.CaptureFixture[str]):
    def command(argv: list[str]) -> int:
        return 1 // len(argv[1:])

    assert run_command(command, ["x"]) == 1
    text = capsys.readouterr().err
    assert text.startswith("internal error: ZeroDivisionError: ")
    assert "bug in dvt" in text
    assert "--debug" in text
    assert "Traceback" not in text

    def debugged(argv: list[str]) -> int:
        raise IndexError("no such exit")

    assert run_command(debugged, ["--debug"]) == 1
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert "internal error: IndexError: no such exit\n" in text


def system_error(number: int) -> OSError:
    return OSError(number, os.strerror(number), "/some/file")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (system_error(errno.ENOSPC), 1, "free some space, then run this again. The system said: OSError: [Errno 28]"),
        (system_error(errno.EACCES), 2, "/some/file cannot be used: Permission denied; give another path"),
        (system_error(errno.EROFS), 2, "/some/file cannot be used: Read-only file system; give another path"),
        (system_error(errno.EMFILE), 1, "too many open files; raise the limit (`ulimit -n`)"),
        (MemoryError(), 1, "not enough memory"),
        (RuntimeError("Compile failed\n std::bad_alloc"), 1, "not enough memory"),
        (RuntimeError("#umsg#Memory not enough:#umsg#Memory isn't enough"), 1, "not enough memory"),
        (ImportError("x.so: failed to map segment from shared object"), 1, "not enough memory"),
        (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), 1, "no more processes or threads may be started"),
        (RuntimeError("can't start new thread"), 1, "no more processes or threads may be started"),
    ],
)
def test_limits_of_the_system_are_no_bugs(error: Exception, code: int, words: str, capsys: pytest.CaptureFixture[str]):
    def command(argv: list[str]) -> None:
        raise error

    assert run_command(command, []) == code
    text = capsys.readouterr().err
    assert text.startswith("error: ") and words in text and text.count("\n") == 1


def test_exit_codes_and_messages_of_commands_are_kept(capsys: pytest.CaptureFixture[str]):
    def refuse(argv: list[str]) -> None:
        raise ConfigError("x is 3; it must be 4")

    assert run_command(lambda argv: None, []) == 0
    assert run_command(lambda argv: 7, []) == 7
    assert run_command(refuse, []) == 2
    assert capsys.readouterr().err == "error: x is 3; it must be 4\n"

    def fail(argv: list[str]) -> None:
        with work_begun():
            refuse(argv)

    assert run_command(fail, []) == 1
    assert capsys.readouterr().err == "error: x is 3; it must be 4\n"


def test_a_reader_that_goes_away_ends_the_command_quietly():
    command = f"set -o pipefail; '{sys.executable}' -m dvt.cli.start infer --help | true; echo ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, env=environment)
    assert done.stderr == ""
    assert done.stdout in ("141\n", "0\n")  # 0 where all was written before the reader went
    command = f"'{sys.executable}' {ROOT / 'train.py'} --print_config > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "free some space" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_text_can_be_printed(encoding: str):
    """Class names of any script and file names that are not text, whatever the locale."""
    code = (
        "import sys; from dvt.cli.support import run_command\n"
        r"text = '\u9752 caf\xe9 \udcff'; print_both = lambda argv: [print(text), print(text, file=sys.stderr)] and 0"
        "\nsys.exit(run_command(print_both, []))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, env=environment)
    assert done.returncode == 0 and done.stdout == done.stderr
    assert done.stdout.decode(encoding).endswith("\\udcff\n")


def test_without_a_home_folder_caches_are_temporary(monkeypatch: pytest.MonkeyPatch):
    """As in a container whose user is only a number."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, "set and put back")
        monkeypatch.delenv(name)
    assert run_command(lambda argv: Path(os.environ["XDG_CACHE_HOME"]).stat().st_mode & 0o777 == 0o700 and 7, []) == 7


def evaluation(output: Path) -> subprocess.Popen:
    """Of the small model that is shipped."""
    checkpoint = ROOT / "checkpoints" / "quickstart.ckpt"
    command = [sys.executable, ROOT / "eval.py", "--checkpoint", checkpoint, "--output", output]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 0.8])
def test_an_interrupt_while_mindspore_is_imported_ends_with_130(seconds: float, tmp_path: Path):
    process = evaluation(tmp_path)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, b"interrupted\n")


@pytest.mark.slow
def test_an_interrupt_of_an_evaluation_ends_with_130(tmp_path: Path):
    """Also where MindSpore turns it into another error, or drops it."""
    process = evaluation(tmp_path)
    said = b""
    while b"device: " not in said:
        assert process.poll() is None, said
        said += process.stderr.read1()
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert rest.endswith(b"interrupted\n") and b"Traceback" not in rest
