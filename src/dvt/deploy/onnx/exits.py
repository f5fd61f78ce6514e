"""The exits of a DVT as ONNX graphs, written from configuration and weights; the model in `dvt.models` step by step.

Differences are of form only: tokens of a soft split are gathered with the pixels of a patch in front of the channels,
with the weights behind it in the same order, and the attention scale is part of the query's weights.

Axis letters: B batch, C width, H heads, D = C/H, L layers, N tokens of this exit (class token first), N' tokens of
the exit before, I channels, S image side, G grid side, T tokens of a soft split, E width of the performers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from dvt.deploy.manifest import Value, exit_values
from dvt.deploy.onnx.graph import OPSET, GraphWriter, Symbol
from dvt.errors import DVTError
from dvt.models import variants
from dvt.models.cost import handed_on_shapes
from dvt.models.grids import token_resize_matrix
from dvt.models.names import with_shared
from dvt.models.variants import PERFORMER_DIM, ModelConfig

MAX_BYTES = 2**31 - 1  # of one protobuf message

Order = np.ndarray | slice  # which entries of the input a weight is for


class OnnxWriter:
    """Writes the ONNX files, with an open batch, of a model with `weights` by parameter name."""

    suffix, batch_size = "onnx", None

    def __init__(self, config: ModelConfig, weights: Mapping[str, np.ndarray], precision: str = "float32") -> None:
        self.config, self.weights, self.precision = config, with_shared(config, weights), precision
        checked_with = f"onnxruntime {onnxruntime.__version__}"
        self.details = {"opset": OPSET, "onnx": onnx.__version__, "checked_with": checked_with}

    def save(self, exit_index: int, inputs: Sequence[Value], path: Path) -> None:
        """Writes one exit. Raises DVTError if that is too large for one file."""
        model = self.model(exit_index)
        if model.ByteSize() > MAX_BYTES:
            raise DVTError(f"{path.name} would have more than 2 GB; export float16, or a smaller model")
        path.write_bytes(model.SerializeToString())

    def model(self, exit_index: int) -> onnx.ModelProto:
        """One exit as an ONNX model."""
        config = self.config
        inputs, outputs = exit_values(config, exit_index, self.precision)
        graph = ExitWriter(config, self.weights, exit_index, self.precision)
        results = graph.write({value.role: graph.input(value) for value in inputs})
        for value in outputs:
            graph.output(value, results[value.role])
        return graph.model()


class ExitWriter(GraphWriter):
    """The graph of one exit; `weights` are all those of the model, by parameter name."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, np.ndarray], exit_index: int, precision: str) -> None:
        super().__init__(f"{config.name}_exit_{exit_index}", np.dtype(precision))
        self.config, self.exit_index = config, exit_index
        prefix = f"exits.{exit_index}."
        self.weights = {name.removeprefix(prefix): each for name, each in weights.items() if name.startswith(prefix)}

    def write(self, received: Mapping[str, Symbol]) -> dict[str, Symbol]:
        """Inputs by role, "images" (B, I, S, S) and what the exit before handed on -> outputs by role: "probabilities"
        (B, classes) and what this exit hands on of "features" (B, N, C) and "relations" (B, L*H, N, N)."""
        config = self.config
        mixed = self._relation_reuse(received["relations"]) if "relations" in received else [None] * config.depth
        x = self._tokens(received["images"])  # (B, N, C)
        relations = []
        for layer in range(config.depth):
            with self.scope(f"blocks.{layer}"):
                x, own = self._attention(f"blocks.{layer}", x, mixed[layer])
                relations.append(own)
                x = self._mlp(f"blocks.{layer}", x, received.get("features"))
        with self.scope("head"):
            class_token = self.add("Gather", x, np.int64(0), axis=1)  # (B, C)
            logits = self._dense_layer("head", self._norm_layer("norm", class_token))
        probabilities = self.softmax(logits)
        if "probabilities" in received:  # the answers of the exits are averaged
            before, this = np.array([self.exit_index, 1], self.dtype) / (self.exit_index + 1)
            probabilities = received["probabilities"] * before + probabilities * this
        outputs = {"probabilities": probabilities, "features": x}
        if "relations" in handed_on_shapes(config, self.exit_index):
            outputs["relations"] = self.add("Concat", *relations, axis=1)
        return outputs

    def _dense_layer(self, name: str, x: Symbol, order: Order = slice(None)) -> Symbol:
        return self.dense(x, self.weights[f"{name}.weight"][:, order], self.weights.get(f"{name}.bias"))

    def _norm_layer(self, name: str, x: Symbol, epsilon: float | None = None, order: Order = slice(None)) -> Symbol:
        gamma, beta = (self.weights[f"{name}.{part}"][order] for part in ("gamma", "beta"))
        return self.layer_norm(x, gamma, beta, self.config.norm_eps if epsilon is None else epsilon)

    def _attention(self, block: str, x: Symbol, received: Symbol | None) -> tuple[Symbol, Symbol]:
        """x (B, N, C), received (B, H, N, N) or None -> x after attention (B, N, C), relations (B, H, N, N)."""
        width, heads = self.config.embed_dim, self.config.num_heads
        with self.scope("attn"):
            y = self._norm_layer(f"{block}.norm1", x)
            weight, bias = self.weights[f"{block}.attn.qkv.weight"], self.weights.get(f"{block}.attn.qkv.bias")
            parts = []
            for index, axes in enumerate(((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3))):
                rows = slice(index * width, (index + 1) * width)
                scale = np.float32((width // heads) ** -0.5 if index == 0 else 1)  # of the queries
                part = self.dense(y, weight[rows] * scale, None if bias is None else bias[rows] * scale)
                parts.append(part.reshape(0, 0, heads, width // heads).transpose(*axes))
            q, k, v = parts  # (B, H, N, D), (B, H, D, N), (B, H, N, D)
            relations = q @ k if received is None else q @ k + received  # (B, H, N, N)
            y = self.softmax(relations) @ v  # (B, H, N, D)
            y = y.transpose(0, 2, 1, 3).reshape(0, 0, width)
            return x + self._dense_layer(f"{block}.attn.proj", y), relations

    def _mlp(self, block: str, x: Symbol, features: Symbol | None) -> Symbol:
        """The second half of a block, with what it makes of the features (B, N', C) of the exit before."""
        y = x
        if features is not None:
            with self.scope("feature_reuse"):
                context = self._norm_layer(f"{block}.feature_reuse.norm", features)
                context = self.gelu(self._dense_layer(f"{block}.feature_reuse.fc1", context))
                context = self._dense_layer(f"{block}.feature_reuse.fc2", context)  # (B, N', 48)
                resize = self.constant("resize", self._resize(class_weight=0.0))
                y = self.add("Concat", x, resize @ context, axis=2)  # (B, N, C + 48)
        with self.scope("mlp"):
            y = self.gelu(self._dense_layer(f"{block}.mlp.fc1", self._norm_layer(f"{block}.norm2", y)))
            return x + self._dense_layer(f"{block}.mlp.fc2", y)

    def _relation_reuse(self, relations: Symbol) -> list[Symbol]:
        """(B, L*H, N', N') -> for each layer what its attention logits receive, (B, H, N, N)."""
        config = self.config
        source, channels = config.num_tokens(self.exit_index - 1), config.depth * config.num_heads
        with self.scope("relation_reuse"):
            x = relations.reshape(0, 0, source * source)  # (B, L*H, N'*N')
            for layer in ("fc1", "fc2"):
                weight, bias = (self.weights[f"relation_reuse.{layer}.{part}"] for part in ("weight", "bias"))
                x = self.constant("weight", weight) @ x + self.constant("bias", bias[:, None])
                x = self.gelu(x) if layer == "fc1" else x
            x = x.reshape(0, channels, source, source)
            resize = self._resize(class_weight=1.0)  # E: (N, N')
            rows, columns = self.constant("rows", resize), self.constant("columns", resize.T)
            starts = range(0, channels, config.num_heads)
            return [rows @ x.part(start, start + config.num_heads, axis=1) @ columns for start in starts]  # E r E^T

    def _resize(self, class_weight: float) -> np.ndarray:
        source, target = self.config.grid_sizes[self.exit_index - 1 : self.exit_index + 1]
        return token_resize_matrix(source, self.config.resize_side(self.exit_index), target, class_weight)

    def _tokens(self, images: Symbol) -> Symbol:
        """Images (B, I, S, S) -> tokens with the class token in front and positions added, (B, N, C)."""
        own, config = self.weights, self.config
        channels, side, name = config.in_channels, config.image_size, "tokens.proj"
        if config.tokenizer == "t2t":
            name, later = "tokens.project", variants.LATER_SOFT_SPLIT
            splits = (config.soft_splits[self.exit_index], later, later)
            sides = (side, *variants.split_sides(side, splits[0]))
        else:
            patch, padding = variants.patch_geometry(side, config.grid_sizes[self.exit_index])
            splits, sides = ((patch, patch, padding),), (side,)
        with self.scope("tokens"):
            x = images.reshape(0, channels, side**2).transpose(0, 2, 1)  # (B, S*S, I)
            for index, split in enumerate(splits, start=1):
                x = self._soft_split(x, sides[index - 1], channels, split)
                if index < len(splits):
                    with self.scope(f"performer{index}"):
                        x = self._performer(f"tokens.performer{index}", x, channels)
                    channels = PERFORMER_DIM
            weight = own[f"{name}.weight"].reshape(config.embed_dim, -1)
            x = self.dense(x, weight[:, _pixels_first(weight.shape[1], channels)], own[f"{name}.bias"])
            # The class token and its position, once per image: a zero column of the tokens has the batch's size.
            first = self.constant("class_token", own["cls_token"][:, 0] + own["pos_embed"][:, 0])  # (1, C)
            x = x + self.constant("positions", own["pos_embed"][:, 1:])  # (B, G*G, C)
            return self.add("Concat", x.part(0, 1, axis=1) * 0.0 + first, x, axis=1)

    def _performer(self, name: str, x: Symbol, channels: int) -> Symbol:
        """Linear attention over a soft split of a map with `channels`, in float32: (B, T, in) -> (B, T, E)."""
        outer, epsilon = self.dtype, variants.PERFORMER_NORM_EPS
        order = _pixels_first(self.weights[f"{name}.norm1.gamma"].size, channels)
        with self.in_float32():
            x = self._norm_layer(f"{name}.norm1", self.cast(x, outer, self.dtype), epsilon, order)
            kqv = self._dense_layer(f"{name}.kqv", x, order)
            k, q, v = (kqv.part(index * PERFORMER_DIM, (index + 1) * PERFORMER_DIM, axis=2) for index in range(3))
            k, q = (self._random_features(f"{name}.random_features", part) for part in (k, q))
            total = self.add("ReduceSum", k, [1], keepdims=1)  # k and q (B, T, m), total (B, 1, m)
            weight = q @ total.transpose(0, 2, 1) + variants.PERFORMER_EPS  # (B, T, 1)
            y = q @ (k.transpose(0, 2, 1) @ v)  # (B, T, E)
            y = v + self._dense_layer(f"{name}.proj", y / weight)
            hidden = self.gelu(self._dense_layer(f"{name}.fc1", self._norm_layer(f"{name}.norm2", y, epsilon)))
            return self.cast(y + self._dense_layer(f"{name}.fc2", hidden), self.dtype, outer)

    def _soft_split(self, x: Symbol, side: int, channels: int, split: tuple[int, int, int]) -> Symbol:
        """Overlapping patches of a map, (B, side*side, I) -> (B, T, kernel*kernel*I), by gathering its pixels."""
        kernel, stride, padding = split
        starts = range(-padding, side + padding - kernel + 1, stride)
        ticks = np.asarray(starts)[:, None] + np.arange(kernel)  # (T rows or columns, kernel)
        outside = (ticks < 0) | (ticks >= side)
        row, column = ticks[:, None, :, None], ticks[None, :, None, :]
        pixels = row * side + column  # (T rows, T columns, kernel, kernel)
        pixels[outside[:, None, :, None] | outside[None, :, None, :]] = side * side  # a pixel of zeros behind the map
        if outside.any():
            x = self.add("Pad", x, [0, 0, 0, 0, 1, 0])
        patches = self.add("Gather", x, self.constant("pixels", pixels.ravel()), axis=1)
        return patches.reshape(0, len(starts) ** 2, kernel * kernel * channels)

    def _random_features(self, name: str, y: Symbol) -> Symbol:
        """phi(y) = exp(y W^T - |y|^2 / 2) / sqrt(m): (B, T, E) -> (B, T, m)."""
        half_norm = self.add("ReduceSum", y * y, [-1], keepdims=1) * 0.5
        return self.add("Exp", self.dense(y, self.weights[name], None) - half_norm) * variants.PERFORMER_FEATURES**-0.5


def _pixels_first(size: int, channels: int) -> np.ndarray:
    """Where the entries of a patch, pixels in front of channels, lie in one with channels in front of pixels."""
    return np.arange(size).reshape(channels, -1).T.ravel()
