"""The parts that every exit is made of: dense layers, initialised as in the paper, GELU, LayerNorm, softmax, MLP.
`dvt.models.kernels` puts compiled operators in place of MindSpore's, `dvt.models.precision` changes types."""

import functools
from collections.abc import Callable
from typing import Any

from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.common.initializer import Initializer, TruncatedNormal, Uniform, Zero, initializer

_INV_SQRT2 = 0.5**0.5

_matmul, _reshape, _cast, _erf = ops.MatMul(transpose_b=True), ops.Reshape(), ops.Cast(), ops.Erf()
plain_bias = ops.BiasAdd()


@functools.cache
def _linear_with(add_bias: ops.BiasAdd | ops.Custom) -> Callable[..., Tensor]:
    """x (..., I), weight (O, I), bias (O,) or None, compute_type -> (..., O). A function with the operator inside, of
    which MindSpore works out the types once per shape, not once per cell or call: models compile faster."""

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None, compute_type: mstype.Type) -> Tensor:
        product = _matmul(_cast(_reshape(x, (-1, weight.shape[1])), compute_type), _cast(weight, compute_type))
        if bias is not None:
            product = add_bias(product, _cast(bias, compute_type))
        return _reshape(product, x.shape[:-1] + (weight.shape[0],))

    return linear


class Dense(nn.Dense):
    """nn.Dense over the last axis without its case distinctions, which are most of what a model takes to compile."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.compute_in(mstype.float32, plain_bias)

    def compute_in(self, compute_type: mstype.Type, add_bias: ops.BiasAdd | ops.Custom) -> None:
        """Chooses the type of the product and what adds the bias to it."""
        self.compute_type, self.linear = compute_type, _linear_with(add_bias)

    def construct(self, x: Tensor) -> Tensor:
        return self.linear(x, self.weight, self.bias, self.compute_type)


class ChannelDense(nn.Cell):
    """1x1 convolution over the channel axis as one matrix product, initialised like one: (B, I, P) -> (B, O, P)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        bound = in_channels**-0.5
        self.weight = Parameter(initializer(Uniform(bound), (out_channels, in_channels)), name="weight")
        self.bias = Parameter(initializer(Uniform(bound), (out_channels,)), name="bias")
        self.compute_in(mstype.float32, plain_bias)

    def compute_in(self, compute_type: mstype.Type, add_bias: ops.BiasAdd | ops.Custom) -> None:
        """As that of `Dense`."""
        self.compute_type, self.add_bias = compute_type, add_bias  # a broadcast sum holds 16 bytes per element

    def construct(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.astype(self.compute_type), self.bias.astype(self.compute_type)
        return self.add_bias(ops.matmul(weight, x.astype(self.compute_type)), bias)


def normal(std: float) -> Initializer:
    """The initialisation of the spec: normal, truncated at two standard deviations; zeros for a deviation of 0."""
    return TruncatedNormal(std) if std else Zero()


def dense(in_channels: int, out_channels: int, init_std: float, has_bias: bool = True) -> Dense:
    """Linear layer, initialised as in the spec: truncated normal weights, bias 0."""
    return Dense(in_channels, out_channels, normal(init_std), bias_init="zeros", has_bias=has_bias)


def plain_gelu(x: Tensor) -> Tensor:
    """x * Phi(x), any shape and type."""
    # `ops.gelu` divides, which costs memory on the CPU: see docs/performance.md.
    return x * (_erf(x * _INV_SQRT2) * 0.5 + 0.5)


def plain_swap(x: Tensor) -> Tensor:
    """(A, I, J, D) -> (A, J, I, D), any type."""
    return x.transpose(0, 2, 1, 3)


class _Unary(nn.Cell):
    def __init__(self, operator: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.operator = self.plain = operator

    def construct(self, x: Tensor) -> Tensor:
        return self.operator(x)


class Gelu(_Unary):
    """The exact (erf) GELU."""

    def __init__(self) -> None:
        super().__init__(plain_gelu)


class SwapMiddle(_Unary):
    """(A, I, J, D) -> (A, J, I, D)."""

    def __init__(self) -> None:
        super().__init__(plain_swap)


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the last axis, in float32 whatever comes in."""

    def __init__(self, dim: int, epsilon: float) -> None:
        super().__init__((dim,), epsilon=epsilon)
        norm = self.layer_norm

        def plain(x: Tensor, gamma: Tensor, beta: Tensor, epsilon: Tensor) -> Tensor:
            return norm(x, gamma, beta)[0]

        self.operator = plain
        self.epsilon_tensor = Tensor([epsilon], mstype.float32)
        self.cast = ops.Cast()

    def construct(self, x: Tensor) -> Tensor:
        return self.operator(self.cast(x, mstype.float32), self.gamma, self.beta, self.epsilon_tensor)


class Softmax(_Unary):
    """Softmax over the last axis, in float32 whatever comes in."""

    def __init__(self) -> None:
        super().__init__(ops.Softmax(axis=-1))

    def construct(self, x: Tensor) -> Tensor:
        return self.operator(x.astype(mstype.float32))


class Mlp(nn.Cell):
    """Dense, GELU, Dense over the last axis, with dropout in between in training."""

    def __init__(self, dim: int, hidden: int, out: int, init_std: float, dropout: nn.Cell) -> None:
        super().__init__()
        self.fc1 = dense(dim, hidden, init_std)
        self.act = Gelu()
        self.fc2 = dense(hidden, out, init_std)
        self.dropout = dropout

    def construct(self, x: Tensor, noise_key: Tensor | None) -> Tensor:
        return self.fc2(self.dropout(self.act(self.fc1(x)), noise_key))
