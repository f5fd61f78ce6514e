"""Data-parallel training from 1 to 1024 devices, as the cost model of `benchmarks/scaling_model.py` sees it.

    python benchmarks/scaling.py --config config/dvt_t2t_vit_12_imagenet.yaml --tflops 60 --bandwidth 30
    python benchmarks/scaling.py --measure --config config/quickstart.yaml --data_path FOLDER

The first prints step time, efficiency and memory; all hardware numbers are assumptions. The second trains briefly with
1 and 2 CPU workers of one core each, and compares with what the model says for a device as fast as that one worker and
a network as fast as the all-reduce of these two.
"""

import argparse
import csv
import json
import os
import sys
import tempfile
from pathlib import Path

import scaling_model as scaling

from dvt.cli import launch
from dvt.cli.support import set_up_logging
from dvt.cluster.placement import Placement, worker_environment
from dvt.cluster.preflight import free_port
from dvt.config import RunConfig
from dvt.config.files import load_config
from dvt.cost import cumulative_gmacs
from dvt.models.variants import ModelConfig

HERE = Path(__file__).parent
DEVICES = tuple(2**power for power in range(11))
SMALL_MESSAGE = 4096  # bytes, for the latency


def main() -> int:
    arguments = _parse()
    config = load_config(arguments.config, _overrides(arguments))
    model = config.model.resolve(arguments.num_classes, config.model.in_channels or arguments.in_channels)
    if arguments.measure:
        return measure(config, model, arguments)
    hardware = scaling.Hardware(
        tflops=arguments.tflops,
        bandwidth=arguments.bandwidth,
        latency=arguments.latency * 1e-6,
        devices_per_machine=arguments.devices_per_machine,
        network_bandwidth=arguments.network_bandwidth,
        network_latency=arguments.network_latency * 1e-6,
        overlap=arguments.overlap,
    )
    sys.stdout.write(table(config, model, hardware))
    return 0


def table(config: RunConfig, model: ModelConfig, hardware: scaling.Hardware) -> str:
    """What the model says, with the assumptions on top."""
    train, memory = config.train, scaling.memory(model, config.train)
    lines = [
        f"{model.name}, {cumulative_gmacs(model)[-1]:.3f} GMACs, {scaling.trainable_parameters(model):,} trainable "
        f"parameters, {scaling.gradient_bytes(model) / 1e6:.1f} MB of gradients",
        f"batch {train.batch_size} x {train.accumulation_steps} per device, {train.amp_level}, "
        f"recompute {'on' if train.recompute else 'off'}, {train.optimizer}",
        f"assumed: {hardware.tflops:g} TFLOPS sustained; {hardware.bandwidth:g} GB/s and {hardware.latency * 1e6:g} us "
        f"inside a machine of {hardware.devices_per_machine}; {hardware.network_bandwidth:g} GB/s and "
        f"{hardware.network_latency * 1e6:g} us between machines; overlap {hardware.overlap:g}",
        "GiB per device: " + ", ".join(f"{key.replace('_', ' ')} {value:.2f}" for key, value in vars(memory).items()),
        f"                {memory.total:.2f} in all, and the runtime on top",
        "",
        f"{'devices':>7} {'batch':>8} {'compute ms':>11} {'reduce ms':>10} {'step ms':>9} {'images/s':>10} "
        f"{'per machine':>11} {'efficiency':>10}",
    ]
    for devices in DEVICES:
        step = scaling.step(model, train, devices, hardware)
        batch = devices * train.batch_size * train.accumulation_steps
        per_machine = step.images_per_second * min(devices, hardware.devices_per_machine) / devices
        lines.append(
            f"{devices:>7} {batch:>8} {step.compute * 1e3:>11.1f} {step.reduction * 1e3:>10.2f} "
            f"{step.seconds * 1e3:>9.1f} {step.images_per_second:>10.0f} {per_machine:>11.0f} {step.efficiency:>10.1%}"
        )
    return "\n".join(lines) + "\n"


def measure(config: RunConfig, model: ModelConfig, arguments: argparse.Namespace) -> int:
    """Trains with 1 and 2 pinned CPU workers and prints what the model says beside it."""
    set_up_logging()
    if len(os.sched_getaffinity(0)) < 2:
        print("error: two workers of one core each need 2 processor cores", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="dvt-scaling-") as folder:
        rates = {workers: _images_per_second(workers, arguments, Path(folder)) for workers in (1, 2)}
        times = _all_reduce_seconds(Path(folder), [SMALL_MESSAGE, scaling.gradient_bytes(model)])
    latency = times[SMALL_MESSAGE] / 2
    size = scaling.gradient_bytes(model)
    bandwidth = size / max(times[size] - times[SMALL_MESSAGE], 1e-9) / 1e9  # 2 messages of half the size
    tflops = 6e9 * cumulative_gmacs(model)[-1] * rates[1] / 1e12
    hardware = scaling.Hardware(tflops, bandwidth, latency)
    predicted = scaling.step(model, config.train, 2, hardware)
    print(f"1 worker: {rates[1]:.1f} images/s, that is {tflops * 1e3:.1f} GFLOPS")
    print(
        f"all-reduce of {size / 1e6:.2f} MB: {times[size] * 1e3:.1f} ms; of 4 kB: {times[SMALL_MESSAGE] * 1e3:.2f} ms"
    )
    print(f"2 workers, measured:  {rates[2]:.1f} images/s, efficiency {rates[2] / (2 * rates[1]):.1%}")
    print(f"2 workers, predicted: {predicted.images_per_second:.1f} images/s, efficiency {predicted.efficiency:.1%}")
    return 0


def _images_per_second(workers: int, arguments: argparse.Namespace, folder: Path) -> float:
    """Of the fastest epoch of a short run, the one least disturbed by other work; the first, which compiles, is out."""
    output = folder / f"train_{workers}"
    train = [*launch.train_command(), f"--config={arguments.config}", f"--output={output}", "--device_target=CPU"]
    train += [f"--train.epochs={arguments.epochs}", "--train.warmup_epochs=0", "--train.eval_every_epochs=0"]
    train += [f"--train.checkpoint_every_epochs={arguments.epochs}", "--data.workers=1", "--data.worker_type=thread"]
    train += [f"--{key}={value}" for key, value in _overrides(arguments).items()]
    _launch(workers, train, output)
    with (output / "metrics.csv").open(newline="") as file:
        rates = [float(row["images_per_second"]) for row in csv.DictReader(file)]
    return max(rates[1:])


def _all_reduce_seconds(folder: Path, sizes: list[int]) -> dict[int, float]:
    out = folder / "all_reduce.json"
    _launch(2, [str(HERE / "all_reduce.py"), str(out), *map(str, sizes)], folder)
    return {int(size): seconds for size, seconds in json.loads(out.read_text()).items()}


def _launch(workers: int, command: list[str], output: Path) -> None:
    placement = Placement(workers, master_port=free_port())
    environment = {**worker_environment(placement, "CPU", Path(sys.executable)), "OMP_NUM_THREADS": "1"}
    code = launch.run([str(HERE / "pinned_worker.py"), *command], placement, output, environment)
    if code:
        raise SystemExit(code)


def _overrides(arguments: argparse.Namespace) -> dict[str, object]:
    given = {
        "train.batch_size": arguments.batch_size,
        "train.accumulation_steps": arguments.accumulation_steps,
        "train.amp_level": arguments.amp_level,
        "train.recompute": arguments.recompute,
        "data.path": arguments.data_path,
        "data.train_images": arguments.train_images,
    }
    return {key: value for key, value in given.items() if value is not None}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default=str(HERE.parent / "config" / "dvt_t2t_vit_12_imagenet.yaml"))
    parser.add_argument("--num_classes", type=int, default=1000)
    parser.add_argument("--in_channels", type=int, default=3, help="where the configuration leaves it to the data set")
    parser.add_argument("--batch_size", type=int, help="in place of train.batch_size of the configuration; so the next")
    parser.add_argument("--accumulation_steps", type=int)
    parser.add_argument("--amp_level", choices=("O0", "O1", "O2"))
    parser.add_argument("--recompute", action="store_true", default=None)
    hardware = parser.add_argument_group("hardware, all of it assumed")
    hardware.add_argument("--tflops", type=float, default=60, help="sustained, of one device (default %(default)s)")
    hardware.add_argument("--bandwidth", type=float, default=30, help="GB/s to a neighbour inside a machine")
    hardware.add_argument("--latency", type=float, default=10, help="microseconds per message inside a machine")
    hardware.add_argument("--devices_per_machine", type=int, default=8)
    hardware.add_argument("--network_bandwidth", type=float, default=12.5, help="GB/s per device between machines")
    hardware.add_argument("--network_latency", type=float, default=30, help="microseconds per message between machines")
    hardware.add_argument(
        "--overlap", type=float, default=0.0, help="share of the backward pass that hides the reduction"
    )
    measured = parser.add_argument_group("--measure")
    measured.add_argument("--measure", action="store_true", help="train with 1 and 2 CPU workers and compare")
    measured.add_argument("--data_path")
    measured.add_argument("--train_images", type=int, help="of a training epoch")
    measured.add_argument("--epochs", type=int, default=4, help="of which the first is not counted")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
