"""Seconds from the start of a process to the answer for one image, and where they go.

    python benchmarks/cold_start.py --json out.json

Cases: the quick start's checkpoint and a DVT-DeiT-S of random weights that goes through all exits. "Command" is
`dvt predict` as a user runs it, from start to end of the process; the parts are measured in other processes that do the
same things one by one. Medians of the rounds; the first round, which reads files from the disk, does not count.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "from dvt.cli.start import dvt; raise SystemExit(dvt())"
PARTS = ("import", "read weights", "compile", "first image", "next image")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--parts", nargs=2, metavar=("CHECKPOINT", "IMAGE"), help=argparse.SUPPRESS)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)  # write DVT-DeiT-S of random weights there
    arguments = parser.parse_args()
    if arguments.parts:
        print(json.dumps(measure_parts(*arguments.parts)))
        return 0
    if arguments.make:
        return make_checkpoint(arguments.make)

    with tempfile.TemporaryDirectory() as scratch:
        image, big = Path(scratch) / "image.png", Path(scratch) / "deit.ckpt"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8)).save(image)
        python(__file__, "--make", str(big))
        rows = []
        for name, checkpoint in (("quick start", ROOT / "checkpoints" / "quickstart.ckpt"), ("dvt_deit_small", big)):
            rounds = []
            for _ in range(1 + arguments.rounds):
                started = time.perf_counter()
                python("-c", COMMAND, "predict", str(image), "--checkpoint", str(checkpoint))
                command = time.perf_counter() - started
                parts = json.loads(python(__file__, "--parts", str(checkpoint), str(image)).splitlines()[-1])
                rounds.append({"command": command, **parts})
            rows.append(
                {"case": name} | {key: float(np.median([each[key] for each in rounds[1:]])) for key in rounds[0]}
            )
            print(table(rows[-1:], header=len(rows) == 1), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def python(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def measure_parts(checkpoint: str, image: str) -> dict[str, float]:
    times = [time.perf_counter()]

    def done() -> None:
        times.append(time.perf_counter())

    import mindspore  # noqa: F401

    from dvt import device
    from dvt.checkpoint import load_model
    from dvt.early_exit.classifier import AdaptiveClassifier
    from dvt.evaluation.predict import Preprocessing

    done()
    device.set_up("auto")
    model, loaded = load_model(checkpoint)
    done()
    classifier = AdaptiveClassifier(model, [2.0] * (loaded.model.num_exits - 1) + [0.0], batch_sizes=[1])
    shape = (1, loaded.model.in_channels, loaded.model.image_size, loaded.model.image_size)
    classifier.all_exits(np.zeros(shape, np.float32))
    done()
    for _ in range(2):
        classifier.predict(Preprocessing.from_dict(loaded.metadata["preprocessing"])(image)[None])
        done()
    return dict(zip(PARTS, np.diff(times).tolist(), strict=True))


def make_checkpoint(path: Path) -> int:
    from dvt import device
    from dvt.checkpoint import load_model, save_checkpoint
    from dvt.models.cascade import build_model

    device.set_up("auto")
    _, small = load_model(ROOT / "checkpoints" / "quickstart.ckpt")
    model = build_model("dvt_deit_small")
    changed = {"dataset": "image_folder", "image_size": 224, "resize_size": 256, "in_channels": 3}
    preprocessing = small.metadata["preprocessing"] | changed | {"mean": [0.5] * 3, "std": [0.5] * 3}
    save_checkpoint(path, model, {"preprocessing": preprocessing, "thresholds": [2.0, 2.0, 0.0]})
    return 0


def table(rows: list[dict], header: bool) -> str:
    lines = ["seconds          " + " ".join(f"{each:>12}" for each in ("command", *PARTS))] if header else []
    for row in rows:
        lines.append(f"{row['case']:<16} " + " ".join(f"{row[each]:>12.2f}" for each in ("command", *PARTS)))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
