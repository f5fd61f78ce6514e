"""The parts every stage is made of: dense layers with the paper's initialisation, GELU, LayerNorm, a transposition, MLP."""

from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.common.initializer import TruncatedNormal, Uniform, initializer

from dvt.kernels.operators import gelu_kernel, layer_norm_kernel, swap_kernel


def dense(in_channels: int, out_channels: int, init_std: float, has_bias: bool = True) -> nn.Dense:
    """Linear layer, initialised as in the spec: truncated normal weights, bias 0."""
    weight_init = TruncatedNormal(init_std)
    return nn.Dense(in_channels, out_channels, weight_init=weight_init, bias_init="zeros", has_bias=has_bias)


class Gelu(nn.Cell):
    """The exact (erf) GELU; float32 on the CPU by the compiled kernel where there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = gelu_kernel()

    def construct(self, x: Tensor) -> Tensor:
        if self.kernel is not None and x.dtype == mstype.float32:
            return self.kernel(x)
        return ops.gelu(x, approximate="none")


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the last axis, in float32 whatever comes in; on the CPU by the compiled kernel if there is one."""

    def __init__(self, dim: int, epsilon: float) -> None:
        super().__init__((dim,), epsilon=epsilon)
        self.kernel = layer_norm_kernel()
        self.epsilon_tensor = Tensor([epsilon], mstype.float32)

    def construct(self, x: Tensor) -> Tensor:
        x = x.astype(mstype.float32)
        if self.kernel is not None:
            return self.kernel(x, self.gamma, self.beta, self.epsilon_tensor)
        return super().construct(x)


class SwapMiddle(nn.Cell):
    """(A, I, J, D) -> (A, J, I, D); float32 on the CPU by the compiled kernel where there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = swap_kernel()

    def construct(self, x: Tensor) -> Tensor:
        if self.kernel is not None and x.dtype == mstype.float32:
            return self.kernel(x)
        return x.transpose(0, 2, 1, 3)


class Mlp(nn.Cell):
    """Dense, GELU, Dense over the last axis, with dropout after both layers in training."""

    def __init__(self, dim: int, hidden: int, out: int, init_std: float, dropouts: tuple[nn.Cell, nn.Cell]) -> None:
        super().__init__()
        self.fc1 = dense(dim, hidden, init_std)
        self.act = Gelu()
        self.fc2 = dense(hidden, out, init_std)
        self.dropout1, self.dropout2 = dropouts

    def construct(self, x: Tensor, noise_key: Tensor | None) -> Tensor:
        x = self.dropout1(self.act(self.fc1(x)), noise_key)
        return self.dropout2(self.fc2(x), noise_key)


class ChannelDense(nn.Cell):
    """1x1 convolution over the channel axis as one matrix product: (B, I, P) -> (B, O, P).

    Initialised like a convolution: uniform in +-1/sqrt(fan_in), weight and bias.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        bound = in_channels**-0.5
        self.weight = Parameter(initializer(Uniform(bound), (out_channels, in_channels)), name="weight")
        self.bias = Parameter(initializer(Uniform(bound), (out_channels,)), name="bias")
        self.add_bias = ops.BiasAdd()  # over axis 1; a broadcast sum holds 16 bytes per element on the CPU
        self.compute_type = mstype.float32  # see `dvt.models.precision`

    def construct(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.astype(self.compute_type), self.bias.astype(self.compute_type)
        return self.add_bias(ops.matmul(weight, x.astype(self.compute_type)), bias)
