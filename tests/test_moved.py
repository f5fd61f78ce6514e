"""Modules of 0.1.0 that are elsewhere now: old names import, warn, and are the new modules."""

import importlib
import subprocess
import sys

import pytest

from dvt.moved import MODULES


@pytest.mark.parametrize(("old", "new"), MODULES.items())
def test_an_old_name_warns_and_is_the_new_module(old: str, new: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, f"dvt.{old}", raising=False)
    with pytest.warns(DeprecationWarning, match=rf"dvt\.{old} is now dvt\.{new}$"):
        module = importlib.import_module(f"dvt.{old}")
    assert module is importlib.import_module(f"dvt.{new}")
    assert module.__name__ == module.__spec__.name == f"dvt.{new}"


def test_a_name_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError, match="dvt.adaptiv"):
        importlib.import_module("dvt.adaptiv")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False)


def test_new_names_do_not_warn():
    done = run(
        "-W", "error:dvt.:DeprecationWarning", "-c", f"import {', '.join(f'dvt.{new}' for new in MODULES.values())}"
    )
    assert done.returncode == 0, done.stderr


def test_the_package_runs_as_a_program():
    done = run("-W", "error:dvt.:DeprecationWarning", "-m", "dvt", "--version")
    assert done.returncode == 0 and done.stdout.startswith("dvt-mindspore "), done.stderr
    done = run("-m", "dvt", "nonsense")
    assert done.returncode == 2 and "unknown command 'nonsense'" in done.stderr


def test_an_old_name_runs_as_a_program():
    done = run("-m", "dvt.cluster.launch", "--help")
    assert done.returncode == 0 and "usage" in done.stdout, done.stderr
