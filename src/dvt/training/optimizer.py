"""AdamW with decoupled weight decay, as PyTorch defines it (Loshchilov & Hutter 2019, algorithm 2)."""

from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore import dtype as mstype

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class AdamW(nn.Cell):
    """Updates `parameters` in place from their gradients and a learning rate, inside the compiled step.

    Matrices and larger are decayed; 1-D parameters are not (spec: recipes).
    `nn.AdamWeightDecay` is not AdamW (no bias correction). One fused Adam kernel per parameter keeps the CPU step free
    of thousands of tiny operations; PyTorch's epsilon, which is added after the bias correction, is handed to the
    kernel as epsilon * sqrt(1 - beta2^t).
    """

    def __init__(self, parameters: list[Parameter], weight_decay: float) -> None:
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple(parameters)
        self.decays = tuple(weight_decay if is_decayed(p) else 0.0 for p in parameters)
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
            parameter = self.parameters[i]
            if self.decays[i] > 0:
                ops.assign(parameter, parameter * (1.0 - learning_rate * self.decays[i]))
            self.adam(
                parameter,
                self.moment1[i],
                self.moment2[i],
                beta1_power,
                beta2_power,
                learning_rate,
                BETA1,
                BETA2,
                epsilon,
                gradients[i],
            )
        return learning_rate


def is_decayed(parameter: Parameter) -> bool:
    """Whether weight decay applies: not to biases, LayerNorms and other 1-D parameters."""
    return parameter.ndim > 1
