"""The exits of a DVT as ONNX graphs, written from configuration and weights; the model in `dvt.models` step by step.

Differences are of form only: tokens of a soft split are gathered with the pixels of a patch in front of the channels,
with the weights behind it in the same order, and the attention scale is part of the query's weights.

Axis letters: B batch, C width, H heads, D = C/H, L layers, N tokens of this exit (class token first), N' tokens of
the exit before, I channels, S image side, G grid side, T tokens of a soft split, E width of the performers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dvt.deploy.onnx.graph import GraphWriter, integers
from dvt.models.cost import handed_on_shapes
from dvt.models.grids import token_resize_matrix
from dvt.models.variants import (
    LATER_SOFT_SPLIT,
    PERFORMER_DIM,
    PERFORMER_FEATURES,
    ModelConfig,
    patch_geometry,
    split_sides,
)

# As in dvt.models.tokens, which this module does not import because it needs MindSpore.
PERFORMER_EPS = 1e-8
PERFORMER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Weights:
    """The weights below one name, by what follows it."""

    arrays: Mapping[str, np.ndarray]
    prefix: str = ""

    def below(self, name: str) -> "Weights":
        return Weights(self.arrays, f"{self.prefix}{name}.")

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[self.prefix + name]

    def get(self, name: str) -> np.ndarray | None:
        return self.arrays.get(self.prefix + name)


class ExitWriter:
    """Adds one exit to a graph. `weights` are all those of the model, by parameter name."""

    def __init__(
        self, graph: GraphWriter, config: ModelConfig, weights: Mapping[str, np.ndarray], exit_index: int
    ) -> None:
        self.graph, self.config, self.exit_index = graph, config, exit_index
        self.weights = Weights(weights, f"exits.{exit_index}.")

    def add(self, received: Mapping[str, str]) -> dict[str, str]:
        """Inputs by role -> outputs by role.

        Args:
            received: "images" (B, I, S, S) and, as far as this exit takes them, "features" (B, N', C), "relations"
                (B, L*H, N', N') and "probabilities" (B, classes) of the exit before.

        Returns:
            "probabilities" (B, classes) and, as far as this exit hands them on, "features" (B, N, C) and "relations"
            (B, L*H, N, N).
        """
        graph, config = self.graph, self.config
        mixed = [None] * config.depth
        if "relations" in received:
            mixed = self._relation_reuse(received["relations"])
        x = self._tokens(received["images"])  # (B, N, C)
        relations = []
        for layer in range(config.depth):
            with graph.scope(f"blocks.{layer}"):
                block = self.weights.below(f"blocks.{layer}")
                x, own = self._attention(block, x, mixed[layer])
                relations.append(own)
                x = self._mlp(block, x, received.get("features"))
        with graph.scope("head"):
            class_token = graph.add("Gather", x, np.int64(0), axis=1)  # (B, C)
            logits = self._dense("head", self._norm("norm", class_token))
        outputs = {"probabilities": self._answers(logits, received.get("probabilities"))}
        handed_on = handed_on_shapes(config, self.exit_index)
        if "features" in handed_on:
            outputs["features"] = x
        if "relations" in handed_on:
            outputs["relations"] = graph.add("Concat", *relations, axis=1)
        return outputs

    def _dense(self, name: str, value: str, weights: Weights | None = None) -> str:
        layer = (weights or self.weights).below(name)
        return self.graph.dense(value, layer["weight"], layer.get("bias"))

    def _norm(self, name: str, value: str, weights: Weights | None = None) -> str:
        layer = (weights or self.weights).below(name)
        return self.graph.layer_norm(value, layer["gamma"], layer["beta"], self.config.norm_eps)

    def _answers(self, logits: str, earlier: str | None) -> str:
        """Probabilities (B, classes), averaged with the answers of the exit before if there are any."""
        own = self.graph.softmax(logits)
        if earlier is None:
            return own
        before, this = np.array([self.exit_index, 1], self.graph.dtype) / (self.exit_index + 1)
        return self.graph.add("Add", self.graph.add("Mul", earlier, before), self.graph.add("Mul", own, this))

    def _attention(self, block: Weights, x: str, received: str | None) -> tuple[str, str]:
        """x (B, N, C), received (B, H, N, N) or None -> x after attention (B, N, C), relations (B, H, N, N)."""
        graph, width, heads = self.graph, self.config.embed_dim, self.config.num_heads
        with graph.scope("attn"):
            y = self._norm("norm1", x, block)
            weight, bias = block["attn.qkv.weight"].copy(), block.get("attn.qkv.bias")
            bias = None if bias is None else bias.copy()
            for part in (weight, bias):
                if part is not None:
                    part[:width] *= np.float32((width // heads) ** -0.5)
            parts = []
            for index, axes in enumerate(((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3))):
                rows = slice(index * width, (index + 1) * width)
                part = graph.dense(y, weight[rows], None if bias is None else bias[rows])
                parts.append(graph.transpose(graph.reshape(part, 0, 0, heads, width // heads), *axes))
            q, k, v = parts  # (B, H, N, D), (B, H, D, N), (B, H, N, D)
            relations = graph.add("MatMul", q, k)  # (B, H, N, N)
            if received is not None:
                relations = graph.add("Add", relations, received)
            y = graph.add("MatMul", graph.softmax(relations), v)  # (B, H, N, D)
            y = graph.reshape(graph.transpose(y, 0, 2, 1, 3), 0, 0, width)
            return graph.add("Add", x, self._dense("attn.proj", y, block)), relations

    def _mlp(self, block: Weights, x: str, features: str | None) -> str:
        """The second half of a block, with what it makes of the features (B, N', C) of the exit before."""
        graph, y = self.graph, x
        if features is not None:
            with graph.scope("feature_reuse"):
                reuse = block.below("feature_reuse")
                context = graph.gelu(self._dense("fc1", self._norm("norm", features, reuse), reuse))
                context = self._dense("fc2", context, reuse)  # (B, N', 48)
                resize = graph.constant("resize", self._resize(class_weight=0.0))
                y = graph.add("Concat", x, graph.add("MatMul", resize, context), axis=2)  # (B, N, C + 48)
        with graph.scope("mlp"):
            y = graph.gelu(self._dense("mlp.fc1", self._norm("norm2", y, block), block))
            return graph.add("Add", x, self._dense("mlp.fc2", y, block))

    def _relation_reuse(self, relations: str) -> list[str]:
        """(B, L*H, N', N') -> for each layer what its attention logits receive, (B, H, N, N)."""
        graph, config, weights = self.graph, self.config, self.weights.below("relation_reuse")
        source, channels = config.num_tokens(self.exit_index - 1), config.depth * config.num_heads
        with graph.scope("relation_reuse"):
            x = graph.reshape(relations, 0, 0, source * source)  # (B, L*H, N'*N')
            for layer in ("fc1", "fc2"):
                x = graph.add("MatMul", graph.constant("weight", weights[f"{layer}.weight"]), x)
                x = graph.add("Add", x, graph.constant("bias", weights[f"{layer}.bias"][:, None]))
                x = graph.gelu(x) if layer == "fc1" else x
            x = graph.reshape(x, 0, channels, source, source)
            maps = [x]
            if config.depth > 1:
                sizes = integers(*[config.num_heads] * config.depth)
                maps = graph.add("Split", x, sizes, outputs=config.depth, axis=1)
            resize = self._resize(class_weight=1.0)  # E: (N, N')
            rows, columns = graph.constant("rows", resize), graph.constant("columns", resize.T)
            return [graph.add("MatMul", graph.add("MatMul", rows, each), columns) for each in maps]  # E r E^T

    def _resize(self, class_weight: float) -> np.ndarray:
        source, target = self.config.grid_sizes[self.exit_index - 1 : self.exit_index + 1]
        return token_resize_matrix(source, self.config.resize_side(self.exit_index), target, class_weight)

    def _tokens(self, images: str) -> str:
        """Images (B, I, S, S) -> tokens with the class token in front and positions added, (B, N, C)."""
        graph, own = self.graph, self.weights
        with graph.scope("tokens"):
            x = self._tokens_to_token(images) if self.config.tokenizer == "t2t" else self._patches(images)
            # The class token and its position, once per image: a zero column of the tokens has the batch's size.
            first = graph.constant("class_token", own["cls_token"][:, 0] + own["pos_embed"][:, 0])  # (1, C)
            x = graph.add("Add", x, graph.constant("positions", own["pos_embed"][:, 1:]))  # (B, G*G, C)
            column = graph.add("Slice", x, integers(0), integers(1), integers(1))  # start, stop, axis
            return graph.add("Concat", graph.add("Add", graph.add("Mul", column, 0.0), first), x, axis=1)

    def _patches(self, images: str) -> str:
        """Patches of a grid, embedded: (B, I, S, S) -> (B, G*G, C)."""
        graph, grid, channels = self.graph, self.config.grid_sizes[self.exit_index], self.config.in_channels
        patch, padding = patch_geometry(self.config.image_size, grid)
        if padding:
            images = graph.add("Pad", images, integers(*[0, 0, padding, padding] * 2))
        x = graph.reshape(images, 0, channels, grid, patch, grid * patch)
        x = graph.reshape(x, 0, channels * grid, patch, grid, patch)
        x = graph.reshape(x, -1, channels, grid, patch, grid, patch)
        x = graph.transpose(x, 0, 2, 4, 1, 3, 5)
        return self._dense("tokens.proj", graph.reshape(x, -1, grid * grid, channels * patch * patch))

    def _tokens_to_token(self, images: str) -> str:
        """Three soft splits with a token performer after the first two: (B, I, S, S) -> (B, G*G, C)."""
        graph, config, tokens = self.graph, self.config, self.weights.below("tokens")
        first = config.first_split(self.exit_index)
        sides = [config.image_size, *split_sides(config.image_size, first)]
        channels = config.in_channels
        x = graph.transpose(graph.reshape(images, 0, channels, sides[0] ** 2), 0, 2, 1)  # (B, S*S, I)
        for index, split in enumerate((first, LATER_SOFT_SPLIT)):
            with graph.scope(f"performer{index + 1}"):
                x = _soft_split(graph, x, sides[index], channels, split)
                x = _performer(graph, tokens.below(f"performer{index + 1}"), x, channels)
                channels = PERFORMER_DIM
        with graph.scope("project"):
            x = _soft_split(graph, x, sides[2], channels, LATER_SOFT_SPLIT)
            weight = tokens["project.weight"]
            return graph.dense(x, weight[:, _pixels_first(weight.shape[1], channels)], tokens["project.bias"])


def _soft_split(graph: GraphWriter, x: str, side: int, channels: int, split: tuple[int, int, int]) -> str:
    """Overlapping patches of a map, (B, side*side, I) -> (B, T, kernel*kernel*I), by gathering its pixels."""
    kernel, stride, padding = split
    starts = range(-padding, side + padding - kernel + 1, stride)
    ticks = np.asarray(starts)[:, None] + np.arange(kernel)  # (T rows or columns, kernel)
    outside = (ticks < 0) | (ticks >= side)
    row, column = ticks[:, None, :, None], ticks[None, :, None, :]
    pixels = row * side + column  # (T rows, T columns, kernel, kernel)
    pixels[outside[:, None, :, None] | outside[None, :, None, :]] = side * side  # a pixel of zeros behind the map
    if outside.any():
        x = graph.add("Pad", x, integers(0, 0, 0, 0, 1, 0))
    patches = graph.add("Gather", x, graph.constant("pixels", pixels.ravel()), axis=1)
    return graph.reshape(patches, 0, len(starts) ** 2, kernel * kernel * channels)


def _pixels_first(size: int, channels: int) -> np.ndarray:
    """Where the entries of a patch, pixels in front of channels, lie in one with channels in front of pixels."""
    return np.arange(size).reshape(channels, -1).T.ravel()


def _performer(graph: GraphWriter, weights: Weights, x: str, channels: int) -> str:
    """Linear attention over the tokens of a soft split of a map with `channels`: (B, T, in) -> (B, T, E).

    Its exponentials need float32.
    """
    order, outer = _pixels_first(weights["norm1.gamma"].size, channels), graph.dtype
    with graph.in_float32():
        x = graph.cast(x, outer, graph.dtype)
        x = graph.layer_norm(x, weights["norm1.gamma"][order], weights["norm1.beta"][order], PERFORMER_NORM_EPS)
        kqv = graph.dense(x, weights["kqv.weight"][:, order], weights["kqv.bias"])
        k, q, v = graph.add("Split", kqv, integers(*[PERFORMER_DIM] * 3), outputs=3, axis=2)
        k, q = (_random_features(graph, weights["random_features"], part) for part in (k, q))  # (B, T, m)
        total = graph.add("ReduceSum", k, integers(1), keepdims=1)  # (B, 1, m)
        divisor = graph.add("Add", graph.add("MatMul", q, graph.transpose(total, 0, 2, 1)), PERFORMER_EPS)  # (B, T, 1)
        y = graph.add("MatMul", q, graph.add("MatMul", graph.transpose(k, 0, 2, 1), v))  # (B, T, E)
        y = graph.dense(graph.add("Div", y, divisor), weights["proj.weight"], weights["proj.bias"])
        y = graph.add("Add", v, y)
        hidden = graph.layer_norm(y, weights["norm2.gamma"], weights["norm2.beta"], PERFORMER_NORM_EPS)
        hidden = graph.gelu(graph.dense(hidden, weights["fc1.weight"], weights["fc1.bias"]))
        y = graph.add("Add", y, graph.dense(hidden, weights["fc2.weight"], weights["fc2.bias"]))
        return graph.cast(y, graph.dtype, outer)


def _random_features(graph: GraphWriter, features: np.ndarray, y: str) -> str:
    """phi(y) = exp(y W^T - |y|^2 / 2) / sqrt(m): (B, T, E) -> (B, T, m)."""
    half_norm = graph.add("Mul", graph.add("ReduceSum", graph.add("Mul", y, y), integers(-1), keepdims=1), 0.5)
    exponent = graph.add("Sub", graph.dense(y, features, None), half_norm)
    return graph.add("Mul", graph.add("Exp", exponent), PERFORMER_FEATURES**-0.5)
