"""The training run: data, model, compiled steps, validation, checkpoints, log. What it leaves is described in
`dvt.training.folder` and `dvt.training.metrics`.

All ranks run this; rank 0 alone writes (but profiles). Whatever ends a run (Ctrl-C, a signal, a loss that is not
finite) must end it on all ranks after the same step, so such decisions are taken from values that the ranks have
exchanged.
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from dvt import device
from dvt.checkpoint import transfer
from dvt.cluster.preflight import fingerprint, require_same_fingerprint
from dvt.config.files import config_to_dict, config_to_yaml
from dvt.config.sections import RunConfig
from dvt.data import Splits, load_splits
from dvt.errors import CheckpointError, ConfigError, DataError, DVTError
from dvt.models.cascade import build_from_config
from dvt.models.precision import set_precision
from dvt.training.agreement import SharedDataError, errors_shared, require_same_data, require_same_weights
from dvt.training.coarse_first import FirstExit, hand_over, start_finer_exits
from dvt.training.feed import Feed
from dvt.training.folder import WEIGHTS_FILE, RunFolder
from dvt.training.interrupt import StopBetweenSteps
from dvt.training.metrics import RunRecords, write_environment
from dvt.training.monitor import Monitor
from dvt.training.profiling import profiled
from dvt.training.schedule import learning_rates, peak_learning_rate
from dvt.training.step import TrainStep
from dvt.training.validation import Validation

READ_EVERY = 10  # steps between two looks at losses and signals: reading them makes the host wait for the device

log = logging.getLogger(__name__)


def train(config: RunConfig) -> Path:
    """Trains as configured and returns the path of the weights, `last.ckpt` in `config.output`.

    Ctrl-C saves the weights and the state and raises KeyboardInterrupt; `config.resume` continues from there. Raises
    ConfigError, DataError, CheckpointError and DeviceError before any long work starts, and DVTError if the loss is no
    longer finite.
    """
    config.model.check()
    used = device.set_up(config.device_target, deterministic=config.deterministic, jit_level=config.jit_level)
    main = used.rank == 0
    require_same_fingerprint(device.gather_over_ranks(np.array(fingerprint(config))))
    folder = RunFolder(config, writes=main)
    with folder.logging(), contextlib.ExitStack() as stack:
        if not main:  # what all ranks say alike is said once
            logging.getLogger("dvt").setLevel(logging.WARNING)
        log.debug("configuration:\n%s", config_to_yaml(config))
        splits = load_splits(
            config.data, config.model.input_size, config.seed, config.augment, config.train.label_smoothing
        )
        require_same_data(splits)
        run = _Run(config, splits, folder)
        ranks = f", {used.world_size} ranks" if used.world_size > 1 else ""
        log.info("device: %s%s", used.description, ranks)
        for line in splits.describe().splitlines():
            log.info("%s", line)
        folder.begin()
        if main:
            write_environment(folder.path, used.description + ranks)
            run.records = stack.enter_context(
                RunRecords(folder.path, run.done if config.resume else None, run.model.config.name)
            )
        run.fit()
    device.leave()
    return folder.path / WEIGHTS_FILE


class _Run:
    """One training run from its first or resumed step to its last."""

    def __init__(self, config: RunConfig, splits: Splits, folder: RunFolder) -> None:
        self.config, self.splits, self.folder = config, splits, folder
        self.records: RunRecords | None = None
        train = config.train
        model_config = config.model.resolve(splits.num_classes, splits.in_channels)
        if train.exit_weights is not None and len(train.exit_weights) != model_config.num_exits:
            raise ConfigError(
                f"train.exit_weights has {len(train.exit_weights)} entries, the model {model_config.num_exits} exits"
            )
        if train.coarse_first_epochs and model_config.num_exits == 1:
            raise ConfigError(
                "train.coarse_first_epochs is for models of two exits or more; this one has a single exit"
            )
        shard = (device.rank(), device.world_size())
        batches = splits.training(train.batch_size, shard, train.accumulation_steps).per_epoch
        self.steps_per_epoch = batches // train.accumulation_steps
        self.epochs = train.epochs + train.cooldown_epochs
        self.images_per_step = train.batch_size * train.accumulation_steps * device.world_size()
        self.rates = learning_rates(train, self.steps_per_epoch, peak_learning_rate(train, self.images_per_step))
        self.validation = None
        if train.eval_every_epochs:
            shown = splits.with_resize_size(train.eval_resize_size)
            self.validation = Validation(model_config, shown, "val", config.eval.batch_size)
        # Here, so that the weights do not depend on what was built before; MindSpore takes seeds below 2**32.
        ms.set_seed(config.seed % 2**32)
        self.model = build_from_config(model_config)
        self._initialise()
        self.model.set_train(True)
        set_precision(self.model, train.amp_level)
        if train.recompute:
            for exit_ in self.model.exits:
                for block in exit_.blocks:
                    block.recompute()
        self.first_exit_only = train.coarse_first_epochs > 0  # as long as it is the only one that is trained
        self.step = self._make_step()
        self.unfinished: dict[str, float] | None = None  # the row of an epoch that is trained but not yet validated
        self.done = self._load_state() if config.resume else 0  # steps
        require_same_weights(self._weights() | self._state())
        self.monitor = Monitor(train.max_failed_batches, train.amp_level != "O0", folder.last_good)

    def fit(self) -> None:
        """Trains to the end, or until something ends the run."""
        self._announce()
        feed = self._feed()
        bar = tqdm(total=len(self.rates), initial=self.done, unit="step", desc="train", smoothing=0.05, disable=None)
        with bar, StopBetweenSteps() as stop:
            try:
                if self.unfinished is not None:
                    self._finish_epoch(self.unfinished)
                for epoch in range(self.done // self.steps_per_epoch, self.epochs):
                    if self.first_exit_only and epoch == self.config.train.coarse_first_epochs:
                        self._go_on_with_all_exits()
                        feed = self._feed()
                    self._epoch(epoch, feed, bar, stop)
            except KeyboardInterrupt:
                self._save()
                log.warning(
                    "interrupted after step %d of %d; %s is usable, and the same command with --resume goes on",
                    self.done,
                    len(self.rates),
                    self.folder.path / WEIGHTS_FILE,
                )
                device.leave()  # all ranks are here, after the same step
                raise
            except DataError as error:  # a bad image: what was learnt until then is not lost
                if not self.done:
                    raise
                self._save()
                if isinstance(error, SharedDataError):
                    device.leave()
                raise DataError(f"{error}\n{self.folder.last_good()}; once it is mended, --resume goes on") from error
        log.info("done: %s", self.folder.path / WEIGHTS_FILE)

    def _make_step(self) -> TrainStep:
        model = FirstExit(self.model) if self.first_exit_only else self.model
        step = TrainStep(model, self.config.train, self.rates, self.config.seed)
        step.set_train(True)
        return step

    def _feed(self) -> Feed:
        """Batches into the step, from the next one on."""
        train = self.config.train
        first_batch = self.done * train.accumulation_steps
        return Feed(
            self.step, self.splits, train.batch_size, train.accumulation_steps, first_batch, train.dataset_sink_mode
        )

    def _go_on_with_all_exits(self) -> None:
        start_finer_exits(self.model)
        coarse, self.first_exit_only = self.step, False
        self.step = self._make_step()
        hand_over(self.model, coarse, self.step)
        log.info("all exits are trained from here on; the finer ones start from what fits of the first exit's weights")

    def _epoch(self, epoch: int, feed: Feed, bar: tqdm, stop: StopBetweenSteps) -> None:
        self.monitor.begin_epoch(epoch, self.epochs, self.done)
        pending: list[Tensor] = []  # losses not yet read
        last = (epoch + 1) * self.steps_per_epoch
        skipped_before, stopping = self._skipped_steps(), False
        alone = device.world_size() == 1
        losses = self._profiled(feed.epoch())
        for number, each in enumerate(losses, start=1):
            pending.append(each)
            if number % self.config.train.accumulation_steps:
                continue
            self.done += 1
            bar.update()
            if alone and stop.requested or self.done % READ_EVERY == 0 or self.done == last:
                self._read(pending, bar)
                pending = []
                # A signal reaches the ranks at different steps; they stop after the same one.
                stopping = device.sum_over_ranks(np.array([stop.requested]))[0] > 0
                if stopping and self.done < last:
                    raise KeyboardInterrupt
        if self._skipped_steps() - skipped_before >= self.steps_per_epoch:
            raise DVTError(
                f"the gradients are no longer finite at step {self.done}: all steps of epoch {epoch + 1} were skipped; "
                f"lower train.learning_rate, or take train.amp_level O0. {self.folder.last_good()}"
            )
        self._end_epoch(epoch + 1)
        if stopping and self.done < len(self.rates):
            raise KeyboardInterrupt

    def _read(self, pending: list[Tensor], bar: tqdm) -> None:
        """Takes note of the losses of the last few batches; raises DVTError if they stay infinite or NaN."""
        losses = np.stack([each.asnumpy() for each in pending])  # (batches, K)
        rate = float(self.rates[self.done - 1])
        mean = self.monitor.read(losses, self.done, len(self.rates), rate, self._seen_per_second)
        bar.set_postfix_str(self.monitor.status)
        if self.records is not None and mean is not None:
            self.records.step(self.done, mean, rate)

    def _seen_per_second(self, steps: int, seconds: float) -> float:
        return steps * self.images_per_step / seconds

    def _end_epoch(self, epochs_done: int) -> None:
        """All that follows the last step of an epoch."""
        self._require_finite()
        row = self.monitor.epoch_row(self.done, self._seen_per_second)
        row |= {
            "learning_rate": float(self.rates[self.done - 1]),
            "skipped_steps": self._skipped_steps(),
        }
        if self.config.train.amp_level != "O0":
            row["loss_scale"] = float(self.step.loss_scale.asnumpy())
        self.unfinished = row
        if self._is_validated(epochs_done) and self._is_saved(epochs_done):
            self._save()  # whatever happens in the validation, the epoch need not be trained again
        self._tell_bad_images(epochs_done)
        self._finish_epoch(row)

    def _finish_epoch(self, row: dict[str, float]) -> None:
        """Validation, checkpoints, and one line in the log and in `metrics.csv`."""
        epochs_done, is_best = int(row["epoch"]), False
        if self._is_validated(epochs_done):
            weights = self._weights() | self.step.ema_weights()
            accuracy = self.validation.accuracy(weights)
            row = row | {f"val_accuracy_exit_{k}": value for k, value in enumerate(accuracy)}
            is_best = self.folder.keep_best(epochs_done, accuracy[-1], weights, self._metadata())
        self.monitor.log_epoch(row, self.epochs, is_best)
        if self.records is not None:
            self.records.epoch(row)
        self.unfinished = None
        if self._is_saved(epochs_done):
            self._save()

    def _tell_bad_images(self, epochs_done: int) -> None:
        """How many images of the epoch were replaced, over all ranks; raises DataError on all of them if too many."""
        if not self.splits.bad_images.skips:
            return
        here = self.splits.bad_images.replaced[epochs_done - 1]
        replaced = int(device.sum_over_ranks(np.array([here]))[0])
        if replaced:
            log.warning(
                "epoch %d/%d: %d of the training images shown could not be read; others took their places",
                epochs_done,
                self.epochs,
                replaced,
            )
        with errors_shared():
            self.splits.bad_images.check("train", replaced)

    def _is_validated(self, epochs_done: int) -> bool:
        return self._is_due(epochs_done, self.config.train.eval_every_epochs)

    def _is_saved(self, epochs_done: int) -> bool:
        return self._is_due(epochs_done, self.config.train.checkpoint_every_epochs)

    def _is_due(self, epochs_done: int, every: int) -> bool:
        """Whether something that is done after every so many epochs (0: never) follows this one; the last always."""
        return every > 0 and (epochs_done == self.epochs or epochs_done % every == 0)

    def _announce(self) -> None:
        train = self.config.train
        log.info(
            "training %s: %d epoch%s of %d steps of %d images; the first step compiles for a while",
            self.model.config.name,
            self.epochs,
            "" if self.epochs == 1 else "s",
            self.steps_per_epoch,
            self.images_per_step,
        )
        peak = peak_learning_rate(train, self.images_per_step)
        if peak != train.learning_rate:
            log.info(
                "learning rate %.3g, scaled from %.3g for %d images per step to the %d of this run",
                peak,
                train.learning_rate,
                train.base_batch_size,
                self.images_per_step,
            )

    def _initialise(self) -> None:
        """Puts `train.init_checkpoint` into the new model; a resumed run has its own weights."""
        path = self.config.train.init_checkpoint
        if path is None or self.config.resume:
            return
        for line in transfer.apply(self.model, transfer.initial_weights(self.model.config, path)):
            log.info("%s", line)

    def _weights(self) -> dict[str, np.ndarray]:
        return {name: parameter.asnumpy() for name, parameter in self.model.parameters_dict().items()}

    def _metadata(self) -> dict[str, Any]:
        return {
            "model": self.model.config,
            "class_names": list(self.splits.class_names),
            "preprocessing": self.splits.preprocessing,
            "config": config_to_dict(replace(self.config, resume=False)),
            "step": self.done,
            "epoch": self.done / self.steps_per_epoch,
            "world_size": device.world_size(),
            "first_exit_only": self.first_exit_only,
        }

    def _save(self) -> None:
        self._require_finite()
        metadata = self._metadata() | {"unfinished_epoch": self.unfinished}
        self.folder.save(self._weights(), self.step.ema_weights(), self._state(), metadata)

    def _require_finite(self) -> None:
        if not all(np.isfinite(value).all() for value in self._weights().values()):
            raise DVTError(
                f"the weights are no longer finite at step {self.done}; lower train.learning_rate or lengthen "
                f"train.warmup_epochs. {self.folder.last_good()}"
            )

    def _state(self) -> dict[str, np.ndarray]:
        return {parameter.name: parameter.asnumpy() for parameter in self.step.state()}

    def _skipped_steps(self) -> int:
        return int(self.step.skipped_steps.asnumpy())

    def _load_state(self) -> int:
        """Puts back what `_save` saved; steps done."""
        checkpoint = self.folder.read_state()
        if checkpoint.model != self.model.config:
            raise CheckpointError(
                f"{self.folder.path} holds the state of another model; resume with the configuration it began with"
            )
        ranks = checkpoint.metadata.get("world_size", 1)
        if ranks != device.world_size():
            raise ConfigError(
                f"the run in {self.folder.path} was begun on {ranks} devices and cannot be resumed on "
                f"{device.world_size()}: steps and learning rates would be others. Start as many, or begin a new run "
                f"with train.init_checkpoint={self.folder.path / WEIGHTS_FILE}"
            )
        if self.first_exit_only and not checkpoint.metadata["first_exit_only"]:  # saved after the other exits came in
            self.first_exit_only = False
            self.step = self._make_step()
        state = {parameter.name: parameter for parameter in self.step.state()}
        missing = [name for name in state if name not in checkpoint.weights]
        if missing:
            raise CheckpointError(
                f"the state in {self.folder.path} lacks {missing[0]}; resume with the version of this package that "
                "wrote it"
            )
        weights = {name: value for name, value in checkpoint.weights.items() if name not in state}
        ms_weights = self.model.parameters_dict()
        if set(weights) != set(ms_weights):
            raise CheckpointError(f"the state in {self.folder.path} is not one of {self.model.config.name}")
        for name, parameter in (state | ms_weights).items():
            parameter.set_data(Tensor(checkpoint.weights[name].astype(parameter.asnumpy().dtype)))
        done = int(checkpoint.metadata["step"])
        names = list(self.splits.class_names)
        if names != checkpoint.metadata["class_names"] or done != round(
            checkpoint.metadata["epoch"] * self.steps_per_epoch
        ):
            raise ConfigError(
                f"the run in {self.folder.path} was begun on other data: data.path now holds other classes or another "
                "number of images; resume with the images it began with"
            )
        # A run that a bad image ended within an accumulated batch begins that batch again.
        self.step.batches.set_data(Tensor(done * self.config.train.accumulation_steps, ms.int32))
        self.unfinished = checkpoint.metadata.get("unfinished_epoch")
        log.info("resuming after step %d of %d", done, len(self.rates))
        return done

    def _profiled(self, losses: Iterator[Tensor]) -> Iterator[Tensor]:
        wanted = self.config.profile and self.monitor.first_epoch
        return profiled(losses, self.folder.path / "profile") if wanted else losses
