"""The training run: data, model, compiled steps, checkpoints, log. A run folder holds

config.yaml   the resolved configuration            metrics.csv   one line per epoch
last.ckpt     the weights to evaluate and export    state.ckpt    everything a resumed run needs
train.log     what the console showed
"""

import contextlib
import csv
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from dvt import device
from dvt.checkpoint import load_weights, read_checkpoint, save_checkpoint
from dvt.config import RunConfig
from dvt.config_io import config_to_dict, config_to_yaml, flattened, save_config
from dvt.data import Splits, load_splits
from dvt.errors import CheckpointError, ConfigError, DataError, DVTError
from dvt.models.cascade import build_from_config
from dvt.training.interrupt import StopBetweenSteps
from dvt.training.schedule import learning_rates
from dvt.training.step import TrainStep

WEIGHTS_FILE = "last.ckpt"
STATE_FILE = "state.ckpt"
CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.csv"
LOG_FILE = "train.log"
MAY_CHANGE = ("data.path", "data.workers", "train.checkpoint_every_epochs")  # between a run and its resumption

log = logging.getLogger(__name__)


def train(config: RunConfig) -> Path:
    """Trains as configured and returns the path of the weights, `last.ckpt` in `config.output`.

    Ctrl-C saves the weights and the state and raises KeyboardInterrupt; `config.resume` continues from there. Raises
    ConfigError, DataError and DeviceError before any long work starts, and DVTError if the loss is no longer finite.
    """
    config.model.check()
    output = _prepare_output(config)
    with _log_file(output / LOG_FILE):
        log.debug("configuration:\n%s", config_to_yaml(config))
        used = device.set_up(config.device_target)
        ms.set_seed(config.seed)
        splits = load_splits(config.data, config.model.input_size, config.seed)
        run = _Run(config, splits, output)
        log.info("device: %s", used.description)
        for line in splits.describe().splitlines():
            log.info("%s", line)
        run.fit()
    return output / WEIGHTS_FILE


class _Run:
    """One training run from its first or resumed step to its last."""

    def __init__(self, config: RunConfig, splits: Splits, output: Path) -> None:
        self.config, self.splits, self.output = config, splits, output
        model_config = config.model.resolve(splits.num_classes, splits.in_channels)
        train = config.train
        if train.exit_weights is not None and len(train.exit_weights) != model_config.num_exits:
            raise ConfigError(
                f"train.exit_weights has {len(train.exit_weights)} entries, the model {model_config.num_exits} exits"
            )
        self.steps_per_epoch = splits.num_batches("train", train.batch_size, training=True)
        self.epochs = train.epochs + train.cooldown_epochs
        self.model = build_from_config(model_config)
        self.model.set_train(True)
        self.rates = learning_rates(train, self.steps_per_epoch)
        self.step = TrainStep(self.model, train, self.rates)
        self.step.set_train(True)
        self.done = 0  # steps
        if config.resume:
            self._load_state()

    def fit(self) -> None:
        train, total = self.config.train, len(self.rates)
        log.info(
            "training %s: %d epochs of %d steps of %d images; the first step compiles for a while",
            self.model.config.name,
            self.epochs,
            self.steps_per_epoch,
            train.batch_size,
        )
        save_config(replace(self.config, resume=False), self.output / CONFIG_FILE)
        bar = tqdm(total=total, initial=self.done, unit="step", desc="train", smoothing=0.05)
        with bar, StopBetweenSteps() as stop:
            try:
                for epoch in range(self.done // self.steps_per_epoch, self.epochs):
                    self._epoch(epoch, bar, stop)
                    last = epoch == self.epochs - 1
                    if last or (epoch + 1) % train.checkpoint_every_epochs == 0:
                        self._save()
            except KeyboardInterrupt:
                self._save()
                log.warning(
                    "interrupted after step %d of %d; %s is usable, and the same command with --resume goes on",
                    self.done,
                    total,
                    self.output / WEIGHTS_FILE,
                )
                raise
            except DataError as error:  # a bad image: what was learnt until then is not lost
                if self.done:
                    self._save()
                    raise DataError(f"{error}\n{self._last_good()}; once it is mended, --resume goes on") from error
                raise
        log.info("done: %s", self.output / WEIGHTS_FILE)

    def _epoch(self, epoch: int, bar: tqdm, stop: StopBetweenSteps) -> None:
        batches = self.splits.pipeline("train", self.config.train.batch_size, training=True, epoch=epoch)
        skipped = self.done - epoch * self.steps_per_epoch  # batches of this epoch that a resumed run has behind it
        started, sums, count = time.perf_counter(), 0.0, 0
        for images, labels in batches.create_tuple_iterator(num_epochs=1, output_numpy=True):
            stop.check()
            if skipped > 0:
                skipped -= 1
                continue
            losses = self.step(Tensor(images), Tensor(labels)).asnumpy()
            self.done += 1
            if not np.isfinite(losses).all():
                raise DVTError(
                    f"the loss is no longer finite at step {self.done} (per exit: {losses.tolist()}); lower "
                    f"train.learning_rate or lengthen train.warmup_epochs. {self._last_good()}"
                )
            sums, count = sums + losses, count + 1
            bar.update()
            bar.set_postfix_str(f"epoch {epoch + 1}/{self.epochs}, loss {_join(sums / count)}")
        if count:
            self._record(epoch, sums / count, count, time.perf_counter() - started)

    def _record(self, epoch: int, losses: np.ndarray, steps: int, seconds: float) -> None:
        """One line in the log and in metrics.csv."""
        images_per_second = steps * self.config.train.batch_size / seconds
        rate = float(self.rates[self.done - 1])
        log.info(
            "epoch %d/%d: loss per exit %s, lr %.2e, %.0f images/s",
            epoch + 1,
            self.epochs,
            _join(losses),
            rate,
            images_per_second,
        )
        row = {"epoch": epoch + 1, "step": self.done, "learning_rate": rate}
        row |= {f"loss_exit_{k}": float(loss) for k, loss in enumerate(losses)}
        row |= {"images_per_second": round(images_per_second, 1), "seconds": round(seconds, 2)}
        path = self.output / METRICS_FILE
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)

    def _save(self) -> None:
        metadata = {
            "model": self.model.config,
            "class_names": list(self.splits.class_names),
            "preprocessing": self.splits.preprocessing,
            "config": config_to_dict(replace(self.config, resume=False)),
            "step": self.done,
            "epoch": self.done / self.steps_per_epoch,
        }
        weights = {name: parameter.asnumpy() for name, parameter in self.model.parameters_dict().items()}
        save_checkpoint(self.output / WEIGHTS_FILE, weights | self.step.ema_weights(), metadata)
        state = {parameter.name: parameter.asnumpy() for parameter in self.step.state()}
        save_checkpoint(self.output / STATE_FILE, weights | state, metadata)

    def _load_state(self) -> None:
        path = self.output / STATE_FILE
        checkpoint = read_checkpoint(path)
        if checkpoint.model != self.model.config:
            raise CheckpointError(f"{path} is the state of another model; resume with the configuration it began with")
        state = {parameter.name: parameter for parameter in self.step.state()}
        missing = [name for name in state if name not in checkpoint.weights]
        if missing:
            raise CheckpointError(f"{path} lacks {missing[0]}; resume with the configuration the run began with")
        _check_same(self.config, checkpoint.metadata.get("config", {}), path)
        load_weights(self.model, {k: v for k, v in checkpoint.weights.items() if k not in state}, source=str(path))
        for name, parameter in state.items():
            parameter.set_data(Tensor(checkpoint.weights[name].astype(parameter.asnumpy().dtype)))
        self.done = int(checkpoint.metadata["step"])
        if self.done > len(self.rates):
            raise CheckpointError(f"{path} is {self.done} steps on, but the configuration asks for {len(self.rates)}")
        log.info("resuming after step %d of %d", self.done, len(self.rates))

    def _last_good(self) -> str:
        path = self.output / WEIGHTS_FILE
        return f"The last good weights are in {path}" if path.exists() else "No weights had been saved yet"


def _prepare_output(config: RunConfig) -> Path:
    """The run folder, writable; refuses to overwrite a run and to resume where there is none."""
    output = Path(config.output)
    if config.resume and not (output / STATE_FILE).exists():
        raise CheckpointError(f"cannot resume: there is no {output / STATE_FILE}; leave --resume out to start afresh")
    if not config.resume and any((output / name).exists() for name in (STATE_FILE, WEIGHTS_FILE)):
        raise ConfigError(f"{output} already holds a run; continue it with --resume, or choose another --output")
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / LOG_FILE).touch()
    except OSError as error:
        raise ConfigError(f"cannot write to the output folder {output}: {error.strerror}") from error
    return output


def _check_same(config: RunConfig, saved: dict[str, Any], path: Path) -> None:
    """Refuses to resume with another recipe: epochs and learning rates would silently be others."""
    asked = flattened(config_to_dict(config))
    before = flattened(saved)
    for key, value in asked.items():
        recipe = key == "seed" or key.split(".")[0] in ("model", "data", "train")
        if recipe and key not in MAY_CHANGE and before.get(key) != value:
            raise ConfigError(
                f"{key} is {value!r}, but the run in {path} was begun with {before.get(key)!r}; resume with the "
                f"configuration in {CONFIG_FILE} beside it, or start a new run"
            )


@contextlib.contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Sends what this package logs to `path` as well."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("dvt")
    level = logger.level
    if level == logging.NOTSET:  # called from Python rather than from the command line, which sets it
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()


def _join(losses: np.ndarray) -> str:
    return "/".join(f"{loss:.3f}" for loss in losses)
