"""A small writer of ONNX graphs: constants, nodes under readable names, inputs and outputs with an open batch.

In float32 LayerNorm and GELU are written out (mean, square root, erf): ONNX Runtime recognises both patterns and runs
its own fused kernels, and MindSpore Lite 2.0, which computes ONNX's LayerNormalization wrongly, computes these rightly.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

import dvt
from dvt.deploy.manifest import Value

OPSET = 17  # the newest whose reductions take their axes as attributes, as MindSpore Lite 2.0 reads them
IR_VERSION = 8  # that of this opset, so that older runtimes load the files
BATCH = "batch"  # name of the open dimension


def _node(kind: str) -> "Callable[[Symbol, Operand], Symbol]":
    return lambda symbol, other: symbol.graph.add(kind, symbol, other)


class Symbol:
    """A value of a graph, under its name. Arithmetic with it adds nodes."""

    def __init__(self, graph: "GraphWriter", name: str) -> None:
        self.graph, self.name = graph, name

    __add__ = _node("Add")
    __sub__ = _node("Sub")
    __mul__ = _node("Mul")
    __truediv__ = _node("Div")
    __pow__ = _node("Pow")
    __matmul__ = _node("MatMul")

    def reshape(self, *shape: int) -> "Symbol":
        """0 keeps a dimension, -1 takes what is left, as ONNX has it."""
        return self.graph.add("Reshape", self, list(shape))

    def transpose(self, *axes: int) -> "Symbol":
        return self.graph.add("Transpose", self, perm=list(axes))

    def part(self, start: int, stop: int, axis: int) -> "Symbol":
        """x[start:stop] along an axis."""
        return self.graph.add("Slice", self, [start], [stop], [axis])


Operand = Symbol | np.ndarray | float | list[int]
"""What nodes take; numbers, arrays and lists become constants."""


class GraphWriter:
    """Collects one graph, whose constants and results have the type `dtype`: float32 or float16."""

    def __init__(self, name: str, dtype: np.dtype) -> None:
        self.dtype = dtype
        # In float16 the operator, which computes in float32: squares would overflow, and Lite takes float32 graphs.
        self.writes_norms_out = dtype == np.float32
        self._graph = onnx.GraphProto(name=name)
        self._scopes: list[str] = []
        self._used: Counter[str] = Counter()

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Nodes and constants made inside carry `name` in front, as the parameters of the model do."""
        self._scopes.append(name)
        yield
        self._scopes.pop()

    def input(self, value: Value) -> Symbol:
        """An input of the graph, in the type of the graph."""
        self._graph.input.append(_value_info(value))
        return self.cast(Symbol(self, value.name), value.dtype, self.dtype)

    def output(self, value: Value, result: Symbol) -> None:
        result = self.cast(result, self.dtype, value.dtype)
        self._graph.node.append(helper.make_node("Identity", [result.name], [value.name], name=value.name))
        self._graph.output.append(_value_info(value))

    @contextlib.contextmanager
    def in_float32(self) -> Iterator[None]:
        """What is made inside is float32, whatever the type of the graph."""
        outer, self.dtype = self.dtype, np.dtype(np.float32)
        yield
        self.dtype = outer

    def constant(self, name: str, array: np.ndarray | float | list[int]) -> Symbol:
        """A constant tensor; floating-point ones take the type of the graph."""
        array = np.asarray(array)
        if array.dtype.kind == "f":
            array = array.astype(self.dtype)
        full = self._full_name(name)
        self._graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), full))
        return Symbol(self, full)

    def add(self, kind: str, *inputs: Operand, **attributes: object) -> Symbol:
        """The result of one node of operator `kind`."""
        name = self._full_name(kind)
        given = [
            each if isinstance(each, Symbol) else self.constant(f"{kind}.input_{position}", each)
            for position, each in enumerate(inputs)
        ]
        self._graph.node.append(helper.make_node(kind, [each.name for each in given], [name], name=name, **attributes))
        return Symbol(self, name)

    def cast(self, value: Symbol, source: np.dtype, target: np.dtype) -> Symbol:
        """`value`, of type `source`, as float32 or float16."""
        source, target = np.dtype(source), np.dtype(target)
        return value if source == target else self.add("Cast", value, to=helper.np_dtype_to_tensor_dtype(target))

    def dense(self, x: Symbol, weight: np.ndarray, bias: np.ndarray | None) -> Symbol:
        """x W^T + b over the last axis; `weight` (out, in)."""
        result = x @ self.constant("weight", weight.T)
        return result if bias is None else result + self.constant("bias", bias)

    def gelu(self, x: Symbol) -> Symbol:
        with self.scope("gelu"):
            return x * (self.add("Erf", x / 2**0.5) + 1.0) * 0.5

    def layer_norm(self, x: Symbol, gamma: np.ndarray, beta: np.ndarray, epsilon: float) -> Symbol:
        """LayerNorm over the last axis, in float32."""
        scale, bias = self.constant("gamma", gamma), self.constant("beta", beta)
        if not self.writes_norms_out:
            return self.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)
        centred = x - self.add("ReduceMean", x, axes=[-1], keepdims=1)
        variance = self.add("ReduceMean", centred**2.0, axes=[-1], keepdims=1)
        return centred / self.add("Sqrt", variance + epsilon) * scale + bias

    def softmax(self, x: Symbol) -> Symbol:
        """Softmax over the last axis, in float32."""
        outer = self.dtype
        with self.in_float32():
            result = self.add("Softmax", self.cast(x, outer, self.dtype), axis=-1)
            return self.cast(result, self.dtype, outer)

    def model(self) -> onnx.ModelProto:
        """The finished model, checked. Raises onnx.checker.ValidationError."""
        producer = {"producer_name": "dvt-mindspore", "producer_version": dvt.__version__}
        opset = helper.make_opsetid("", OPSET)
        model = onnx.ModelProto(graph=self._graph, opset_import=[opset], ir_version=IR_VERSION, **producer)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _full_name(self, name: str) -> str:
        full = "/".join([*self._scopes, name])
        self._used[full] += 1
        return full if self._used[full] == 1 else f"{full}_{self._used[full]}"


def _value_info(value: Value) -> onnx.ValueInfoProto:
    batch, *rest = value.shape
    shape = [BATCH if batch is None else batch, *rest]
    return helper.make_tensor_value_info(value.name, helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype)), shape)
