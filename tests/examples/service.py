"""The example service in a process of its own, and a plain HTTP client for it."""

import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from dvt.deploy import Cascade

ROOT = Path(__file__).resolve().parents[2]
SERVE = ROOT / "examples/serve.py"


def preprocessed(cascade: Cascade, files: list[bytes]) -> np.ndarray:
    """The model inputs (B, C, S, S) of image files."""
    images = []
    for file in files:
        with Image.open(io.BytesIO(file)) as image:
            images.append(cascade.preprocessing(image))
    return np.stack(images)


class Answer(NamedTuple):
    """Status, headers and parsed JSON of an answer."""

    status: int
    headers: dict[str, str]
    content: Any


class Service:
    """`examples/serve.py` on a free port of this machine, where MindSpore cannot be imported.

    Use it in a `with` statement, which ends it. With `open_files`, it may have so many.
    """

    def __init__(self, bundle: Path, log: Path, *options: str, open_files: int | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = log
        hides = log.parent / "hides_mindspore"
        hides.mkdir()
        (hides / "mindspore.py").write_text("raise ModuleNotFoundError('hidden', name='mindspore')\n")
        command = [sys.executable, str(SERVE), str(bundle), "--port", str(self.port), *options]
        if open_files is not None:
            command = ["bash", "-c", f'ulimit -n {open_files}; exec "$@"', "bash", *command]
        environment = {**os.environ, "PYTHONPATH": str(hides)}
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Service":
        for _ in range(300):
            if self.process.poll() is not None:
                raise RuntimeError(self.log.read_text())
            try:
                with urllib.request.urlopen(f"{self.address}/healthz", timeout=5):
                    return self
            except OSError:
                time.sleep(0.1)
        self.process.kill()
        raise RuntimeError(f"the service did not start: {self.log.read_text()}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def stop(self) -> None:
        """SIGTERM, without waiting."""
        self.process.send_signal(signal.SIGTERM)

    def ask(self, body: bytes = b"", query: str = "", **headers: str) -> Answer:
        """POST /predict on a connection of its own."""
        return self.request("POST", "/predict" + query, body, headers)

    def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """One request; an iterable body is sent in chunks."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {}, encode_chunked=False)
            answer = connection.getresponse()
            text = answer.read().decode()
            is_json = answer.headers.get_content_type() == "application/json"
            return Answer(answer.status, dict(answer.headers), json.loads(text) if is_json and text else text)
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """The value of one line of /metrics, 0 where it is not there."""
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.request("GET", "/metrics").content, re.MULTILINE)
        return float(found[1]) if found else 0.0


def photographs(count: int) -> list[bytes]:
    """PNG files of parts of two photographs, of different sizes."""
    rng = np.random.default_rng(7)
    files = []
    for index in range(count):
        picture = load_sample_images().images[index % 2]
        side = int(rng.integers(40, 300))
        top, left = (int(rng.integers(0, size - side)) for size in picture.shape[:2])
        files.append(png(picture[top : top + side, left : left + side]))
    return files


def png(pixels: np.ndarray) -> bytes:
    """Pixels as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def wait_until(condition: Callable[[], bool]) -> None:
    """Raises TimeoutError if it does not come true."""
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise TimeoutError("it did not happen within 10 seconds")
