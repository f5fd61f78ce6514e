"""One training step as one compiled graph: losses, gradients, loss scale, reduction over the ranks, optimizer and the
moving average of the weights.

The step needs nothing from outside but a batch: learning rate, random masks and the place within an accumulated batch
follow from counters that it keeps. So batches can be sunk to a device, and a resumed run goes on as if unbroken.

But on the CPU, no branch asks for the value of a tensor, which would make the device wait for the host: what is not to
be changed is selected (not multiplied by zero: NaN stays NaN), and where an accumulated batch ends the host knows by
itself. The host reads losses and signals every `dvt.training.run.READ_EVERY` steps, and counters once per epoch.
"""

from collections.abc import Mapping

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore import dtype as mstype

from dvt import device
from dvt.cluster.ranks import ALONE, Ranks
from dvt.config.sections import TrainSection
from dvt.models.noise import NoiseKey
from dvt.models.per_device import operators
from dvt.training.gradients import GradientsMean, Mean
from dvt.training.loss import ExitLosses
from dvt.training.optimizer import build_optimizer, exit_lr_scale

MAX_LOSS_SCALE = 2.0**24

# Not plain functions: of these, HyperMap takes all partial ones for the same (MindSpore 2.10).
_multiply = ops.MultitypeFuncGraph("multiply")
_average = ops.MultitypeFuncGraph("average")


@_multiply.register("Tensor", "Tensor")
def _multiply_one(factor: Tensor, gradient: Tensor) -> Tensor:
    return gradient * factor


@_average.register("Tensor", "Tensor", "Tensor")
def _average_one(share: Tensor, average: Tensor, parameter: Tensor) -> Tensor:
    return ops.assign(average, average + share * (parameter - average))


def _clear(accumulated: Parameter) -> Tensor:
    return ops.assign(accumulated, ops.zeros_like(accumulated))


class TrainStep(nn.Cell):
    """Call: images (B, I, S, S), targets (B,) or (B, classes) -> losses per exit (K,), averaged over the ranks.

    With `accumulation_steps` A the weights change with every A-th call. A step whose gradients are not finite changes
    neither weights nor moments nor averages; it halves the loss scale, if there is one, and counts as skipped.

    Args:
        model: A DVT in training mode; with mixed precision, after `set_precision`.
        train: How to train.
        learning_rates: (steps,) of each step of the optimizer.
        seed: Of dropout and stochastic depth; ranks draw differently.
        ranks: The place of this process among those that average their gradients.
    """

    def __init__(
        self, model: nn.Cell, train: TrainSection, learning_rates: np.ndarray, seed: int = 0, ranks: Ranks = ALONE
    ) -> None:
        super().__init__(auto_prefix=False)
        self.losses = ExitLosses(model, train.label_smoothing, train.distillation, train.distillation_temperature)
        self.parameters = ParameterTuple([p for p in model.trainable_params() if exit_lr_scale(p, train) > 0])
        self.optimizer = build_optimizer(list(self.parameters), train)
        self.exit_weights = Tensor(train.exit_weights or [1.0] * model.num_exits, mstype.float32)
        self.value_and_grad = ms.value_and_grad(self._objective, None, self.parameters, has_aux=True)
        self.learning_rates = Tensor(learning_rates)
        sizes, alone = [parameter.size for parameter in self.parameters], ranks.world_size == 1
        self.reduce_gradients = nn.Identity() if alone else GradientsMean(sizes, ranks.world_size)
        self.reduce_losses = nn.Identity() if alone else Mean(ranks.world_size)
        self.all_finite, self.branches = operators().all_finite, operators().branches
        self.clip_norm = train.clip_norm

        self.global_step = _counter("global_step")  # steps of the optimizer, skipped ones included
        self.batches = _counter("batches")  # calls
        self.skipped_steps = _counter("skipped_steps")
        self.noise_seed = Tensor((seed * 7919 + ranks.rank * 104729 + 1) & 0x7FFFFFFF, mstype.int32)
        self.noise_key = NoiseKey()
        self.map = ops.HyperMap()

        self.accumulation = train.accumulation_steps
        self.accumulated = self.parameters.clone("accumulated", init="zeros") if self.accumulation > 1 else None
        self.scaled = train.amp_level != "O0"
        self.growth_window = train.loss_scale_window
        scale = train.loss_scale if self.scaled else 1.0
        self.loss_scale = Parameter(Tensor(scale, mstype.float32), name="loss_scale", requires_grad=False)
        self.good_steps = _counter("good_steps")  # since the loss scale last changed

        self.ema_share = Tensor(np.float32(1) - np.float32(train.ema_decay))  # as MindSpore rounds it in a graph
        self.ema = self.parameters.clone("ema", init="same") if train.ema_decay > 0 else None

        self._calls = 0  # `batches`, as the host counts them
        self._graphs = [device.ahead_of_time(self, updates) for updates in (False, True)]

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        # One graph adds to the sums, one updates the weights as well: the host counts, and the device need not ask it.
        self._calls += 1
        return self._graphs[self._calls % self.accumulation == 0](images, targets)

    def construct(self, images: Tensor, targets: Tensor, updates: bool) -> Tensor:
        noise_key = self.noise_key(self.noise_seed, self.batches + 0)
        (objective, losses), gradients = self.value_and_grad(images, targets, noise_key)
        ops.assign_add(self.batches, Tensor(1, mstype.int32))
        losses = self.reduce_losses(ops.depend(losses, objective))
        if self.accumulated is not None:
            gradients = self.map(ops.assign_add, self.accumulated, gradients)
        # The result depends on the update: MindSpore drops what nobody takes the value of.
        return ops.depend(losses, self._update(gradients) if updates else gradients)

    def state(self) -> dict[str, np.ndarray]:
        """Everything besides the weights that a resumed run needs, between two steps of the optimizer."""
        return {name: parameter.asnumpy() for name, parameter in self._kept().items()}

    def load_state(self, values: Mapping[str, np.ndarray]) -> None:
        """Puts back values of `state`, all or some."""
        kept = self._kept()
        for name, value in values.items():
            kept[name].set_data(Tensor(np.asarray(value).astype(kept[name].asnumpy().dtype)))
        self._calls = int(self.batches.asnumpy())

    def skipped(self) -> int:
        return int(self.skipped_steps.asnumpy())

    def _kept(self) -> dict[str, Parameter]:
        counters = [self.global_step, self.batches, self.skipped_steps, self.loss_scale, self.good_steps]
        averages = self.ema if self.ema is not None else ()
        return {parameter.name: parameter for parameter in (*self.optimizer.state(), *counters, *averages)}

    def ema_weights(self) -> dict[str, np.ndarray]:
        """The averaged weights under the model's own names; empty if the average is switched off."""
        if self.ema is None:
            return {}
        return {p.name: average.asnumpy() for p, average in zip(self.parameters, self.ema, strict=True)}

    def _objective(self, images: Tensor, targets: Tensor, noise_key: Tensor) -> tuple[Tensor, Tensor]:
        losses = self.losses(images, targets, noise_key)  # (K,)
        objective = (losses * self.exit_weights).sum()
        if self.scaled:
            objective = objective * self.loss_scale
        return objective, losses

    def _update(self, gradients: tuple[Tensor, ...]) -> Tensor:
        """One step of the optimizer, unless a gradient of any rank is not finite. All decisions stay on the device."""
        learning_rate = ops.gather(self.learning_rates, self.global_step, 0)
        ops.assign_add(self.global_step, Tensor(1, mstype.int32))
        gradients = self.reduce_gradients(gradients)  # not finite on one rank: then on all
        taken = self.all_finite(gradients)
        ops.assign_add(self.skipped_steps, ops.logical_not(taken).astype(mstype.int32))
        if self.scaled or self.accumulation > 1:
            gradients = self.map(ops.partial(_multiply, 1.0 / (self.loss_scale * self.accumulation)), gradients)
        if self.clip_norm is not None:
            gradients = ops.clip_by_global_norm(gradients, self.clip_norm)
        if self.branches:
            done = learning_rate
            if taken:
                done = self.optimizer(gradients, learning_rate)
        else:
            done = self.optimizer(gradients, learning_rate, taken)
        if self.ema is not None:
            share = ops.where(taken, self.ema_share, Tensor(0.0, mstype.float32))
            # After the update: the parameters are read again.
            done = self.map(ops.partial(_average, share), self.ema, ops.depend(self.parameters, done))
        if self.accumulated is not None:
            done = self.map(_clear, ops.depend(self.accumulated, done))
        if self.scaled:
            done = ops.depend(self._adapt_loss_scale(taken), done)
        return done

    def _adapt_loss_scale(self, taken: Tensor) -> Tensor:
        good_steps = (self.good_steps + 1) * taken.astype(mstype.int32)
        full = good_steps >= self.growth_window
        grown = ops.where(full, ops.minimum(self.loss_scale * 2.0, MAX_LOSS_SCALE), self.loss_scale)
        scale = ops.where(taken, grown, ops.maximum(self.loss_scale * 0.5, 1.0))
        ops.assign(self.good_steps, ops.where(full, Tensor(0, mstype.int32), good_steps))
        return ops.assign(self.loss_scale, scale)


def _counter(name: str) -> Parameter:
    return Parameter(Tensor(0, mstype.int32), name=name, requires_grad=False)
