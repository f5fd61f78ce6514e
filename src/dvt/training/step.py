"""One training step as one compiled graph: losses, gradients, AdamW and the moving average of the weights."""

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore import dtype as mstype

from dvt.config import TrainSection
from dvt.training.loss import ExitLosses
from dvt.training.optimizer import AdamW


class TrainStep(nn.Cell):
    """Call: images (B, I, S, S), targets (B,) or (B, classes) -> losses per exit (K,), before the update.

    The learning rate is looked up by the step counter, so the step needs nothing from outside but data.
    """

    def __init__(self, model: nn.Cell, train: TrainSection, learning_rates: np.ndarray) -> None:
        super().__init__(auto_prefix=False)
        self.losses = ExitLosses(model, train.label_smoothing)
        parameters = model.trainable_params()
        self.parameters = ParameterTuple(parameters)
        self.optimizer = AdamW(parameters, train.weight_decay)
        weights = train.exit_weights or [1.0] * model.config.num_exits
        self.exit_weights = Tensor(weights, mstype.float32)
        self.value_and_grad = ms.value_and_grad(self._objective, None, self.parameters, has_aux=True)
        self.learning_rates = Tensor(learning_rates)
        self.global_step = Parameter(Tensor(0, mstype.int32), name="global_step", requires_grad=False)
        self.ema_decay = train.ema_decay
        self.ema = self.parameters.clone("ema", init="same") if train.ema_decay > 0 else None

    def construct(self, images: Tensor, targets: Tensor) -> Tensor:
        (objective, losses), gradients = self.value_and_grad(images, targets)
        self.optimizer(gradients, ops.gather(self.learning_rates, self.global_step, 0))
        ops.assign(self.global_step, self.global_step + 1)
        if self.ema is not None:
            for i in range(len(self.parameters)):
                ops.assign(self.ema[i], self.ema[i] + (1.0 - self.ema_decay) * (self.parameters[i] - self.ema[i]))
        return ops.depend(losses, objective)

    def state(self) -> list[Parameter]:
        """Everything besides the weights that a resumed run needs: moments, moving average, step counter."""
        return [*self.optimizer.state(), self.global_step, *(self.ema if self.ema is not None else ())]

    def ema_weights(self) -> dict[str, np.ndarray]:
        """The averaged weights under the model's own names; empty if the average is switched off."""
        if self.ema is None:
            return {}
        return {p.name: average.asnumpy() for p, average in zip(self.parameters, self.ema, strict=True)}

    def _objective(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        losses = self.losses(images, targets)  # (K,)
        return (losses * self.exit_weights).sum(), losses
