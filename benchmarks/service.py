"""Latency percentiles and answers per second of the example service at several numbers of clients at once.

    python benchmarks/service.py
    python benchmarks/service.py --thresholds 2,2,0 --options --limits.max_batch=1
    python benchmarks/service.py --bundle BUNDLE --images FOLDER --setting fast --concurrency 1 8 32 --json out.json

The service runs in a process of its own. Each client keeps one connection and sends its next image when it has the
answer to the last ("closed loop"); clients and service share the machine. Without --bundle the model of
checkpoints/quickstart.ckpt is exported; without --images test images of its data, Fashion-MNIST "scale", are sent as
PNG files. service.json beside this file holds the numbers that docs/service.md quotes.
"""

import argparse
import contextlib
import http.client
import io
import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deploy import machine

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

PERCENTILES = (50, 90, 99)
CHECKPOINT = ROOT / "checkpoints/quickstart.ckpt"
TEST_IMAGES = 500
WARM_UP = 50


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", help="folder that export.py wrote")
    parser.add_argument("--images", type=Path, help="folder of image files")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--setting", help="named thresholds of the bundle; by default its first")
    budget.add_argument("--thresholds", help="thresholds, one per exit: 2,2,0 sends every image through three exits")
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=2000, help="requests per number of clients")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="all that follows goes to serve.py")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    budget = {key: value for key in ("setting", "thresholds") if (value := getattr(options, key)) is not None}
    query = "?" + urllib.parse.urlencode(budget)
    with tempfile.TemporaryDirectory() as scratch:
        bundle = options.bundle or export(Path(scratch) / "bundle")
        images = test_images() if options.images is None else read_images(options.images)
        report = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "budget": budget}
        report |= {"options": options.options, "levels": []}
        for clients in options.concurrency:
            with service(bundle, options.options) as port:  # started again, so that its counters are of this level
                load(port, images, query, 1, WARM_UP)
                before = batches(port)
                level = load(port, images, query, clients, options.requests)
                level["batch_sizes"] = mean_batch_sizes(before, batches(port))
            report["levels"].append(level)
    sys.stdout.write(table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def export(folder: Path) -> str:
    """The quick start model as a bundle."""
    command = [sys.executable, str(ROOT / "export.py"), "--checkpoint", str(CHECKPOINT), "--format", "ONNX"]
    subprocess.run([*command, "--output", str(folder)], check=True, capture_output=True)
    return str(folder)


def test_images() -> list[bytes]:
    """Test images of Fashion-MNIST "scale" as PNG files."""
    from dvt.config import DataSection
    from dvt.data import load_splits

    splits = load_splits(DataSection(dataset="fashion_mnist_scale", item_sizes=[14, 28, 54]), 54, seed=0)
    values = (
        splits.batch("val", range(TEST_IMAGES))[0][:, 0] * splits.preprocessing["std"][0]
        + splits.preprocessing["mean"][0]
    )
    return [png(np.rint(255 * pixels).clip(0, 255).astype(np.uint8)) for pixels in values]


def png(pixels: np.ndarray) -> bytes:
    """Pixels (H, W) as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def read_images(folder: Path) -> list[bytes]:
    """Every file below a folder."""
    files = [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]
    if not files:
        raise SystemExit(f"error: there are no files in {folder}")
    return files


@contextlib.contextmanager
def service(bundle: str, options: list[str]) -> Iterator[int]:
    """Runs the service; gives its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "examples/serve.py"), bundle, "--port", str(port)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([*command, "--limits.drain_seconds=0", *options], stdout=log, stderr=log)
        try:
            for _ in range(300):
                with contextlib.suppress(OSError):
                    get(port, "/healthz")
                    break
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(f"the service did not start:\n{log.read()}")
                time.sleep(0.1)
            yield port
        finally:
            process.terminate()
            process.wait(timeout=30)


def load(port: int, images: list[bytes], query: str, clients: int, requests: int) -> dict[str, Any]:
    """Sends `requests` images from so many clients at once."""
    numbers, lock = iter(range(requests)), threading.Lock()
    seconds: list[float] = []
    exits: list[int] = []
    refused: list[int] = []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                break
            started = time.perf_counter()
            connection.request("POST", "/predict" + query, images[number % len(images)])
            answer = connection.getresponse()
            content = json.loads(answer.read())
            if answer.status != 200:
                refused.append(answer.status)
                continue
            seconds.append(time.perf_counter() - started)
            exits.append(content["exit"])
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - started
    if not seconds:
        raise SystemExit(f"no request was answered; statuses: {sorted(set(refused))}")
    return {
        "clients": clients,
        "answered": len(seconds),
        "refused": len(refused),
        "per_second": len(seconds) / wall,
        "latency_ms": {f"p{p}": 1000 * float(np.percentile(seconds, p)) for p in PERCENTILES},
        "exit_shares": (np.bincount(exits)[1:] / len(exits)).tolist(),
    }


def get(port: int, path: str) -> str:
    """The text of a page of the service."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def batches(port: int) -> np.ndarray:
    """(exits, 2): images that every exit has run on, and in how many runs."""
    text = get(port, "/metrics")
    columns = [re.findall(rf'dvt_batch_size_{name}{{exit="\d+"}} (\S+)', text) for name in ("sum", "count")]
    return np.array(columns, float).T


def mean_batch_sizes(before: np.ndarray, after: np.ndarray) -> list[float]:
    """Images per run of every exit in between."""
    padded = np.zeros_like(after)  # exits that had not run before have no line there
    padded[: len(before)] = before
    images, runs = (after - padded).T
    return (images / np.maximum(runs, 1)).tolist()


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    heads = "".join(f"{f'p{p} ms':>9}" for p in PERCENTILES)
    lines = [report["machine"], f"{'clients':>8}{heads}{'answers/s':>11}{'refused':>9}  images per run of each exit"]
    for level in report["levels"]:
        columns = "".join(f"{level['latency_ms'][f'p{p}']:>9.1f}" for p in PERCENTILES)
        sizes = ", ".join(f"{size:.1f}" for size in level["batch_sizes"])
        lines.append(f"{level['clients']:>8}{columns}{level['per_second']:>11.1f}{level['refused']:>9}  {sizes}")
    shares = ", ".join(f"{100 * share:.1f} %" for share in report["levels"][0]["exit_shares"])
    return "\n".join([*lines, f"left at the exits: {shares}"]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
