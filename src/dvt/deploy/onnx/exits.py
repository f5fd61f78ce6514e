"""The exits of a DVT as ONNX graphs, written from configuration and weights; the model in `dvt.models` step by step.

Differences are of form only: tokens of a soft split are gathered with the pixels of a patch in front of the channels,
with the weights behind it in the same order, and the attention scale is part of the query's weights.

Axis letters: B batch, C width, H heads, D = C/H, L layers, N tokens of this exit (class token first), N' tokens of
the exit before, I channels, S image side, G grid side, T tokens of a soft split, E width of the performers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dvt.deploy.onnx.graph import GraphWriter
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


def add_exit(
    graph: GraphWriter,
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    exit_index: int,
    images: str,
    features: str | None,
    relations: str | None,
) -> tuple[str, str | None, str | None]:
    """Adds one exit to `graph`.

    Args:
        graph: Graph to add to.
        config: The model.
        weights: All its weights, by parameter name.
        exit_index: Which exit, from 0.
        images: Value (B, I, S, S).
        features: Value (B, N', C), where this exit takes features.
        relations: Value (B, L*H, N', N'), where this exit takes relations.

    Returns:
        Logits (B, classes), and the features (B, N, C) and relations (B, L*H, N, N) to hand on; None where they are
        not handed on.
    """
    own = Weights(weights, f"exits.{exit_index}.")
    hands_on = exit_index < config.num_exits - 1
    received = [None] * config.depth
    if relations is not None:
        received = _relation_reuse(graph, config, own.below("relation_reuse"), exit_index, relations)

    x = _tokens(graph, config, own, exit_index, images)  # (B, N, C)
    handed_on = []
    for layer in range(config.depth):
        with graph.scope(f"blocks.{layer}"):
            block = own.below(f"blocks.{layer}")
            x, logits = _attention(graph, config, block, x, received[layer])
            handed_on.append(logits)
            x = _mlp(graph, config, block, exit_index, x, features)
    with graph.scope("head"):
        class_token = graph.add("Gather", x, graph.constant("index", np.int64(0)), axis=1)  # (B, C)
        logits = _dense(graph, own.below("head"), _norm(graph, own.below("norm"), class_token, config.norm_eps))
    return (
        logits,
        x if hands_on and config.feature_reuse else None,
        graph.add("Concat", *handed_on, axis=1) if hands_on and config.relation_reuse else None,
    )


def _dense(graph: GraphWriter, weights: Weights, value: str) -> str:
    return graph.dense(value, weights["weight"], weights.get("bias"))


def _norm(graph: GraphWriter, weights: Weights, value: str, epsilon: float) -> str:
    return graph.layer_norm(value, weights["gamma"], weights["beta"], epsilon)


def _attention(
    graph: GraphWriter, config: ModelConfig, block: Weights, x: str, received: str | None
) -> tuple[str, str]:
    """x (B, N, C), received (B, H, N, N) or None -> x after attention (B, N, C), relations (B, H, N, N)."""
    heads, dim = config.num_heads, config.embed_dim // config.num_heads
    with graph.scope("attn"):
        y = _norm(graph, block.below("norm1"), x, config.norm_eps)
        weight, bias = block["attn.qkv.weight"].copy(), block.get("attn.qkv.bias")
        scale = np.float32(dim**-0.5)
        weight[: config.embed_dim] *= scale
        if bias is not None:
            bias = bias.copy()
            bias[: config.embed_dim] *= scale
        parts = []
        for index, axes in enumerate(((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3))):
            rows = slice(index * config.embed_dim, (index + 1) * config.embed_dim)
            part = graph.dense(y, weight[rows], None if bias is None else bias[rows])
            parts.append(graph.transpose(graph.reshape(part, 0, 0, heads, dim), *axes))
        q, k, v = parts  # (B, H, N, D), (B, H, D, N), (B, H, N, D)
        relations = graph.add("MatMul", q, k)  # (B, H, N, N)
        if received is not None:
            relations = graph.add("Add", relations, received)
        y = graph.add("MatMul", graph.softmax(relations), v)  # (B, H, N, D)
        y = graph.reshape(graph.transpose(y, 0, 2, 1, 3), 0, 0, config.embed_dim)
        return graph.add("Add", x, _dense(graph, block.below("attn.proj"), y)), relations


def _mlp(graph: GraphWriter, config: ModelConfig, block: Weights, exit_index: int, x: str, features: str | None) -> str:
    """The second half of a block, with what it makes of the features (B, N', C) of the exit before."""
    y = x
    if features is not None:
        with graph.scope("feature_reuse"):
            reuse = block.below("feature_reuse")
            context = _norm(graph, reuse.below("norm"), features, config.norm_eps)
            context = graph.gelu(_dense(graph, reuse.below("fc1"), context))
            context = _dense(graph, reuse.below("fc2"), context)  # (B, N', 48)
            resize = graph.constant("resize", _resize(config, exit_index, class_weight=0.0))
            y = graph.add("Concat", x, graph.add("MatMul", resize, context), axis=2)  # (B, N, C + 48)
    with graph.scope("mlp"):
        y = _norm(graph, block.below("norm2"), y, config.norm_eps)
        y = graph.gelu(_dense(graph, block.below("mlp.fc1"), y))
        return graph.add("Add", x, _dense(graph, block.below("mlp.fc2"), y))


def _relation_reuse(
    graph: GraphWriter, config: ModelConfig, weights: Weights, exit_index: int, relations: str
) -> list[str]:
    """(B, L*H, N', N') -> for each layer what its attention logits receive, (B, H, N, N)."""
    source, channels = config.num_tokens(exit_index - 1), config.depth * config.num_heads
    with graph.scope("relation_reuse"):
        x = graph.reshape(relations, 0, 0, source * source)  # (B, L*H, N'*N')
        for index, layer in enumerate(("fc1", "fc2")):
            x = graph.add("MatMul", graph.constant("weight", weights[f"{layer}.weight"]), x)
            x = graph.add("Add", x, graph.constant("bias", weights[f"{layer}.bias"][:, None]))
            x = graph.gelu(x) if index == 0 else x
        x = graph.reshape(x, 0, channels, source, source)
        if config.depth > 1:
            maps = graph.add(
                "Split", x, graph.integers("heads", [config.num_heads] * config.depth), outputs=config.depth, axis=1
            )
        else:
            maps = [x]
        resize = _resize(config, exit_index, class_weight=1.0)  # E: (N, N')
        rows, columns = graph.constant("rows", resize), graph.constant("columns", resize.T)
        return [graph.add("MatMul", graph.add("MatMul", rows, each), columns) for each in maps]  # E r E^T


def _resize(config: ModelConfig, exit_index: int, class_weight: float) -> np.ndarray:
    source, target = config.grid_sizes[exit_index - 1], config.grid_sizes[exit_index]
    return token_resize_matrix(source, config.resize_side(exit_index), target, class_weight)


def _tokens(graph: GraphWriter, config: ModelConfig, own: Weights, exit_index: int, images: str) -> str:
    """Images (B, I, S, S) -> tokens with the class token in front and positions added, (B, N, C)."""
    with graph.scope("tokens"):
        tokens = own.below("tokens")
        cut = _tokens_to_token if config.tokenizer == "t2t" else _patches
        x = cut(graph, config, tokens, exit_index, images)  # (B, G*G, C)
        # The class token and its position, once per image: a zero column of the tokens has the batch's size.
        first = graph.constant("class_token", own["cls_token"][:, 0] + own["pos_embed"][:, 0])  # (1, C)
        x = graph.add("Add", x, graph.constant("positions", own["pos_embed"][:, 1:]))
        nothing = graph.add("Mul", graph.add("Slice", x, *_first_token(graph)), graph.constant("zero", np.float32(0)))
        return graph.add("Concat", graph.add("Add", nothing, first), x, axis=1)


def _first_token(graph: GraphWriter) -> list[str]:
    return [graph.integers(name, [value]) for name, value in (("start", 0), ("stop", 1), ("axis", 1))]


def _patches(graph: GraphWriter, config: ModelConfig, tokens: Weights, exit_index: int, images: str) -> str:
    """Patches of a grid, embedded: (B, I, S, S) -> (B, G*G, C)."""
    grid, channels = config.grid_sizes[exit_index], config.in_channels
    patch, padding = patch_geometry(config.image_size, grid)
    if padding:
        images = graph.add("Pad", images, graph.integers("pads", [0, 0, padding, padding] * 2))
    x = graph.reshape(images, 0, channels, grid, patch, grid * patch)
    x = graph.reshape(x, 0, channels * grid, patch, grid, patch)
    x = graph.reshape(x, -1, channels, grid, patch, grid, patch)
    x = graph.transpose(x, 0, 2, 4, 1, 3, 5)
    x = graph.reshape(x, -1, grid * grid, channels * patch * patch)
    return _dense(graph, tokens.below("proj"), x)


def _tokens_to_token(graph: GraphWriter, config: ModelConfig, tokens: Weights, exit_index: int, images: str) -> str:
    """Three soft splits with a token performer after the first two: (B, I, S, S) -> (B, G*G, C)."""
    first = config.first_split(exit_index)
    sides = [config.image_size, *split_sides(config.image_size, first)]
    x = graph.transpose(graph.reshape(images, 0, config.in_channels, sides[0] ** 2), 0, 2, 1)  # (B, S*S, I)
    channels = config.in_channels
    for index, split in enumerate((first, LATER_SOFT_SPLIT)):
        with graph.scope(f"performer{index + 1}"):
            x = _soft_split(graph, x, sides[index], channels, split)
            x = _performer(graph, _pixels_first(tokens.below(f"performer{index + 1}"), channels), x)
            channels = PERFORMER_DIM
    with graph.scope("project"):
        x = _soft_split(graph, x, sides[2], channels, LATER_SOFT_SPLIT)
        weight = tokens["project.weight"]
        return graph.dense(x, weight[:, _pixels_first_order(weight.shape[1], channels)], tokens["project.bias"])


def _soft_split(graph: GraphWriter, x: str, side: int, channels: int, split: tuple[int, int, int]) -> str:
    """Overlapping patches of a map, (B, side*side, I) -> (B, T, kernel*kernel*I), by gathering its pixels."""
    kernel, stride, padding = split
    starts = range(-padding, side + padding - kernel + 1, stride)
    ticks = np.asarray(starts)[:, None] + np.arange(kernel)  # (T rows or columns, kernel)
    outside = (ticks < 0) | (ticks >= side)
    row, column = ticks[:, None, :, None], ticks[None, :, None, :]
    indices = row * side + column  # (T rows, T columns, kernel, kernel)
    indices[outside[:, None, :, None] | outside[None, :, None, :]] = side * side  # a pixel of zeros behind the map
    if outside.any():
        x = graph.add("Pad", x, graph.integers("pads", [0, 0, 0, 0, 1, 0]))
    patches = graph.add("Gather", x, graph.integers("pixels", indices.ravel()), axis=1)
    return graph.reshape(patches, 0, len(starts) ** 2, kernel * kernel * channels)


def _pixels_first_order(size: int, channels: int) -> np.ndarray:
    """Where the entries of a patch, pixels in front of channels, lie in one with channels in front of pixels."""
    return np.arange(size).reshape(channels, -1).T.ravel()


def _pixels_first(performer: Weights, channels: int) -> dict[str, np.ndarray]:
    """The performer's weights with the inputs in the order of `_soft_split`."""
    names = ("norm1.gamma", "norm1.beta", "kqv.weight", "kqv.bias", "proj.weight", "proj.bias", "random_features")
    names += ("norm2.gamma", "norm2.beta", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
    arrays = {name: performer[name] for name in names}
    order = _pixels_first_order(arrays["norm1.gamma"].size, channels)
    for name in ("norm1.gamma", "norm1.beta", "kqv.weight"):
        arrays[name] = arrays[name][..., order]
    return arrays


def _performer(graph: GraphWriter, arrays: Mapping[str, np.ndarray], x: str) -> str:
    """Linear attention over the tokens of a soft split: (B, T, in) -> (B, T, E); its exponentials need float32."""
    weights, outer = Weights(arrays), graph.dtype
    with graph.in_float32():
        x = graph.cast(x, outer, graph.dtype)
        x = _norm(graph, weights.below("norm1"), x, PERFORMER_NORM_EPS)
        kqv = _dense(graph, weights.below("kqv"), x)
        k, q, v = graph.add("Split", kqv, graph.integers("parts", [PERFORMER_DIM] * 3), outputs=3, axis=2)
        k, q = (_random_features(graph, weights["random_features"], part) for part in (k, q))  # (B, T, m)
        total = graph.add("ReduceSum", k, graph.integers("tokens", [1]), keepdims=1)  # (B, 1, m)
        weight = graph.add("MatMul", q, graph.transpose(total, 0, 2, 1))  # (B, T, 1)
        weight = graph.add("Add", weight, graph.constant("epsilon", np.float32(PERFORMER_EPS)))
        y = graph.add("MatMul", q, graph.add("MatMul", graph.transpose(k, 0, 2, 1), v))  # (B, T, E)
        y = graph.add("Add", v, _dense(graph, weights.below("proj"), graph.add("Div", y, weight)))
        hidden = _dense(graph, weights.below("fc1"), _norm(graph, weights.below("norm2"), y, PERFORMER_NORM_EPS))
        y = graph.add("Add", y, _dense(graph, weights.below("fc2"), graph.gelu(hidden)))
        return graph.cast(y, graph.dtype, outer)


def _random_features(graph: GraphWriter, features: np.ndarray, y: str) -> str:
    """phi(y) = exp(y W^T - |y|^2 / 2) / sqrt(m): (B, T, E) -> (B, T, m)."""
    norm = graph.add("ReduceSum", graph.add("Mul", y, y), graph.integers("channels", [-1]), keepdims=1)
    half_norm = graph.add("Mul", norm, graph.constant("half", np.float32(0.5)))
    exponent = graph.add("Sub", graph.dense(y, features, None), half_norm)
    return graph.add("Mul", graph.add("Exp", exponent), graph.constant("scale", np.float32(PERFORMER_FEATURES**-0.5)))
