"""The exits of a DVT as ONNX graphs, written from configuration and weights; the model in `dvt.models` step by step.

Differences are of form only: tokens of a soft split are gathered with the pixels of a patch in front of the channels,
with the weights behind it in the same order, and the attention scale is part of the query's weights.

Axis letters: B batch, C width, H heads, D = C/H, L layers, N tokens of this exit (class token first), N' tokens of
the exit before, I channels, S image side, G grid side, T tokens of a soft split, E width of the performers.
"""

from collections.abc import Mapping

import numpy as np

from dvt.deploy.onnx.graph import GraphWriter, Symbol, integers
from dvt.models.cost import handed_on_shapes
from dvt.models.grids import token_resize_matrix
from dvt.models.variants import (
    LATER_SOFT_SPLIT,
    PERFORMER_DIM,
    PERFORMER_EPS,
    PERFORMER_FEATURES,
    PERFORMER_NORM_EPS,
    ModelConfig,
    patch_geometry,
    split_sides,
)


class ExitWriter:
    """Adds one exit to a graph; `weights` are all those of the model, by parameter name.

    In the methods, names of weights follow that of the exit, as in "blocks.0.norm1".
    """

    def __init__(
        self, graph: GraphWriter, config: ModelConfig, weights: Mapping[str, np.ndarray], exit_index: int
    ) -> None:
        self.graph, self.config, self.exit_index = graph, config, exit_index
        prefix = f"exits.{exit_index}."
        self.weights = {name.removeprefix(prefix): each for name, each in weights.items() if name.startswith(prefix)}

    def add(self, received: Mapping[str, Symbol]) -> dict[str, Symbol]:
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
                x, own = self._attention(f"blocks.{layer}", x, mixed[layer])
                relations.append(own)
                x = self._mlp(f"blocks.{layer}", x, received.get("features"))
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

    def _dense(self, name: str, x: Symbol) -> Symbol:
        return self.graph.dense(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _norm(self, name: str, x: Symbol) -> Symbol:
        gamma, beta = self.weights[f"{name}.gamma"], self.weights[f"{name}.beta"]
        return self.graph.layer_norm(x, gamma, beta, self.config.norm_eps)

    def _answers(self, logits: Symbol, earlier: Symbol | None) -> Symbol:
        """Probabilities (B, classes), averaged with the answers of the exit before if there are any."""
        own = self.graph.softmax(logits)
        if earlier is None:
            return own
        before, this = np.array([self.exit_index, 1], self.graph.dtype) / (self.exit_index + 1)
        return earlier * before + own * this

    def _attention(self, block: str, x: Symbol, received: Symbol | None) -> tuple[Symbol, Symbol]:
        """x (B, N, C), received (B, H, N, N) or None -> x after attention (B, N, C), relations (B, H, N, N)."""
        graph, width, heads = self.graph, self.config.embed_dim, self.config.num_heads
        with graph.scope("attn"):
            y = self._norm(f"{block}.norm1", x)
            weight, bias = self.weights[f"{block}.attn.qkv.weight"], self.weights.get(f"{block}.attn.qkv.bias")
            parts = []
            for index, axes in enumerate(((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3))):
                rows = slice(index * width, (index + 1) * width)
                scale = np.float32((width // heads) ** -0.5 if index == 0 else 1)  # of the queries
                part = graph.dense(y, weight[rows] * scale, None if bias is None else bias[rows] * scale)
                parts.append(part.reshape(0, 0, heads, width // heads).transpose(*axes))
            q, k, v = parts  # (B, H, N, D), (B, H, D, N), (B, H, N, D)
            relations = q @ k  # (B, H, N, N)
            if received is not None:
                relations = relations + received
            y = graph.softmax(relations) @ v  # (B, H, N, D)
            y = y.transpose(0, 2, 1, 3).reshape(0, 0, width)
            return x + self._dense(f"{block}.attn.proj", y), relations

    def _mlp(self, block: str, x: Symbol, features: Symbol | None) -> Symbol:
        """The second half of a block, with what it makes of the features (B, N', C) of the exit before."""
        graph, y = self.graph, x
        if features is not None:
            with graph.scope("feature_reuse"):
                context = self._norm(f"{block}.feature_reuse.norm", features)
                context = graph.gelu(self._dense(f"{block}.feature_reuse.fc1", context))
                context = self._dense(f"{block}.feature_reuse.fc2", context)  # (B, N', 48)
                resize = graph.constant("resize", self._resize(class_weight=0.0))
                y = graph.add("Concat", x, resize @ context, axis=2)  # (B, N, C + 48)
        with graph.scope("mlp"):
            y = graph.gelu(self._dense(f"{block}.mlp.fc1", self._norm(f"{block}.norm2", y)))
            return x + self._dense(f"{block}.mlp.fc2", y)

    def _relation_reuse(self, relations: Symbol) -> list[Symbol]:
        """(B, L*H, N', N') -> for each layer what its attention logits receive, (B, H, N, N)."""
        graph, config = self.graph, self.config
        source, channels = config.num_tokens(self.exit_index - 1), config.depth * config.num_heads
        with graph.scope("relation_reuse"):
            x = relations.reshape(0, 0, source * source)  # (B, L*H, N'*N')
            for layer in ("fc1", "fc2"):
                weight, bias = (self.weights[f"relation_reuse.{layer}.{part}"] for part in ("weight", "bias"))
                x = graph.constant("weight", weight) @ x + graph.constant("bias", bias[:, None])
                x = graph.gelu(x) if layer == "fc1" else x
            x = x.reshape(0, channels, source, source)
            resize = self._resize(class_weight=1.0)  # E: (N, N')
            rows, columns = graph.constant("rows", resize), graph.constant("columns", resize.T)
            starts = range(0, channels, config.num_heads)
            return [rows @ x.part(start, start + config.num_heads, axis=1) @ columns for start in starts]  # E r E^T

    def _resize(self, class_weight: float) -> np.ndarray:
        source, target = self.config.grid_sizes[self.exit_index - 1 : self.exit_index + 1]
        return token_resize_matrix(source, self.config.resize_side(self.exit_index), target, class_weight)

    def _tokens(self, images: Symbol) -> Symbol:
        """Images (B, I, S, S) -> tokens with the class token in front and positions added, (B, N, C).

        T2T has a token performer after each split of the image but the last; patches are a single split.
        """
        graph, own, config = self.graph, self.weights, self.config
        channels, side, name = config.in_channels, config.image_size, "tokens.proj"
        if config.tokenizer == "t2t":
            splits, name = (config.soft_splits[self.exit_index], LATER_SOFT_SPLIT, LATER_SOFT_SPLIT), "tokens.project"
            sides = (side, *split_sides(side, splits[0]))
        else:
            patch, padding = patch_geometry(side, config.grid_sizes[self.exit_index])
            splits, sides = ((patch, patch, padding),), (side,)
        with graph.scope("tokens"):
            x = images.reshape(0, channels, side**2).transpose(0, 2, 1)  # (B, S*S, I)
            for index, split in enumerate(splits, start=1):
                x = _soft_split(graph, x, sides[index - 1], channels, split)
                if index < len(splits):
                    with graph.scope(f"performer{index}"):
                        x = self._performer(f"tokens.performer{index}", x, channels)
                    channels = PERFORMER_DIM
            weight = own[f"{name}.weight"].reshape(config.embed_dim, -1)
            x = graph.dense(x, weight[:, _pixels_first(weight.shape[1], channels)], own[f"{name}.bias"])
            # The class token and its position, once per image: a zero column of the tokens has the batch's size.
            first = graph.constant("class_token", own["cls_token"][:, 0] + own["pos_embed"][:, 0])  # (1, C)
            x = x + graph.constant("positions", own["pos_embed"][:, 1:])  # (B, G*G, C)
            return graph.add("Concat", x.part(0, 1, axis=1) * 0.0 + first, x, axis=1)

    def _performer(self, name: str, x: Symbol, channels: int) -> Symbol:
        """Linear attention over the tokens of a soft split of a map with `channels`: (B, T, in) -> (B, T, E).

        Its exponentials need float32.
        """
        graph, outer = self.graph, self.graph.dtype
        weights = {key.removeprefix(f"{name}."): each for key, each in self.weights.items() if key.startswith(name)}
        order = _pixels_first(weights["norm1.gamma"].size, channels)
        with graph.in_float32():
            x = graph.cast(x, outer, graph.dtype)
            x = graph.layer_norm(x, weights["norm1.gamma"][order], weights["norm1.beta"][order], PERFORMER_NORM_EPS)
            kqv = graph.dense(x, weights["kqv.weight"][:, order], weights["kqv.bias"])
            k, q, v = (kqv.part(index * PERFORMER_DIM, (index + 1) * PERFORMER_DIM, axis=2) for index in range(3))
            k, q = (_random_features(graph, weights["random_features"], part) for part in (k, q))  # (B, T, m)
            total = graph.add("ReduceSum", k, integers(1), keepdims=1)  # (B, 1, m)
            weight = q @ total.transpose(0, 2, 1) + PERFORMER_EPS  # (B, T, 1)
            y = q @ (k.transpose(0, 2, 1) @ v)  # (B, T, E)
            y = v + self._dense(f"{name}.proj", y / weight)
            hidden = graph.layer_norm(y, weights["norm2.gamma"], weights["norm2.beta"], PERFORMER_NORM_EPS)
            hidden = graph.gelu(self._dense(f"{name}.fc1", hidden))
            return graph.cast(y + self._dense(f"{name}.fc2", hidden), graph.dtype, outer)


def _soft_split(graph: GraphWriter, x: Symbol, side: int, channels: int, split: tuple[int, int, int]) -> Symbol:
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
    return patches.reshape(0, len(starts) ** 2, kernel * kernel * channels)


def _pixels_first(size: int, channels: int) -> np.ndarray:
    """Where the entries of a patch, pixels in front of channels, lie in one with channels in front of pixels."""
    return np.arange(size).reshape(channels, -1).T.ravel()


def _random_features(graph: GraphWriter, features: np.ndarray, y: Symbol) -> Symbol:
    """phi(y) = exp(y W^T - |y|^2 / 2) / sqrt(m): (B, T, E) -> (B, T, m)."""
    half_norm = graph.add("ReduceSum", y * y, integers(-1), keepdims=1) * 0.5
    return graph.add("Exp", graph.dense(y, features, None) - half_norm) * PERFORMER_FEATURES**-0.5
