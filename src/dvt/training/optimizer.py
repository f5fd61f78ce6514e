"""The optimizers of the published recipes, inside the compiled step: AdamW and SGD with momentum.

AdamW: decoupled weight decay as PyTorch defines it (Loshchilov & Hutter 2019, algorithm 2); `nn.AdamWeightDecay` is
something else (no bias correction). SGD: PyTorch's, with the decay added to the gradient. Matrices and larger are
decayed, biases and other 1-D parameters are not (spec: recipes). One fused kernel per parameter keeps the CPU step free
of thousands of tiny operations.
"""

from collections.abc import Sequence

from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore import dtype as mstype

from dvt.config import TrainSection

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class AdamW(nn.Cell):
    """Updates `parameters` in place from their gradients and a learning rate.

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

    def state(self) -> list[Parameter]:
        """What a resumed run needs besides the weights."""
        return [*self.moment1, *self.moment2, self.beta1_power, self.beta2_power]

    def construct(self, gradients: tuple[Tensor, ...], learning_rate: Tensor) -> Tensor:
        beta1_power = self.beta1_power * BETA1
        beta2_power = self.beta2_power * BETA2
        ops.assign(self.beta1_power, beta1_power)
        ops.assign(self.beta2_power, beta2_power)
        epsilon = EPSILON * ops.sqrt(1.0 - beta2_power)
        for i in range(len(self.parameters)):
            parameter, rate = self.parameters[i], _scaled(learning_rate, self.lr_scales[i])
            if self.decays[i] > 0:
                ops.assign(parameter, parameter * (1.0 - rate * self.decays[i]))
            self.adam(
                parameter,
                self.moment1[i],
                self.moment2[i],
                beta1_power,
                beta2_power,
                rate,
                BETA1,
                BETA2,
                epsilon,
                gradients[i],
            )
        return learning_rate


class Sgd(nn.Cell):
    """SGD with momentum; arguments and use as of `AdamW`, the decay is coupled."""

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

    def state(self) -> list[Parameter]:
        """What a resumed run needs besides the weights."""
        return list(self.velocity)

    def construct(self, gradients: tuple[Tensor, ...], learning_rate: Tensor) -> Tensor:
        for i in range(len(self.parameters)):
            parameter, gradient = self.parameters[i], gradients[i]
            if self.decays[i] > 0:
                gradient = gradient + self.decays[i] * parameter
            rate = _scaled(learning_rate, self.lr_scales[i])
            self.apply_momentum(parameter, self.velocity[i], rate, gradient, self.momentum)
        return learning_rate


def build_optimizer(parameters: Sequence[Parameter], train: TrainSection) -> AdamW | Sgd:
    """The optimizer of a configuration for the trainable parameters of a DVT; heads take the full learning rate."""
    lr_scales = [1.0 if is_head(parameter) else train.backbone_lr_scale for parameter in parameters]
    if train.optimizer == "sgd":
        return Sgd(parameters, train.weight_decay, lr_scales, train.momentum)
    return AdamW(parameters, train.weight_decay, lr_scales)


def is_decayed(parameter: Parameter) -> bool:
    """Whether weight decay applies: not to biases, LayerNorms and other 1-D parameters."""
    return parameter.ndim > 1


def is_head(parameter: Parameter) -> bool:
    """Whether a parameter of a DVT belongs to the classifier of an exit."""
    return ".head." in f".{parameter.name}"


def _scaled(learning_rate: Tensor, scale: float) -> Tensor:
    return learning_rate if scale == 1.0 else learning_rate * scale
