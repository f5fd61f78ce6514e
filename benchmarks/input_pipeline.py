"""Images per second of the input pipeline, and how many processor cores a machine of several cards needs for it.

    python benchmarks/input_pipeline.py --needed 3200 --json out.json

The images are made of the photographs that scikit-learn and matplotlib bring (pip install -r requirements-dev.txt), cut
and resized to the size of ImageNet's, with noise that brings them to its 110 KB. Rates are medians of rounds in which
everything is measured in turn, so that a noisy machine is equally noisy for all; what else runs slows them down. The
processor time per image, of the main process and its workers together, depends on that far less, so the cores that a
cluster needs are computed from it.
"""

import argparse
import json
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from tqdm import tqdm

from dvt import device
from dvt.config import AugmentSection, DataSection
from dvt.data import Splits, load_splits
from dvt.data.sources.record_writer import write_records

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "data"))
from data_files import photographs

IMAGE_SIZE = 224
CLASSES = 4
LONG_SIDE = 500
NOISE = 21.0
"""Standard deviation of the noise, in levels of 0..255; JPEG files then have about 110 KB."""
FULL = AugmentSection(policy="rand-m9-mstd0.5-inc1", interpolation="random", erasing=0.25, mixup=0.8, cutmix=1.0)
CROP = AugmentSection()


@dataclass
class Case:
    """One row of the table.

    Args:
        what: What is done.
        workers: Processes or threads.
        kind: "process" or "thread".
        run: Makes all batches once and returns the number of images.
    """

    what: str
    workers: int
    kind: str
    run: Callable[[], int]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=384, help="training images; a quarter as many to evaluate")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of processes and threads")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cards", type=int, default=8)
    parser.add_argument("--needed", type=float, default=3200, help="images/s that all cards of a machine take")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    logging.getLogger("dvt").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "photographs"
        kilobytes = make_photographs(root, arguments.images)
        write_records(root, Path(folder) / "records", shards=2)
        rows = measure(cases(root, Path(folder) / "records", arguments), arguments.rounds)
    report = {
        "machine": device.describe_machine(),
        "load_average": os.getloadavg()[0],
        "kilobytes_per_image": round(kilobytes, 1),
        "batch_size": arguments.batch_size,
        "rows": rows,
        "cluster": cluster(rows, arguments.cards, arguments.needed),
    }
    sys.stdout.write(table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def make_photographs(root: Path, count: int) -> float:
    """Writes an image folder of `count` training and `count` // 4 validation images; returns their mean size in KB."""
    sources = [Image.open(file).convert("RGB") for file in photographs()]
    if not sources:
        sys.exit("error: no photographs to make images of; pip install -r requirements-dev.txt")
    rng = np.random.default_rng(0)
    sizes = []
    for part, images in (("train", count), ("val", count // 4)):
        for i in tqdm(range(images), desc=f"making {part} images", unit="img"):
            file = root / part / f"class{i % CLASSES}" / f"{i:05}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            _variant(sources[i % len(sources)], rng).save(file, quality=90)
            sizes.append(file.stat().st_size)
    return float(np.mean(sizes)) / 1000


def _variant(source: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A large cut of a photograph with noise; three of four lie, one stands."""
    share = rng.uniform(0.6, 1)
    width, height = int(source.width * share), int(source.height * share)
    left, top = rng.integers(source.width - width + 1), rng.integers(source.height - height + 1)
    size = (LONG_SIDE, int(rng.integers(333, 420)))
    cut = source.crop((left, top, left + width, top + height))
    cut = cut.resize(size if rng.random() < 0.75 else size[::-1], Image.Resampling.BICUBIC)
    noisy = np.asarray(cut, np.float32) + rng.normal(0, NOISE, (cut.height, cut.width, 1))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def cases(root: Path, records: Path, arguments: argparse.Namespace) -> list[Case]:
    """Every recipe with every number of processes, and the full one with threads."""
    found = []
    for workers in arguments.workers:
        for kind in ("process", "thread"):
            load = partial(_load, kind=kind, workers=workers)
            todo = [("full recipe", load(root, augment=FULL), "train")]
            if kind == "process":
                todo += [
                    ("full recipe, MindRecord", load(records, augment=FULL), "train"),
                    ("crop and flip alone", load(root, augment=CROP), "train"),
                    ("evaluation", load(root, augment=CROP), "val"),
                ]
            for what, splits, split in todo:
                found.append(Case(what, workers, kind, _passes(splits, split, arguments.batch_size)))
    return found


def _load(root: Path, augment: AugmentSection, kind: str, workers: int) -> Splits:
    data = DataSection(path=str(root), worker_type=kind, workers=workers)
    return load_splits(data, IMAGE_SIZE, 0, augment, label_smoothing=0.1)


def _passes(splits: Splits, split: str, batch_size: int) -> Callable[[], int]:
    """Each call is a pass as training and evaluation make it; in training, the next epoch."""
    epochs = count()

    def run() -> int:
        if split == "train":
            return sum(len(images) for images, _ in splits.training(batch_size).epoch(next(epochs)))
        return sum(len(images) for images, _ in splits.batches(split, batch_size))

    return run


def measure(found: list[Case], rounds: int) -> list[dict]:
    """Medians of each case; the first round, in which processes start, does not count."""
    rates: list[list[float]] = [[] for _ in found]
    cpu_times: list[list[float]] = [[] for _ in found]
    with tqdm(total=(1 + rounds) * len(found), desc="measuring", unit="pass") as bar:
        for number in range(1 + rounds):
            for case, case_rates, case_cpu_times in zip(found, rates, cpu_times, strict=True):
                started, cpu_started = time.perf_counter(), cpu_seconds()
                images = case.run()
                if number > 0:
                    case_rates.append(images / (time.perf_counter() - started))
                    case_cpu_times.append((cpu_seconds() - cpu_started) / images)
                bar.update()
    rows = []
    for case, case_rates, case_cpu_times in zip(found, rates, cpu_times, strict=True):
        rate = float(np.median(case_rates))
        rows.append(
            {
                "what": case.what,
                "workers": case.workers,
                "kind": case.kind,
                "images_per_second": rate,
                "per_worker": rate / case.workers,
                "ratio": rate / float(np.median(rates[0])),
                "slowest": min(case_rates),
                "fastest": max(case_rates),
                "cpu_ms_per_image": 1000 * float(np.median(case_cpu_times)),
            }
        )
    return rows


def cpu_seconds() -> float:
    """Processor time of this process and of its workers so far."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children())]
    return sum(spent.user + spent.system for spent in times)


def cluster(rows: list[dict], cards: int, needed: float) -> dict:
    """What the full recipe in as many processes as were measured at most means for a machine of several cards."""
    processes = [row for row in rows if row["what"] == "full recipe" and row["kind"] == "process"]
    rate = 1000 / max(processes, key=lambda row: row["workers"])["cpu_ms_per_image"]
    return {
        "cards": cards,
        "images_per_second_needed": needed,
        "images_per_second_per_core": rate,
        "cores": math.ceil(needed / rate),
        "data_workers_per_card": math.ceil(needed / cards / rate),
    }


def table(report: dict) -> str:
    """The rows as text, and one sentence on the cluster."""
    lines = [
        f"{'what':<24} {'workers':>10} {'img/s':>6} {'per worker':>11} {'ratio':>6} {'slowest-fastest':>16}"
        f" {'CPU ms/img':>11}"
    ]
    for row in report["rows"]:
        spread = f"{row['slowest']:.0f}-{row['fastest']:.0f}"
        lines.append(
            f"{row['what']:<24} {row['workers']:>2} {row['kind']:>7} {row['images_per_second']:>6.0f}"
            f" {row['per_worker']:>11.0f} {row['ratio']:>6.2f} {spread:>16} {row['cpu_ms_per_image']:>11.2f}"
        )
    c = report["cluster"]
    lines.append(
        f"full recipe: {c['images_per_second_per_core']:.0f} images/s per core; {c['images_per_second_needed']:.0f} for"
        f" {c['cards']} cards take {c['cores']} cores like these, data.workers {c['data_workers_per_card']} per card"
    )
    lines.append(f"JPEG files of {report['kilobytes_per_image']:.0f} KB; load average {report['load_average']:.1f}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
