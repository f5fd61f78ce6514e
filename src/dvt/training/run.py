"""The training run, on all ranks: `train` is the way in, `build` makes the parts, `Training.fit` is the loop.

Rank 0 alone writes (but profiles). Whatever ends a run (Ctrl-C, a signal, a loss that is not finite) must end it on all
ranks after the same step, so such decisions are taken from values that the ranks have exchanged.
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from tqdm import tqdm

from dvt import device
from dvt.checkpoint import transfer
from dvt.cluster.ranks import Ranks
from dvt.config.files import config_to_yaml
from dvt.config.sections import RunConfig
from dvt.data import Splits, load_splits
from dvt.data.progress import progress
from dvt.errors import ConfigError, DataError, work_begun
from dvt.models.cascade import build_from_config
from dvt.models.precision import set_precision
from dvt.training.agreement import (
    SharedDataError,
    errors_shared,
    require_same_code,
    require_same_data,
    require_same_weights,
)
from dvt.training.feed import Feed, profiled
from dvt.training.folder import WEIGHTS_FILE, RunFolder, write_environment
from dvt.training.metrics import RunRecords
from dvt.training.monitor import Monitor, StopBetweenSteps
from dvt.training.schedule import Schedule
from dvt.training.state import RunPlan, TrainState
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
    ranks = Ranks.join()
    main = ranks.rank == 0
    require_same_code(config, ranks)
    with RunFolder.opened(config, writes=main) as folder, contextlib.ExitStack() as stack:
        if not main:  # what all ranks would say alike is said once
            logging.getLogger("dvt").setLevel(logging.WARNING)
        log.debug("configuration:\n%s", config_to_yaml(config))
        splits = load_splits(
            config.data, config.model.input_size, config.seed, config.augment, config.train.label_smoothing
        )
        require_same_data(splits, ranks)
        run = build(config, splits, folder, ranks)
        description = used.description + (f", {ranks.world_size} ranks" if ranks.world_size > 1 else "")
        log.info("device: %s", description)
        for line in splits.describe().splitlines():
            log.info("%s", line)
        folder.begin()
        if main:
            write_environment(folder.path, description)
            resume_step = run.state.done if config.resume else None
            run.records = stack.enter_context(RunRecords(folder.path, resume_step))
        with work_begun(), ranks.losses_named():
            run.fit()
    ranks.leave()
    return folder.path / WEIGHTS_FILE


def build(config: RunConfig, splits: Splits, folder: RunFolder, ranks: Ranks) -> "Training":
    """The parts of a run, at its first step or, with `config.resume`, where the saved state ends.

    Raises ConfigError, DataError and CheckpointError for what cannot be trained or resumed.
    """
    train = config.train
    model_config = config.model.resolve(len(splits.class_names), splits.preprocessing["in_channels"])
    for key in ("exit_weights", "exit_lr_scales"):
        given, needed = getattr(train, key), model_config.num_exits
        if given is not None and len(given) != needed:
            raise ConfigError(f"train.{key} has {len(given)} entries; a model of {needed} exits needs as many")
    batches = splits.training(train.batch_size, ranks.shard, train.accumulation_steps).per_epoch
    plan = RunPlan(config, model_config, splits, ranks, Schedule.of(train, batches, ranks.world_size))
    validation = None
    if train.eval_every_epochs:
        shown = splits.with_resize_size(train.eval_resize_size)
        validation = Validation(model_config, shown, config.eval.batch_size, ranks)
    saved = folder.read_state() if config.resume else None
    if train.coarse_first_epochs and (saved is None or saved.metadata["first_exit_only"]):
        raise ConfigError(
            f"train.coarse_first_epochs is {train.coarse_first_epochs}; it must be 0: training the first exit alone "
            "made the later ones worse (docs/results.md) and is no longer done"
        )
    model = _build_model(plan)
    if saved is not None:
        transfer.mark_fresh(model, saved.metadata.get("fresh", ()))
    step = TrainStep(model, train, plan.schedule.rates, config.seed, ranks)
    step.set_train(True)
    state = TrainState(model, step)
    if saved is not None:
        state.restore(saved, plan)
        log.info("resuming after step %d of %d", state.done, plan.schedule.steps)
    require_same_weights(state.weights() | step.state(), ranks)
    monitor = Monitor(plan.schedule, train.max_failed_batches, train.amp_level != "O0", folder.last_good)
    return Training(plan, folder, state, validation, monitor)


def _build_model(plan: RunPlan) -> nn.Cell:
    """The model in training mode, which starts from `train.init_checkpoint` where that fits."""
    config, train = plan.config, plan.config.train
    # Here, so that the weights do not depend on what was built before; MindSpore takes seeds below 2**32.
    ms.set_seed(config.seed % 2**32)
    model = build_from_config(plan.model)
    if train.init_checkpoint is not None and not config.resume:  # a resumed run has its own weights
        initial = transfer.initial_weights(plan.model, train.init_checkpoint, train.init_exits)
        for line in transfer.apply(model, initial):
            log.info("%s", line)
    model.set_train(True)
    set_precision(model, train.amp_level)
    if train.recompute:
        for block in (block for exit_ in model.exits for block in exit_.blocks):
            block.recompute()
    return model


@dataclass
class Training:
    plan: RunPlan
    folder: RunFolder
    state: TrainState
    validation: Validation | None
    monitor: Monitor
    records: RunRecords | None = None  # of rank 0

    def fit(self) -> None:
        """Trains to the end, or until something ends the run."""
        self._announce()
        state, plan, schedule, config = self.state, self.plan, self.plan.schedule, self.plan.config
        feed = Feed(state.step, plan.splits, config.train, plan.ranks, state.done * config.train.accumulation_steps)
        bar = progress(total=schedule.steps, initial=state.done, unit="step", desc="train", smoothing=0.05)
        with bar, StopBetweenSteps() as stop, self._saved_when_stopped():
            if state.unfinished_epoch is not None:
                self._finish_epoch(state.unfinished_epoch)
            first = state.done // schedule.steps_per_epoch
            for epoch in range(first, schedule.epochs):
                results = feed.epoch()
                if config.profile and epoch == first:
                    results = profiled(results, self.folder.path / "profile")
                stopping = self._train_epoch(epoch, results, bar, stop)
                self._end_epoch(epoch + 1)
                if stopping and state.done < schedule.steps:
                    raise KeyboardInterrupt
        log.info("done: %s", self.folder.path / WEIGHTS_FILE)

    def _train_epoch(self, epoch: int, results: Iterator[Tensor], bar: tqdm, stop: StopBetweenSteps) -> bool:
        """The steps of an epoch, or those that are left of it; whether the run was asked to stop during the last ones.

        Raises KeyboardInterrupt on all ranks after the same step if one was asked to stop before, and DVTError if the
        loss is no longer finite or all steps were skipped.
        """
        state, accumulation = self.state, self.plan.config.train.accumulation_steps
        self.monitor.begin_epoch(epoch, state.done)
        last, stopping = (epoch + 1) * self.plan.schedule.steps_per_epoch, False
        skipped_before, alone = state.step.skipped(), self.plan.ranks.world_size == 1
        pending: list[Tensor] = []  # losses not yet read
        for number, losses in enumerate(results, start=1):
            pending.append(losses)
            if number % accumulation:
                continue
            state.done += 1
            bar.update()
            if (alone and stop.requested) or state.done % READ_EVERY == 0 or state.done == last:
                self._read(pending)
                bar.set_postfix_str(self.monitor.status)
                pending = []
                # A signal reaches the ranks at different steps; they stop after the same one.
                stopping = self.plan.ranks.sum(np.array([stop.requested]))[0] > 0
                if stopping and state.done < last:
                    raise KeyboardInterrupt
        if state.step.skipped() - skipped_before >= self.plan.schedule.steps_per_epoch:
            skipped = f"at step {state.done}: all steps of epoch {epoch + 1} were skipped"
            raise self.monitor.diverged(f"the gradients are no longer finite {skipped}")
        return stopping

    def _read(self, pending: list[Tensor]) -> None:
        """Takes in the losses of the last few batches; raises DVTError if they stay infinite or NaN."""
        losses = np.stack([each.asnumpy() for each in pending])  # (batches, K)
        mean = self.monitor.read(losses, self.state.done)
        if self.records is not None and mean is not None:
            self.records.step(self.state.done, mean, self.plan.schedule.rate_at(self.state.done))

    def _end_epoch(self, epochs_done: int) -> None:
        self._require_finite_weights()
        step, train, schedule = self.state.step, self.plan.config.train, self.plan.schedule
        row = self.monitor.epoch_row(self.state.done) | {"skipped_steps": step.skipped()}
        if train.amp_level != "O0":
            row["loss_scale"] = float(step.loss_scale.asnumpy())
        self.state.unfinished_epoch = row
        if all(schedule.is_due(epochs_done, n) for n in (train.eval_every_epochs, train.checkpoint_every_epochs)):
            self._save()  # if the validation fails, the epoch need not be trained again
        self._check_bad_images(epochs_done - 1)
        self._finish_epoch(row)

    def _finish_epoch(self, row: dict[str, float]) -> None:
        """Validation, checkpoints, and one line in the log and in `metrics.csv`."""
        state, epochs_done, is_best = self.state, int(row["epoch"]), False
        train, schedule = self.plan.config.train, self.plan.schedule
        if schedule.is_due(epochs_done, train.eval_every_epochs):
            weights = state.averaged_weights()
            accuracy = self.validation.accuracy(weights)
            row = row | {f"val_accuracy_exit_{k}": value for k, value in enumerate(accuracy)}
            this = (accuracy[-1], epochs_done)
            state.best = self.folder.keep_best(state.best, this, weights, state.metadata(self.plan))
            is_best = state.best[:1] == [this]
        self.monitor.log_epoch(row, is_best)
        if self.records is not None:
            self.records.epoch(row)
        state.unfinished_epoch = None
        if schedule.is_due(epochs_done, train.checkpoint_every_epochs):
            self._save()

    def _check_bad_images(self, epoch: int) -> None:
        """Logs how many images of an epoch were replaced over all ranks; if too many, raises DataError on all ranks."""
        bad_images, ranks = self.plan.splits.bad_images, self.plan.ranks
        if not bad_images.skips:
            return
        replaced = int(ranks.sum(np.array([bad_images.replaced[epoch]]))[0])
        if replaced:
            text = f"{replaced} of the training images shown could not be read; other images were used instead"
            log.warning("epoch %d/%d: %s", epoch + 1, self.plan.schedule.epochs, text)
        with errors_shared(ranks):
            bad_images.check("train", replaced)

    @contextlib.contextmanager
    def _saved_when_stopped(self) -> Iterator[None]:
        """Around the loop: saves where a run can go on later, after a signal or at a bad image."""
        state, folder = self.state, self.folder
        try:
            yield
        except KeyboardInterrupt:
            self._save()
            usable = f"{folder.path / WEIGHTS_FILE} is usable, and the same command with --resume goes on"
            log.warning("interrupted after step %d of %d; %s", state.done, self.plan.schedule.steps, usable)
            self.plan.ranks.leave()  # all ranks are here, after the same step
            raise
        except DataError as error:
            if not state.done:
                raise
            self._save()
            if isinstance(error, SharedDataError):
                self.plan.ranks.leave()
            repaired = "once the image is replaced (a run needs as many as before), or with --data.on_bad_image skip"
            raise DataError(f"{error}\n{folder.last_good()}; {repaired}, --resume goes on") from error

    def _save(self) -> None:
        self._require_finite_weights()
        self.state.save(self.folder, self.plan)

    def _require_finite_weights(self) -> None:
        if not all(np.isfinite(value).all() for value in self.state.weights().values()):
            raise self.monitor.diverged(f"the weights are no longer finite at step {self.state.done}")

    def _announce(self) -> None:
        train, schedule = self.plan.config.train, self.plan.schedule
        epochs = "1 epoch" if schedule.epochs == 1 else f"{schedule.epochs} epochs"
        steps = f"{schedule.steps_per_epoch} steps of {schedule.images_per_step} images"
        log.info("training %s: %s of %s; the first step compiles for a while", self.plan.model.name, epochs, steps)
        if schedule.peak != train.learning_rate:
            scaled = f"scaled from {train.learning_rate:.3g} for {train.base_batch_size} images per step"
            log.info("learning rate %.3g, %s to the %d of this run", schedule.peak, scaled, schedule.images_per_step)
