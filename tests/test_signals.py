"""A command that is asked to stop ends with 130, whatever it is doing."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dvt.cli.support import run_command
from dvt.signals import INTERRUPTED, interrupt_on_signals, stop_done, stop_signals

SOURCE = Path(__file__).parents[1] / "src"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def as_from_a_terminal() -> Iterator[None]:
    """The handlers with which Python starts there; those of the tests afterwards."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    stop_done()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_work_is_interrupted(number: signal.Signals):
    interrupt_on_signals()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def test_an_interrupt_that_comes_back_as_another_error_is_one(capsys: pytest.CaptureFixture):
    """As MindSpore's C++ turns exceptions of the Python that it calls into a RuntimeError."""

    def command(argv: list[str]) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError from None

    interrupt_on_signals()
    assert run_command(command, []) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"
    assert run_command(lambda argv: 7, []) == 7  # nothing is left of it


def test_an_interrupt_that_is_lost_ends_the_process():
    """As MindSpore's C++ may drop an exception of the Python that it calls."""
    program = (
        "import contextlib, signal, time\nfrom dvt import signals\nsignals.GRACE = 0.3\n"
        "signals.interrupt_on_signals()\n"
        "with contextlib.suppress(KeyboardInterrupt):\n    signal.raise_signal(signal.SIGINT)\n"
        "time.sleep(50)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=40,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "interrupted\n")


@pytest.mark.parametrize("number", SIGNALS)
def test_what_is_ignored_stays_so(number: signal.Signals):
    signal.signal(number, signal.SIG_IGN)
    interrupt_on_signals()
    signal.raise_signal(number)
    assert (number in stop_signals()) == (number != signal.SIGHUP)


@pytest.mark.parametrize("number", SIGNALS)
def test_an_import_ends_the_process_at_once(number: signal.Signals, tmp_path: Path):
    """As those of MindSpore, whose C++ an exception would abort; here one that turns exceptions into its own."""
    (tmp_path / "heavy.py").write_text(
        f"import signal\ntry:\n    signal.raise_signal({int(number)})\nexcept BaseException:\n    raise ImportError\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "from dvt.cli.start import start; start('heavy')"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{tmp_path}"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "interrupted\n")


def test_a_package_that_is_missing_is_named(tmp_path: Path):
    (tmp_path / "heavy.py").write_text("import no_such_package\n")
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from dvt.cli.start import start; sys.exit(start('heavy'))"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{tmp_path}"},
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: no_such_package is not installed for {sys.executable}. Run ")
