"""The optimizers of the published recipes, inside the compiled step: AdamW and SGD with momentum.

AdamW: decoupled weight decay as PyTorch defines it (Loshchilov & Hutter 2019, algorithm 2); `nn.AdamWeightDecay` is
another algorithm (no bias correction). SGD: PyTorch's, with the decay added to the gradient. The decay applies to
`is_decayed` (spec: recipes, for AdamW). One fused kernel per parameter spares the CPU thousands of tiny operations.
"""

from collections.abc import Sequence
from typing import Any

from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore import dtype as mstype

from dvt.config.sections import TrainSection

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


_adamw = ops.MultitypeFuncGraph("adamw")
_sgd = ops.MultitypeFuncGraph("sgd")
_select = ops.MultitypeFuncGraph("select")


@_adamw.register("Function", *["Tensor"] * 6, "Number", "Number", *["Tensor"] * 4)
def _adamw_one(adam, power1, power2, beta1, beta2, epsilon, rate, decay, share, parameter, moment1, moment2, gradient):
    rate = rate * share
    if decay > 0:
        ops.assign(parameter, parameter * (1.0 - rate * decay))
    adam(parameter, moment1, moment2, power1, power2, rate, beta1, beta2, epsilon, gradient)
    return True


@_sgd.register("Function", "Tensor", "Tensor", "Number", *["Tensor"] * 3)
def _sgd_one(apply_momentum, momentum, rate, share, parameter, velocity, gradient):
    apply_momentum(parameter, velocity, rate * share, gradient, momentum)
    return True


@_select.register("Tensor", "Tensor")
def _select_one(taken: Tensor, gradient: Tensor) -> Tensor:
    return _where(taken, gradient, 0.0)


def _where(taken: Tensor | None, x: Tensor, otherwise: float) -> Tensor:
    return x if taken is None else ops.where(taken, x, Tensor(otherwise, mstype.float32))


def _decayed(decay: float, parameter: Tensor, gradient: Tensor) -> Tensor:
    return gradient + decay * parameter if decay > 0 else gradient


class _Optimizer(nn.Cell):
    """Call: gradients, a learning rate and whether to take the step, a boolean scalar or None for yes; returns that
    rate once the parameters are updated in place. `lr_scales` are the shares of it that each parameter takes.

    A step that is not taken changes nothing, whatever the gradients are. That is selected on the device, which need not
    wait for the host to read the decision. Selecting copies the gradients.
    """

    def __init__(
        self, parameters: Sequence[Parameter], weight_decay: float, lr_scales: Sequence[float] | None = None
    ) -> None:
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple(parameters)
        self.decays = tuple(weight_decay if is_decayed(p) else 0.0 for p in parameters)
        self.lr_scales = tuple(lr_scales or [1.0] * len(parameters))
        self.map = ops.HyperMap()

    def selected(self, gradients: tuple[Tensor, ...], taken: Tensor | None) -> tuple[Tensor, ...]:
        return gradients if taken is None else self.map(ops.partial(_select, taken), gradients)


class AdamW(_Optimizer):
    """PyTorch's epsilon, added after the bias correction, is handed to the kernel as epsilon * sqrt(1 - beta2^t)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.moment1 = self.parameters.clone("adam_moment1", init="zeros")
        self.moment2 = self.parameters.clone("adam_moment2", init="zeros")
        self.beta1_power = Parameter(Tensor(1.0, mstype.float32), name="adam_beta1_power", requires_grad=False)
        self.beta2_power = Parameter(Tensor(1.0, mstype.float32), name="adam_beta2_power", requires_grad=False)
        self.adam = ops.Adam()

    def state(self) -> list[Parameter]:
        """What a resumed run needs besides the weights."""
        return [*self.moment1, *self.moment2, self.beta1_power, self.beta2_power]

    def construct(self, gradients: tuple[Tensor, ...], learning_rate: Tensor, taken: Tensor | None = None) -> Tensor:
        gradients = self.selected(gradients, taken)
        beta1_power, beta2_power = self.beta1_power * BETA1, self.beta2_power * BETA2
        # With these betas, no gradient and a learning rate of 0, the kernel leaves weights and moments as they are.
        beta1 = _where(taken, Tensor(BETA1, mstype.float32), 1.0)
        beta2 = _where(taken, Tensor(BETA2, mstype.float32), 1.0)
        rate = _where(taken, learning_rate, 0.0)
        epsilon = EPSILON * ops.sqrt(1.0 - beta2_power)
        update = ops.partial(_adamw, self.adam, beta1_power, beta2_power, beta1, beta2, epsilon, rate)
        done = self.map(update, self.decays, self.lr_scales, self.parameters, self.moment1, self.moment2, gradients)
        ops.assign(self.beta1_power, self.beta1_power * beta1)
        ops.assign(self.beta2_power, self.beta2_power * beta2)
        return ops.depend(learning_rate, done)


class Sgd(_Optimizer):
    """The decay is added to the gradient."""

    def __init__(self, *args: Any, momentum: float = 0.9, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.velocity = self.parameters.clone("sgd_velocity", init="zeros")
        self.momentum = Tensor(momentum, mstype.float32)
        self.apply_momentum = ops.ApplyMomentum()

    def state(self) -> list[Parameter]:
        """What a resumed run needs besides the weights."""
        return list(self.velocity)

    def construct(self, gradients: tuple[Tensor, ...], learning_rate: Tensor, taken: Tensor | None = None) -> Tensor:
        gradients = self.selected(self.map(_decayed, self.decays, self.parameters, gradients), taken)
        momentum, rate = _where(taken, self.momentum, 1.0), _where(taken, learning_rate, 0.0)
        update = ops.partial(_sgd, self.apply_momentum, momentum, rate)
        done = self.map(update, self.lr_scales, self.parameters, self.velocity, gradients)
        return ops.depend(learning_rate, done)


def build_optimizer(parameters: Sequence[Parameter], train: TrainSection) -> AdamW | Sgd:
    """The optimizer of a configuration for the trainable parameters of a DVT. Heads, and what `train.init_checkpoint`
    lacked, take the full learning rate."""
    lr_scales = [exit_lr_scale(parameter, train) for parameter in parameters]
    for place, parameter in enumerate(parameters):
        if not (is_head(parameter) or getattr(parameter, "starts_fresh", False)):
            lr_scales[place] *= train.backbone_lr_scale
    if train.optimizer == "sgd":
        return Sgd(parameters, train.weight_decay, lr_scales, momentum=train.momentum)
    return AdamW(parameters, train.weight_decay, lr_scales)


def exit_lr_scale(parameter: Parameter, train: TrainSection) -> float:
    """The share of the learning rate that the exit of this parameter of a DVT takes."""
    return 1.0 if train.exit_lr_scales is None else train.exit_lr_scales[int(parameter.name.split(".")[1])]


def is_decayed(parameter: Parameter) -> bool:
    """Whether weight decay applies: not to biases, LayerNorms and other 1-D parameters."""
    return parameter.ndim > 1


def is_head(parameter: Parameter) -> bool:
    """Whether a parameter of a DVT belongs to the classifier of an exit."""
    return ".head." in f".{parameter.name}"
