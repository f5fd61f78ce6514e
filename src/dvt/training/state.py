"""All that a training run is between two steps: what is saved in `state.ckpt`, and what `--resume` restores.

Tensors of the file, by name:

- the weights of the model;
- `adam_moment1.*`, `adam_moment2.*`, `adam_beta1_power`, `adam_beta2_power`, or `sgd_velocity.*`: the optimizer;
- `ema.*`: the moving average of the weights;
- `loss_scale`, `good_steps`; `global_step`, `batches`, `skipped_steps`: the loss scale and the counters.

Its metadata: `step`, `unfinished_epoch` and `best`, see `TrainState`; `fresh`, names of what `train.init_checkpoint`
lacked; and what must be the same in the resumed run, such as `images` (`Splits.identity`). Random numbers need no
place: they follow from the seed and the counters.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import nn

from dvt.checkpoint.native import Checkpoint, load_weights
from dvt.cluster.ranks import Ranks
from dvt.config.files import config_to_dict
from dvt.config.sections import RunConfig
from dvt.data import Splits
from dvt.errors import CheckpointError, ConfigError
from dvt.models.variants import ModelConfig
from dvt.training.folder import WEIGHTS_FILE, Ranked, RunFolder
from dvt.training.schedule import Schedule
from dvt.training.step import TrainStep


@dataclass(frozen=True)
class RunPlan:
    """What is the same for a whole run."""

    config: RunConfig
    model: ModelConfig  # complete, with what only the data set knows
    splits: Splits
    ranks: Ranks
    schedule: Schedule


@dataclass
class TrainState:
    """A run between two steps."""

    model: nn.Cell
    step: TrainStep  # keeps the moments of the optimizer, the moving average, the loss scale and counters
    done: int = 0  # steps of the optimizer
    unfinished_epoch: dict[str, float] | None = None  # row of an epoch that is trained but not yet validated
    best: list[Ranked] = field(default_factory=list)  # epochs whose weights are kept, best first

    def weights(self) -> dict[str, np.ndarray]:
        """The weights that the next step starts from."""
        return {name: parameter.asnumpy() for name, parameter in self.model.parameters_dict().items()}

    def averaged_weights(self) -> dict[str, np.ndarray]:
        """The weights to evaluate: the moving average in place of what it averages, if there is one."""
        return self.weights() | self.step.ema_weights()

    def metadata(self, plan: RunPlan) -> dict[str, Any]:
        """What goes with weights of this state into a checkpoint."""
        return {
            "model": plan.model,
            "class_names": list(plan.splits.class_names),
            "preprocessing": plan.splits.preprocessing,
            "config": config_to_dict(replace(plan.config, resume=False)),
            "images": plan.splits.identity(),
            "step": self.done,
            "epoch": self.done / plan.schedule.steps_per_epoch,
            "world_size": plan.ranks.world_size,
            "first_exit_only": False,  # 0.1.0 could train the first exit alone
        }

    def save(self, folder: RunFolder, plan: RunPlan) -> None:
        """Saves the weights to evaluate and this state."""
        weights = self.weights()
        metadata = self.metadata(plan) | {"unfinished_epoch": self.unfinished_epoch}
        folder.save_weights(weights | self.step.ema_weights(), metadata)
        fresh = [p.name for p in self.model.trainable_params() if getattr(p, "starts_fresh", False)]
        state = metadata | {"best": self.best, "fresh": fresh}
        folder.save_state(weights | self.step.state(), state)

    def restore(self, saved: Checkpoint, plan: RunPlan) -> None:
        """Puts back what `save` saved.

        Raises:
            CheckpointError: The file is the state of another model, or lacks something.
            ConfigError: The run was begun with another number of devices or on other data.
        """
        folder, metadata = Path(plan.config.output), saved.metadata
        begun = f"the run in {folder} was begun on"
        if saved.model != plan.model:
            raise CheckpointError(
                f"{folder} holds the state of another model; resume with the configuration it was begun with"
            )
        before, now = metadata.get("world_size", 1), plan.ranks.world_size
        if before != now:
            raise ConfigError(
                f"{begun} {before} devices and cannot be resumed on {now}: steps and learning rates would be others. "
                f"Start as many, or begin a new run with train.init_checkpoint={folder / WEIGHTS_FILE}"
            )
        kept = self.step.state().keys()
        if missing := kept - saved.weights.keys():
            raise CheckpointError(
                f"the state in {folder} lacks {min(missing)}; resume with the version of this package that wrote it"
            )
        done, steps = int(metadata["step"]), metadata["epoch"] * plan.schedule.steps_per_epoch
        if metadata["class_names"] != list(plan.splits.class_names) or done != round(steps):
            raise ConfigError(
                f"{begun} other data: data.path now holds other classes or another number of images; resume with the "
                "images it was begun with"
            )
        images = metadata.get("images")  # states of 0.1.0 do not say
        if images and (difference := plan.splits.difference(images)):
            raise ConfigError(f"{begun} other images: {difference}; resume with those it was begun with")
        weights = {name: value for name, value in saved.weights.items() if name not in kept}
        load_weights(self.model, weights, source=f"the state in {folder}")
        # A run that a bad image ended within an accumulated batch begins that batch again.
        batches = np.array(done * plan.config.train.accumulation_steps)
        self.step.load_state({name: saved.weights[name] for name in kept} | {"batches": batches})
        self.done, self.unfinished_epoch = done, metadata.get("unfinished_epoch")
        self.best = [(float(accuracy), int(epoch)) for accuracy, epoch in metadata.get("best", [])]
