"""The compiled kernels as MindSpore operators with their gradients, and putting them into a model."""

import functools
from collections.abc import Callable

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.ops import CustomRegOp, DataType

from dvt.models.layers import ChannelDense, Dense, Gelu, LayerNorm, Softmax, SwapMiddle


def use_kernels(model: nn.Cell, library: str) -> None:
    """Makes the cells of a float32 model use the kernels of `library`, a path, in place of MindSpore's operators."""
    for _, cell in model.cells_and_names():
        if isinstance(cell, Dense | ChannelDense):
            cell.compute_in(mstype.float32, _bias_kernel(library))
        elif type(cell) in KERNELS:
            cell.operator = KERNELS[type(cell)](library)


@functools.cache
def _bias_kernel(library: str) -> ops.Custom:
    """x (N, C) or (N, C, P), bias (C,) -> x + bias along axis 1, float32. One for all layers, so that MindSpore works
    out its types once."""
    gradient = _operator(library, "AddBiasGrad", ("dy",), ("dbias",))

    def bprop(x: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        return dout, gradient(dout)

    return _operator(library, "AddBias", ("x", "bias"), ("y",), bprop)


def gelu_kernel(library: str) -> ops.Custom:
    """x -> gelu(x), any shape, float32."""
    gradient = _operator(library, "GeluGrad", ("x", "dy"), ("dx",))

    def bprop(x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        return (gradient(x, dout),)

    return _operator(library, "Gelu", ("x",), ("y",), bprop)


def layer_norm_kernel(library: str) -> ops.Custom:
    """x (..., C), gamma (C,), beta (C,), epsilon (1,) -> (..., C), float32."""
    gradient = _operator(library, "LayerNormGrad", ("x", "gamma", "epsilon", "dy"), ("dx", "dgamma", "dbeta"))

    def bprop(x: Tensor, gamma: Tensor, beta: Tensor, epsilon: Tensor, out: Tensor, dout: Tensor) -> tuple:
        dx, dgamma, dbeta = gradient(x, gamma, epsilon, dout)
        return dx, dgamma, dbeta, ops.zeros_like(epsilon)

    return _operator(library, "LayerNorm", ("x", "gamma", "beta", "epsilon"), ("y",), bprop)


def softmax_kernel(library: str) -> ops.Custom:
    """x (..., C) -> softmax over the last axis, float32."""
    gradient = _operator(library, "SoftmaxGrad", ("y", "dy"), ("dx",))

    def bprop(x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        return (gradient(out, dout),)

    return _operator(library, "Softmax", ("x",), ("y",), bprop)


def swap_kernel(library: str) -> ops.Custom:
    """(A, I, J, D) -> (A, J, I, D), float32."""
    gradient = _operator(library, "SwapMiddle", ("x",), ("y",))

    def bprop(x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        return (gradient(dout),)

    return _operator(library, "SwapMiddle", ("x",), ("y",), bprop)


KERNELS: dict[type[nn.Cell], Callable[[str], ops.Custom]] = {
    Gelu: gelu_kernel,
    LayerNorm: layer_norm_kernel,
    Softmax: softmax_kernel,
    SwapMiddle: swap_kernel,
}


def _operator(library: str, name: str, inputs: tuple, outputs: tuple, bprop: Callable | None = None) -> ops.Custom:
    """`name` of the library, float32 in and out; the library says which shapes and types come out."""
    info = CustomRegOp(name)
    for position, each in enumerate(inputs):
        info = info.input(position, each)
    for position, each in enumerate(outputs):
        info = info.output(position, each)
    info = info.dtype_format(*[DataType.F32_Default] * (len(inputs) + len(outputs))).target("CPU").get_op_info()
    return ops.Custom(f"{library}:{name}", func_type="aot", reg_info=info, bprop=bprop)
