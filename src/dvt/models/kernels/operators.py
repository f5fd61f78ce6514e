"""The compiled kernels as MindSpore operators with their gradients."""

import functools

from mindspore import Tensor, ops
from mindspore.ops import CustomRegOp, DataType

from dvt.models import kernels


def gelu_kernel() -> ops.Custom | None:
    """x -> gelu(x), any shape, float32; None where there is no compiled kernel."""
    library = kernels.library()
    if library is None:
        return None
    gradient = _operator(library, "GeluGrad", ("x", "dy"), ("dx",))

    def bprop(x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        return (gradient(x, dout),)

    return _operator(library, "Gelu", ("x",), ("y",), bprop)


def layer_norm_kernel() -> ops.Custom | None:
    """x (..., C), gamma (C,), beta (C,), epsilon (1,) -> (..., C), float32; None where there is no compiled kernel."""
    library = kernels.library()
    if library is None:
        return None
    gradient = _operator(library, "LayerNormGrad", ("x", "gamma", "epsilon", "dy"), ("dx", "dgamma", "dbeta"))

    def bprop(x: Tensor, gamma: Tensor, beta: Tensor, epsilon: Tensor, out: Tensor, dout: Tensor) -> tuple:
        dx, dgamma, dbeta = gradient(x, gamma, epsilon, dout)
        return dx, dgamma, dbeta, ops.zeros_like(epsilon)

    return _operator(library, "LayerNorm", ("x", "gamma", "beta", "epsilon"), ("y",), bprop)


def softmax_kernel() -> ops.Custom | None:
    """x (..., C) -> softmax over the last axis, float32; None where there is no compiled kernel."""
    library = kernels.library()
    if library is None:
        return None
    gradient = _operator(library, "SoftmaxGrad", ("y", "dy"), ("dx",))

    def bprop(x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        return (gradient(out, dout),)

    return _operator(library, "Softmax", ("x",), ("y",), bprop)


def bias_kernel() -> ops.Custom | None:
    """x (N, C) or (N, C, P), bias (C,) -> x + bias along axis 1, float32; None where there is no compiled kernel."""
    library = kernels.library()
    return None if library is None else _bias_kernel(library)


@functools.cache
def _bias_kernel(library: str) -> ops.Custom:
    # One for all layers: MindSpore works out the types of a function once per operator that it is given.
    gradient = _operator(library, "AddBiasGrad", ("dy",), ("dbias",))

    def bprop(x: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        return dout, gradient(dout)

    return _operator(library, "AddBias", ("x", "bias"), ("y",), bprop)


def swap_kernel() -> ops.Custom | None:
    """(A, I, J, D) -> (A, J, I, D), float32; None where there is no compiled kernel."""
    library = kernels.library()
    if library is None:
        return None
    gradient = _operator(library, "SwapMiddle", ("x",), ("y",))

    def bprop(x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        return (gradient(dout),)

    return _operator(library, "SwapMiddle", ("x",), ("y",), bprop)


def _operator(library: str, name: str, inputs: tuple, outputs: tuple, bprop=None) -> ops.Custom:
    """`name` of the library, float32 in and out; the library says which shapes and types come out."""
    info = CustomRegOp(name)
    for position, each in enumerate(inputs):
        info = info.input(position, each)
    for position, each in enumerate(outputs):
        info = info.output(position, each)
    info = info.dtype_format(*[DataType.F32_Default] * (len(inputs) + len(outputs))).target("CPU").get_op_info()
    return ops.Custom(f"{library}:{name}", func_type="aot", reg_info=info, bprop=bprop)
