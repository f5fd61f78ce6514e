"""The optimizers of the published recipes, inside the compiled step: AdamW and SGD with momentum.

AdamW: decoupled weight decay as PyTorch defines it (Loshchilov & Hutter 2019, algorithm 2); `nn.AdamWeightDecay` is
another algorithm (no bias correction). SGD: PyTorch's, with the decay added to the gradient. Weight decay applies to
matrices and larger, not to biases and other 1-D parameters (`is_decayed`; spec: recipes, published for AdamW, taken
over for SGD). One fused kernel per parameter spares the CPU thousands of tiny operations.
"""

from collections.abc import Sequence

from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore import dtype as mstype

from dvt.config.sections import TrainSection

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

# Mapped over the parameters: a Python loop in a branch of the step nests calls until MindSpore gives up.
_adamw = ops.MultitypeFuncGraph("adamw")
_sgd = ops.MultitypeFuncGraph("sgd")


@_adamw.register("Function", *["Tensor"] * 4, "Number", "Number", "Tensor", "Tensor", "Tensor", "Tensor")
def _adamw_one(
    adam, beta1_power, beta2_power, epsilon, learning_rate, decay, lr_scale, parameter, moment1, moment2, gradient
):
    rate = learning_rate * lr_scale
    if decay > 0:
        ops.assign(parameter, parameter * (1.0 - rate * decay))
    adam(parameter, moment1, moment2, beta1_power, beta2_power, rate, BETA1, BETA2, epsilon, gradient)
    return True


@_sgd.register("Function", "Tensor", "Tensor", "Number", "Number", "Tensor", "Tensor", "Tensor")
def _sgd_one(apply_momentum, momentum, learning_rate, decay, lr_scale, parameter, velocity, gradient):
    if decay > 0:
        gradient = gradient + decay * parameter
    apply_momentum(parameter, velocity, learning_rate * lr_scale, gradient, momentum)
    return True


class AdamW(nn.Cell):
    """Call: gradients, a learning rate -> that rate, once the parameters are updated in place.

    PyTorch's epsilon, which is added after the bias correction, is handed to the kernel as epsilon * sqrt(1 - beta2^t).

    Args:
        parameters: What to update.
        weight_decay: Decoupled decay of matrices.
        lr_scales: Share of the learning rate that each parameter takes; None for all of it.
    """

    def __init__(
        self, parameters: Sequence[Parameter], weight_decay: float, lr_scales: Sequence[float] | None = None
    ) -> None:
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple(parameters)
        self.decays = tuple(weight_decay if is_decayed(p) else 0.0 for p in parameters)
        self.lr_scales = tuple(lr_scales or [1.0] * len(parameters))
        self.moment1 = self.parameters.clone("adam_moment1", init="zeros")
        self.moment2 = self.parameters.clone("adam_moment2", init="zeros")
        self.beta1_power = Parameter(Tensor(1.0, mstype.float32), name="adam_beta1_power", requires_grad=False)
        self.beta2_power = Parameter(Tensor(1.0, mstype.float32), name="adam_beta2_power", requires_grad=False)
        self.adam = ops.Adam()
        self.map = ops.HyperMap()

    def state(self) -> list[Parameter]:
        """What a resumed run needs besides the weights."""
        return [*self.moment1, *self.moment2, self.beta1_power, self.beta2_power]

    def construct(self, gradients: tuple[Tensor, ...], learning_rate: Tensor) -> Tensor:
        beta1_power = self.beta1_power * BETA1
        beta2_power = self.beta2_power * BETA2
        ops.assign(self.beta1_power, beta1_power)
        ops.assign(self.beta2_power, beta2_power)
        epsilon = EPSILON * ops.sqrt(1.0 - beta2_power)
        update = ops.partial(_adamw, self.adam, beta1_power, beta2_power, epsilon, learning_rate)
        done = self.map(update, self.decays, self.lr_scales, self.parameters, self.moment1, self.moment2, gradients)
        return ops.depend(learning_rate, done)


class Sgd(nn.Cell):
    """SGD with momentum, with the arguments of `AdamW`; its decay is added to the gradient."""

    def __init__(
        self,
        parameters: Sequence[Parameter],
        weight_decay: float,
        lr_scales: Sequence[float] | None = None,
        momentum: float = 0.9,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple(parameters)
        self.decays = tuple(weight_decay if is_decayed(p) else 0.0 for p in parameters)
        self.lr_scales = tuple(lr_scales or [1.0] * len(parameters))
        self.velocity = self.parameters.clone("sgd_velocity", init="zeros")
        self.momentum = Tensor(momentum, mstype.float32)
        self.apply_momentum = ops.ApplyMomentum()
        self.map = ops.HyperMap()

    def state(self) -> list[Parameter]:
        """What a resumed run needs besides the weights."""
        return list(self.velocity)

    def construct(self, gradients: tuple[Tensor, ...], learning_rate: Tensor) -> Tensor:
        update = ops.partial(_sgd, self.apply_momentum, self.momentum, learning_rate)
        done = self.map(update, self.decays, self.lr_scales, self.parameters, self.velocity, gradients)
        return ops.depend(learning_rate, done)


def build_optimizer(parameters: Sequence[Parameter], train: TrainSection) -> AdamW | Sgd:
    """The optimizer of a configuration for the trainable parameters of a DVT. Heads, and what `train.init_checkpoint`
    lacked, take the full learning rate."""
    fresh = [is_head(parameter) or getattr(parameter, "starts_fresh", False) for parameter in parameters]
    lr_scales = [1.0 if each else train.backbone_lr_scale for each in fresh]
    if train.optimizer == "sgd":
        return Sgd(parameters, train.weight_decay, lr_scales, train.momentum)
    return AdamW(parameters, train.weight_decay, lr_scales)


def is_decayed(parameter: Parameter) -> bool:
    """Whether weight decay applies: not to biases, LayerNorms and other 1-D parameters."""
    return parameter.ndim > 1


def is_head(parameter: Parameter) -> bool:
    """Whether a parameter of a DVT belongs to the classifier of an exit."""
    return ".head." in f".{parameter.name}"
