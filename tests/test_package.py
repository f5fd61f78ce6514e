"""The package as a user imports it: light, complete, and clear when MindSpore is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dvt

SRC = Path(__file__).parents[1] / "src"


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.parametrize("use", ["", "dvt.list_models()", "dvt.cost", "dvt.early_exit", "dvt.convert", "dir(dvt)"])
def test_plain_parts_do_not_import_mindspore(use: str):
    done = run_python(f"import sys, dvt\n{use}\nassert 'mindspore' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_every_public_name_resolves_and_is_listed():
    assert set(dvt.__all__) <= set(dir(dvt))
    for name in dvt.__all__:
        assert getattr(dvt, name) is not None


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'build_modle'"):
        _ = dvt.build_modle


def test_missing_mindspore_says_what_to_install():
    done = run_python("import sys\nsys.modules['mindspore'] = None\nimport dvt\ndvt.build_model")
    assert done.returncode != 0
    assert "dvt.build_model needs MindSpore" in done.stderr
    assert "dvt-mindspore[train]" in done.stderr
