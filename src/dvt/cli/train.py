"""`dvt train` and train.py; with --dry_run the training step is compiled for simulated Ascend cards instead, and the
report says what it asks of a card."""

import json
import logging
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dvt.cli.support import Parser, given_keys, print_if_asked
from dvt.cluster import simulation
from dvt.cluster.placement import whole_number
from dvt.config.files import config_from_dict, config_to_dict
from dvt.config.sections import RunConfig
from dvt.errors import ConfigError, DeviceError
from dvt.training.folder import CONFIG_FILE
from dvt.value_checks import expanded

GIB = 2**30
IMAGENET_CLASSES = 1000  # assumed of images that are not there
TRIES = 4  # compiles, to find the largest batch
ROUND_TO, MOST = 8, 2**14  # images of the largest batch
SHOWN = 8  # operators of a kind

NOT_CHECKED = """\
Not checked, since nothing was computed:
- whether the card has every kernel for these types and shapes, and its numbers: accuracy, overflow, mixed precision
- time: speed of a step, waiting for the AICPU and for other ranks, reading the data
- memory beyond the plan of the graph: workspace of kernels, HCCL's buffers, fragments; leave a fifth free"""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compiled:
    """What the compile of one step came to."""

    error: str = ""  # MindSpore's first, with its place; empty if all went well
    seconds: float = 0.0
    peak_bytes: int = 0  # of a card's memory
    usable_bytes: int = 1  # of that memory, as MindSpore takes them of the card that it simulates
    kernels: simulation.Kernels = field(default_factory=Counter)

    @property
    def fits(self) -> bool:
        return not self.error and self.peak_bytes <= self.usable_bytes

    def memory(self) -> str:
        share = self.peak_bytes / self.usable_bytes
        return f"{self.peak_bytes / GIB:.2f} of {self.usable_bytes / GIB:.1f} GiB ({share:.0%})"


@dataclass
class TrainOptions:
    """Train a DVT and save its checkpoints.

    Args:
        dry_run: Train nothing: compile the step for simulated Ascend cards, RANK_SIZE of them (1), and say what it
            needs. Without a folder of images (data.path), of blank ones.
        largest_batch: With --dry_run: also look for the largest batch that fits into the memory of a card.
    """

    dry_run: bool = False
    largest_batch: bool = False


def run(argv: Sequence[str], prog: str) -> int | None:
    """The command."""
    options, config = parse(argv, prog)
    if options.dry_run:
        return dry_run(config, os.environ, largest=options.largest_batch)
    from dvt.training.run import train

    train(config)


def parse(argv: Sequence[str], prog: str = "dvt train") -> tuple[TrainOptions, RunConfig]:
    """What to do, and the configuration that the arguments ask for."""
    parser = Parser(prog, TrainOptions, log_level="info")
    parser.add_config(shown=vars(RunConfig()))
    parser.stray_words = (
        "--config takes configuration files, --data_path the images, --output the folder of the run; --resume takes no "
        "file and goes on with the run in --output"
    )
    options, given = parser.parse(argv)
    options.dry_run |= "MS_SIMULATION_LEVEL" in os.environ  # MindSpore's own way to ask for one
    if options.dry_run and given.get("device_target") in ("CPU", "GPU"):
        target = given["device_target"]
        raise ConfigError(f"a dry run simulates Ascend cards, and --device_target is {target}; leave one of them out")
    if options.largest_batch and not options.dry_run:
        raise ConfigError("--largest_batch belongs to --dry_run; give both")
    if given.get("resume") and "output" in given and not given["config"]:
        saved = Path(expanded(given["output"], "output")) / CONFIG_FILE
        if saved.exists():
            given["config"] = [saved]
    config = config_from_dict(given_keys(given))
    print_if_asked(given, config)
    return options, config


def dry_run(config: RunConfig, variables: Mapping[str, str], cards: int | None = None, largest: bool = False) -> int:
    """Compiles for rank RANK_ID (0) of so many cards (RANK_SIZE, 1), prints the report, and returns the exit code.

    With `largest`, also looks for the largest batch that fits into a card's memory. Where no folder of images is given,
    blank ones are made. Raises ConfigError for what no run could start with, DataError for data that is missing, and
    DeviceError where no card can be simulated.
    """
    cards, rank = cards or whole_number(variables, "RANK_SIZE", 1), whole_number(variables, "RANK_ID", 0)
    if cards < 1:
        raise ConfigError(f"RANK_SIZE is {cards}; it must be the number of cards, 1 or more")
    if not 0 <= rank < cards:
        raise ConfigError(f"RANK_ID is {rank}; of {cards} card(s) it must be 0 to {cards - 1}")
    from dvt.data import load_splits

    config.model.check()
    with tempfile.TemporaryDirectory(prefix="dvt-dry-run-") as folder:
        blank = config.data.dataset == "image_folder" and config.data.path is None
        if blank:
            config = _with_blank_images(config, Path(folder), cards)
        load_splits(config.data, config.model.input_size, config.seed, config.augment, config.train.label_smoothing)
        origin = "CANN of this machine" if simulation.has_cann(variables) else "stand-ins for CANN"
        log.info("dry run: rank %d of %d simulated Ascend card(s), %s; compiling takes minutes", rank, cards, origin)
        child = simulation.environment(Path(folder), cards, rank)

        def compiled(images: int) -> Compiled:
            return _compile(config, images, child, folder)

        first = compiled(config.train.batch_size)
        _print_report(config, first)
        if blank:
            print(f"assumed without data.path: blank images of {config.model.num_classes:,} classes, one step an epoch")
        if largest and not first.error:
            print(_largest(config.train.batch_size, first, compiled))
    if not first.error:
        print(NOT_CHECKED)
    return 1 if first.error else 0


def _with_blank_images(config: RunConfig, folder: Path, cards: int) -> RunConfig:
    """The configuration with images made in `folder`, as many as one step needs; links, so that one file is enough."""
    from PIL import Image

    classes, train = config.model.num_classes or IMAGENET_CLASSES, config.train
    of_a_class = math.ceil(cards * train.batch_size * train.accumulation_steps / classes)
    first = folder / "images" / "train" / "0"
    first.mkdir(parents=True)
    Image.new("RGB", (config.model.input_size,) * 2).save(folder / "blank.png")
    for number in range(of_a_class):
        (first / f"{number}.png").symlink_to(folder / "blank.png")
    for label in range(1, classes):
        (first.parent / str(label)).symlink_to(first.name)
    (folder / "images" / "val").symlink_to("train")
    used = {"train_images": None, "val_images": None, "calibration_images": 1, "hold_out_calibration": False}
    data = replace(config.data, path=str(folder / "images"), **used)
    return replace(config, data=data, model=replace(config.model, num_classes=classes))


def _compile(config: RunConfig, images: int, variables: Mapping[str, str], folder: str) -> Compiled:
    """In a process of its own: MindSpore must find the variables when it is imported, and leaves files behind in its
    working directory."""
    values = config_to_dict(config)
    for section, key in (("data", "path"), ("train", "init_checkpoint")):
        values[section][key] = values[section][key] and os.path.abspath(values[section][key])
    command = [sys.executable, "-m", "dvt.training.dry_run"]
    how = {"capture_output": True, "text": True, "errors": "replace", "env": dict(variables), "cwd": folder}
    done = subprocess.run(command, input=json.dumps({"config": values, "images": images}), **how)
    answer = (done.stdout.strip().splitlines() or [""])[-1]
    if not answer.startswith("{"):
        last = "\n".join(simulation.without_chatter(done.stderr).splitlines()[-5:])
        raise DeviceError(f"the simulated card did not start, or ended by itself (code {done.returncode}): {last}")
    found = json.loads(answer)
    if "refused" in found:
        raise ConfigError(found["refused"])
    kernels = simulation.kernels_in(done.stderr.partition(simulation.STEP_BEGINS)[2])
    return Compiled(**found, usable_bytes=simulation.usable_memory(done.stderr), kernels=kernels)


def _print_report(config: RunConfig, found: Compiled) -> None:
    level = "O0" if config.jit_level == "auto" else config.jit_level
    name = f"{config.model.name}, amp_level {config.train.amp_level}, jit_level {level}"
    if found.error:
        print(f"{name} does not compile: {found.error}")
        return
    print(f"{name}: compiled in {found.seconds:.0f} s\nkernels of the graphs of a step:")
    for kind in sorted({kind for _, kind in found.kernels}):
        operators = Counter({name: count for (name, each), count in found.kernels.items() if each == kind})
        named = ", ".join(f"{name} {count}" for name, count in operators.most_common(SHOWN))
        print(f"  {kind:8} {operators.total():6,}: {named}{', ...' * (len(operators) > SHOWN)}")
    print(f"peak memory of a card at {config.train.batch_size} images: {found.memory()}")
    if not found.fits:
        print("  too much: lower train.batch_size (and raise train.accumulation_steps), or set train.recompute")


def _largest(batch: int, found: Compiled, compiled: Callable[[int], Compiled]) -> str:
    """The largest batch whose peak fits, in words. Memory grows in proportion to the images, so two compiles give a
    guess, which is compiled too."""
    tried = {batch: found}
    images = 2 * batch if found.fits else max(1, batch // 2)
    while images not in tried and len(tried) <= TRIES:
        tried[images] = compiled(images)
        peaks = {count: each.peak_bytes for count, each in tried.items() if not each.error}
        least, most = min(peaks), max(peaks)
        per_image = (peaks[most] - peaks[least]) / max(most - least, 1)
        images = most + int((found.usable_bytes - peaks[most]) / per_image) if per_image > 0 else MOST
        images = min(images, MOST, *(count - 1 for count, each in tried.items() if not each.fits))
        images = max(1, images - images % ROUND_TO if images > ROUND_TO else images)
    failed = [f"\n{count} images do not compile: {each.error}" for count, each in tried.items() if each.error]
    largest = max((count for count, each in tried.items() if each.fits), default=0)
    if not largest:
        return f"no batch fits, not even one of {min(tried)} images"
    more = "; more were not tried" if largest == MOST else ""
    return f"largest batch that fits: {largest} images, {tried[largest].memory()}{more}{''.join(failed)}"
