"""Images per second, peak memory and step time of training, each case in a process of its own.

    python benchmarks/training.py --cases dvt_t2t_vit_12 quickstart --recompute both --json out.json
    python benchmarks/training.py --cases dvt_deit_small --against "python other.py"

A case is a variant (batch 8 at 224x224, 1000 classes) or "quickstart" (batch 64, the model of config/quickstart.yaml).
Peak memory is the largest resident set of a process that trains and does nothing else. Times are medians of interleaved
rounds. The step is broken down by graphs of its parts: the forward pass in training mode with all losses, the same with
gradients, and the whole step, whose rest is optimizer, moving average and checks; shares are differences of these.
--against names another command that is run once per round and prints its images per second as its last word.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from side_by_side import rate_of_other, seconds_of

from dvt.config import TrainSection
from dvt.config.files import load_config
from dvt.models.variants import list_models

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = "quickstart"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cases = [*list_models(), QUICKSTART]
    parser.add_argument("--cases", nargs="+", default=cases, choices=cases)
    parser.add_argument("--batch_size", type=int, help="default: 8, and 64 for the quick start's model")
    parser.add_argument("--amp_level", default="O0", choices=("O0", "O1", "O2"))
    parser.add_argument("--recompute", default="off", choices=("off", "on", "both"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", metavar="COMMAND", help="another command to run in turn")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # measure in this process
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.cases[0], arguments)))
        return 0
    rows = []
    for case in arguments.cases:
        for recompute in ("off", "on") if arguments.recompute == "both" else (arguments.recompute,):
            command = [sys.executable, __file__, "--one", "--cases", case, "--recompute", recompute]
            command += ["--amp_level", arguments.amp_level, "--rounds", str(arguments.rounds)]
            if arguments.batch_size:
                command += ["--batch_size", str(arguments.batch_size)]
            if arguments.against:
                command += ["--against", arguments.against]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(table(rows[-1:], header=len(rows) == 1), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def measure(case: str, arguments: argparse.Namespace) -> dict[str, float | str]:
    """One case in this process."""
    import mindspore as ms
    from mindspore import Tensor, nn

    from dvt import device
    from dvt.models.cascade import build_from_config
    from dvt.models.precision import set_precision
    from dvt.models.variants import model_config
    from dvt.training.step import TrainStep

    device.set_up("auto")
    ms.set_seed(0)
    if case == QUICKSTART:
        config = load_config(ROOT / "config" / "quickstart.yaml").model.resolve(num_classes=10, in_channels=1)
    else:
        config = model_config(case)
    batch_size = arguments.batch_size or (64 if case == QUICKSTART else 8)
    model = build_from_config(config)
    model.set_train(True)
    set_precision(model, arguments.amp_level)
    if arguments.recompute == "on":
        for exit_ in model.exits:
            for block in exit_.blocks:
                block.recompute()
    train = TrainSection(amp_level=arguments.amp_level, ema_decay=0.9999)
    step = TrainStep(model, train, np.full(100, 1e-4, np.float32))
    step.set_train()
    rng = np.random.default_rng(0)
    shape = (batch_size, config.in_channels, config.image_size, config.image_size)
    images = Tensor(rng.standard_normal(shape).astype(np.float32))
    labels = Tensor(rng.integers(0, config.num_classes, batch_size).astype(np.int32))

    compile_seconds = seconds_of(lambda: step(images, labels).asnumpy())
    for _ in range(arguments.rounds):
        step(images, labels).asnumpy()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # before the parts are compiled

    class Gradients(nn.Cell):
        """The part of the step that ends with the gradients."""

        def construct(self, images: Tensor, labels: Tensor, noise_key: Tensor) -> tuple:
            return step.value_and_grad(images, labels, noise_key)

    noise_key, gradients = Tensor(1, ms.int32), Gradients(auto_prefix=False).set_train()
    ways = (
        lambda: step.losses(images, labels, noise_key).asnumpy(),
        lambda: gradients(images, labels, noise_key)[0][1].asnumpy(),
        lambda: step(images, labels).asnumpy(),
    )
    others = []
    if arguments.against:
        ways += (lambda: others.append(rate_of_other(arguments.against)),)
    forward, gradient, whole = median_seconds(ways, arguments.rounds)[:3]
    compared = {"times_the_other": batch_size / whole / float(np.median(others[1:]))} if others else {}
    return compared | {
        "case": case,
        "batch_size": batch_size,
        "amp_level": arguments.amp_level,
        "recompute": arguments.recompute,
        "images_per_second": batch_size / whole,
        "step_ms": 1e3 * whole,
        "forward_ms": 1e3 * forward,
        "backward_ms": 1e3 * (gradient - forward),
        "update_ms": 1e3 * (whole - gradient),
        "peak_gib": peak,
        "compile_seconds": compile_seconds,
    }


def median_seconds(ways: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Of each way, all of them in every round; the first round compiles and does not count."""
    seconds = np.zeros((1 + rounds, len(ways)))
    for row in seconds:
        for place, run in enumerate(ways):
            row[place] = seconds_of(run)
    return np.median(seconds[1:], axis=0).tolist()


def table(rows: list[dict], header: bool) -> str:
    lines = []
    if header:
        lines.append(
            f"{'case':<16} {'batch':>5} {'amp':>4} {'recompute':>9} {'img/s':>8} {'step ms':>8} {'forward':>8} "
            f"{'backward':>8} {'update':>7} {'peak GiB':>9} {'compile s':>9} {'times other':>11}"
        )
    for row in rows:
        lines.append(
            f"{row['case']:<16} {row['batch_size']:>5} {row['amp_level']:>4} {row['recompute']:>9} "
            f"{row['images_per_second']:>8.2f} {row['step_ms']:>8.0f} {row['forward_ms']:>8.0f} "
            f"{row['backward_ms']:>8.0f} {row['update_ms']:>7.0f} {row['peak_gib']:>9.2f} "
            f"{row['compile_seconds']:>9.1f} {row.get('times_the_other', float('nan')):>11.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
