"""docker/service.Dockerfile without Docker: its files, installation, start and health check, as the file has them."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from service import ROOT, photographs, wait_until

FILE = ROOT / "docker" / "service.Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """(name, rest) of each line; none is continued."""
    lines = [line.split(" ", 1) for line in FILE.read_text().splitlines() if line and not line.startswith("#")]
    return [(name, rest) for name, rest in lines]


def rest_of(name: str) -> str:
    [rest] = [rest for each, rest in instructions() if each == name]
    return rest


def test_it_does_not_run_as_root_and_is_checked():
    names = [name for name, _ in instructions()]
    assert names.index("USER") < names.index("ENTRYPOINT") and rest_of("USER") == "dvt"
    assert any("useradd" in rest and rest.endswith(" dvt") for name, rest in instructions() if name == "RUN")
    assert rest_of("FROM").endswith("-slim") and "HEALTHCHECK" in names


@pytest.mark.slow
def test_what_it_installs_serves_a_bundle(service_bundle: Path, tmp_path: Path):
    work = tmp_path / "work"
    for _, rest in (each for each in instructions() if each[0] == "COPY"):
        *sources, target = rest.split()
        for source in sources:
            copied = work / target if (ROOT / source).is_dir() else work / target / source
            copied.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, copied, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, copied)
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"PATH": f"{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}"}

    def run(command: list[str]) -> subprocess.CompletedProcess:
        done = {"capture_output": True, "text": True, "timeout": 600, "check": False}
        return subprocess.run(command, cwd=work, env=environment, **done)

    assert run([sys.executable, "-m", "venv", str(tmp_path / "venv")]).returncode == 0
    one = next(line for line in (ROOT / "requirements-serve.txt").read_text().splitlines() if line.startswith("h11"))
    if run(["python", "-m", "pip", "install", "-q", one]).returncode:
        pytest.skip("no package index can be reached")
    [install] = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    installed = run(["bash", "-c", install])
    assert installed.returncode == 0, installed.stderr
    assert run(["python", "-m", "pip", "check"]).returncode == 0
    assert run(["python", "-c", "import mindspore"]).returncode == 1

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    start = json.loads(rest_of("ENTRYPOINT")) + json.loads(rest_of("CMD"))
    start = [{"/bundle": str(service_bundle), "8000": port}.get(word, word) for word in start]
    check = json.loads(re.search(r"CMD (\[.*\])", rest_of("HEALTHCHECK"))[1])
    check = [word.replace(":8000/", f":{port}/") for word in check]
    assert port in start and any(port in word for word in check) and run(check).returncode == 1
    with (tmp_path / "log").open("w") as log:
        service = subprocess.Popen(start, cwd=work, env=environment, stdout=log, stderr=log)
    try:
        wait_until(lambda: run(check).returncode == 0)
        request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", photographs(1)[0])
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert json.loads(answer.read())["label"]
    finally:
        service.terminate()
        service.wait(timeout=30)
    assert run(check).returncode == 1 and "Traceback" not in (tmp_path / "log").read_text()
