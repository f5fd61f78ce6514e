"""Latency and images per second of a bundle's exits and of its cascade, per backend and batch size.

    python benchmarks/deploy.py --model dvt_deit_small --backends onnxruntime mindspore --batch_sizes 1 8
    python benchmarks/deploy.py --bundle runs/mine/export --rounds 50 --json out.json
    python benchmarks/deploy.py --backends openvino --format ONNX --precision bfloat16

Loading (files hashed and loaded) and preprocessing (a JPEG file to a model input) are measured apart. Each backend
runs in a process of its own, so that its peak memory is its own; a large matrix product is timed in turn with it, so
that a busy machine is equally busy for both. Without --bundle, a model with fresh weights is exported first, whose
times are those of any weights.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SRC = Path(__file__).resolve().parents[1] / "src"
sys.path.insert(0, str(SRC))

from dvt.data.preprocess import Preprocessing  # noqa: E402
from dvt.deploy import Cascade  # noqa: E402
from dvt.deploy.backends import BACKENDS  # noqa: E402
from dvt.early_exit import ALWAYS, NEVER  # noqa: E402
from dvt.errors import DVTError  # noqa: E402

MATMUL_SIZE = 2048
PHOTO_SIZE = (500, 375)  # pixels of the JPEG file, a usual size in ImageNet
PERCENTILES = (50, 90, 99)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", help="folder that export.py wrote")
    parser.add_argument("--model", default="dvt_deit_small", help="model to export where there is no bundle")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=["onnxruntime"])
    parser.add_argument("--format", help="files to run, such as ONNX_INT8; by default those that the backend takes")
    parser.add_argument("--precision", default="float32", help="bfloat16 for openvino")
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--one", choices=BACKENDS, help=argparse.SUPPRESS)  # one backend, in this process
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options)))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        bundle = options.bundle or export_fresh(options.model, options.backends, scratch)
        results = [run_apart(options, backend, bundle) for backend in options.backends]
    report = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "results": results}
    sys.stdout.write(table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def export_fresh(model: str, backends: list[str], folder: str) -> str:
    """A bundle of a model with fresh weights."""
    from dvt import device
    from dvt.deploy import export_bundle
    from dvt.models.cascade import build_model

    device.set_up("CPU")
    formats = sorted({BACKENDS[backend][1][0] for backend in backends} - {"LITE"})
    export_bundle(build_model(model), folder, formats or ["ONNX"])
    return folder


def run_apart(options: argparse.Namespace, backend: str, bundle: str) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--bundle", bundle, "--one", backend, "--rounds", str(options.rounds)]
    command += ["--batch_sizes", *map(str, options.batch_sizes)]
    for name in ("format", "threads", "precision"):
        if getattr(options, name) is not None:
            command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"measuring {backend} failed; its message is above")
    return json.loads(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All numbers of one backend."""
    try:
        started = time.perf_counter()
        runtime = {"threads": options.threads, "precision": options.precision}
        cascade = Cascade(options.bundle, options.one, options.format, **runtime)
        load_seconds = time.perf_counter() - started
    except DVTError as error:
        raise SystemExit(f"error: {error}") from None
    manifest = cascade.manifest
    return {
        "backend": options.one,
        "runs_on": cascade.runs_on,
        "format": cascade.graph_format,
        "model": manifest.model.name,
        "load_seconds": load_seconds,
        "preprocess_ms": preprocess_ms(manifest.model.image_size, manifest.model.in_channels),
        "batches": [measure_batch(cascade, size, options.rounds) for size in options.batch_sizes],
        "peak_gb": peak_bytes() / 1e9,
    }


def measure_batch(cascade: Cascade, batch: int, rounds: int) -> dict[str, Any]:
    """Latencies of one batch size: of each exit, of all exits, and with the bundle's default thresholds, if any."""
    model, rng = cascade.manifest.model, np.random.default_rng(0)
    shape = (batch, model.in_channels, model.image_size, model.image_size)
    images = rng.standard_normal(shape, dtype=np.float32)
    every_exit = [NEVER] * (model.num_exits - 1) + [ALWAYS]
    square = rng.standard_normal((MATMUL_SIZE, MATMUL_SIZE), dtype=np.float32)
    given, handed_on = [], {}
    for index in range(model.num_exits):
        given.append(handed_on)
        _, handed_on = cascade.run_exit(index, images, handed_on)

    runs: dict[str, Callable[[], object]] = {
        f"exit {index + 1}": lambda index=index: cascade.run_exit(index, images, given[index])
        for index in range(model.num_exits)
    }
    runs["all exits"] = lambda: cascade.predict(images, every_exit)
    if cascade.thresholds:
        runs["default thresholds"] = lambda: cascade.predict(images)
    runs["matrix product"] = lambda: square @ square
    seconds = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if number > 0:  # the first warms up
                seconds[name].append(time.perf_counter() - started)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    matmul_rate = MATMUL_SIZE**3 / 1e9 / medians.pop("matrix product")
    rate = cascade.manifest.cumulative_gmacs[-1] * batch / medians["all exits"]
    return {
        "batch_size": batch,
        "latency_ms": {
            name: {f"p{p}": 1000 * float(np.percentile(seconds[name], p)) for p in PERCENTILES} for name in medians
        },
        "images_per_second": {name: batch / value for name, value in medians.items()},
        "gmacs_per_second": rate,
        "matmul_gmacs_per_second": matmul_rate,
        "fraction_of_matmul": rate / matmul_rate,
    }


def preprocess_ms(image_size: int, in_channels: int) -> float:
    """Milliseconds from a JPEG file to a model input, on one thread; the median of 20."""
    preprocessing = Preprocessing(
        "benchmark", image_size, round(image_size * 256 / 224), in_channels, (0.5,) * in_channels, (0.5,) * in_channels
    )
    smooth = np.random.default_rng(0).integers(0, 256, (PHOTO_SIZE[1] // 25, PHOTO_SIZE[0] // 25, 3), np.uint8)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo.jpg"
        Image.fromarray(smooth).resize(PHOTO_SIZE, Image.Resampling.BICUBIC).save(path, quality=90)
        for _ in range(20):
            started = time.perf_counter()
            preprocessing(path)
            seconds.append(time.perf_counter() - started)
    return 1000 * float(np.median(seconds))


def peak_bytes() -> int:
    """Peak resident memory of this process. Linux; `getrusage` would start from the peak of the parent."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def machine() -> str:
    """Processor and cores."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [report["machine"]]
    for result in report["results"]:
        lines.append(
            f"\n{result['model']}, {result['runs_on']} ({result['format']}): loaded in {result['load_seconds']:.1f} s, "
            f"preprocessing {result['preprocess_ms']:.1f} ms per image, peak memory {result['peak_gb']:.2f} GB"
        )
        lines.append(f"{'batch':>6} {'what':<20} {'p50 ms':>9} {'p90 ms':>9} {'p99 ms':>9} {'images/s':>9}")
        for batch in result["batches"]:
            for name, latency in batch["latency_ms"].items():
                columns = " ".join(f"{latency[f'p{p}']:>9.1f}" for p in PERCENTILES)
                lines.append(f"{batch['batch_size']:>6} {name:<20} {columns} {batch['images_per_second'][name]:>9.1f}")
            lines.append(
                f"{'':>6} all exits: {batch['gmacs_per_second']:.1f} GMAC/s, {batch['fraction_of_matmul']:.2f} of a "
                f"{MATMUL_SIZE}x{MATMUL_SIZE} matrix product ({batch['matmul_gmacs_per_second']:.1f} GMAC/s)"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
