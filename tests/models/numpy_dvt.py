"""DVT once more, in NumPy and float64, written from the definition and for any configuration, to compare with.

Nothing is taken from the package but the numbers of a `ModelConfig`: convolutions are sums over kernel positions, the
resize is done step by step, relations are resized for all layers at once. Weights go by their released names.
Axis letters: B batch, C width, H heads, L layers, G grid side, N = G*G + 1 tokens, X channels of a map.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import erf

from dvt.models.variants import ModelConfig

PREFIXES = {1: ["normal_token"], 2: ["less_token", "normal_token"]}
PREFIXES[3] = ["less_less_token", *PREFIXES[2]]


class ExitOutput(NamedTuple):
    """What one exit computes, whether or not a later exit uses it."""

    logits: np.ndarray  # (B, classes)
    features: np.ndarray  # (B, N, C)
    relations: np.ndarray  # (B, L*H, N, N)


class Weights:
    """The tensors below one name, in float64: `w / "blocks" / 0` descends, `w["weight"]` reads, None if missing."""

    def __init__(self, tensors: dict[str, np.ndarray], path: str = "") -> None:
        self.tensors, self.path = tensors, path

    def __truediv__(self, part: str | int) -> "Weights":
        return Weights(self.tensors, f"{self.path}{part}.")

    def __getitem__(self, leaf: str) -> np.ndarray | None:
        value = self.tensors.get(self.path + leaf)
        return None if value is None else np.asarray(value, np.float64)


def forward(config: ModelConfig, tensors: dict[str, np.ndarray], images: np.ndarray) -> list[ExitOutput]:
    """All exits on images (B, I, S, S)."""
    outputs: list[ExitOutput] = []
    for index, prefix in enumerate(PREFIXES[config.num_exits]):
        before = outputs[-1] if outputs else None
        outputs.append(one_exit(config, index, Weights(tensors) / prefix, images.astype(np.float64), before))
    return outputs


def one_exit(config: ModelConfig, index: int, w: Weights, images: np.ndarray, before: ExitOutput | None) -> ExitOutput:
    grid, heads, depth, eps = config.grid_sizes[index], config.num_heads, config.depth, config.norm_eps
    patches = config.tokenizer == "patch"
    tokens = embed_patches(w / "patch_embed" / "proj", images, grid) if patches else None
    if not patches:
        tokens = tokens_to_token(w / "tokens_to_token", images, config.soft_splits[index])
    batch = len(images)
    x = np.concatenate([np.repeat(w["cls_token"], batch, axis=0), tokens], axis=1) + w["pos_embed"]

    received = np.zeros(depth * heads)[None, :, None, None]
    if before is not None and config.relation_reuse:
        mixed = conv_1x1(w / "relation_reuse_conv" / 0, before.relations)
        mixed = conv_1x1(w / "relation_reuse_conv" / 2, gelu(mixed))
        mixed = resize_axis(mixed, 2, config, index, keep_class=True)
        received = resize_axis(mixed, 3, config, index, keep_class=True)  # (B, L*H, N, N)

    relations = []
    for layer in range(depth):
        block = w / "blocks" / layer
        q, k, v = heads_of(linear(block / "attn" / "qkv", norm(block / "norm1", x, eps)), heads)
        scores = np.einsum("bhnd,bhmd->bhnm", q, k) / np.sqrt(q.shape[-1])
        scores = scores + received[:, layer * heads : (layer + 1) * heads]
        relations.append(scores)
        attention = np.exp(scores - scores.max(-1, keepdims=True))
        attention /= attention.sum(-1, keepdims=True)
        y = np.einsum("bhnm,bhmd->bnhd", attention, v).reshape(x.shape)
        x = x + linear(block / "attn" / "proj", y)
        y = x
        if before is not None and config.feature_reuse:
            own = block / "feature_resuse_mlp"
            context = mlp(own / 1, norm(own / 0, before.features, eps))
            context = resize_axis(context, 1, config, index, keep_class=False)
            y = np.concatenate([x, context], axis=2)
        x = x + mlp(block / "mlp", norm(block / "norm2", y, eps))
    logits = linear(w / "head", norm(w / "norm", x, eps)[:, 0])
    return ExitOutput(logits, x, np.concatenate(relations, axis=1))


# ------------------------------------------------------------------------------------------------------------- tokens


def embed_patches(w: Weights, images: np.ndarray, grid: int) -> np.ndarray:
    """Convolution whose kernel is its stride, kernel position by kernel position: (B, I, S, S) -> (B, G*G, C)."""
    kernel = w["weight"]  # (C, I, P, P)
    patch = kernel.shape[-1]
    pad = (patch * grid - images.shape[-1]) // 2
    padded = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    result = np.zeros((len(images), grid, grid, len(kernel)))
    for row in range(patch):
        for column in range(patch):
            result += np.einsum("bixy,ci->bxyc", padded[:, :, row::patch, column::patch], kernel[:, :, row, column])
    return result.reshape(len(images), grid * grid, -1) + w["bias"]


def tokens_to_token(w: Weights, images: np.ndarray, first: tuple[int, int, int]) -> np.ndarray:
    x = performer(w / "attention1", soft_split(images, *first))
    x = performer(w / "attention2", soft_split(as_map(x), 3, 2, 1))
    return linear(w / "project", soft_split(as_map(x), 3, 2, 1))


def soft_split(maps: np.ndarray, kernel: int, stride: int, pad: int) -> np.ndarray:
    """Overlapping windows, one after the other: (B, X, S, S) -> (B, T, X*kernel*kernel)."""
    padded = np.pad(maps, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    starts = range(0, padded.shape[-1] - kernel + 1, stride)
    windows = [padded[:, :, r : r + kernel, c : c + kernel].reshape(len(maps), -1) for r in starts for c in starts]
    return np.stack(windows, axis=1)


def as_map(x: np.ndarray) -> np.ndarray:
    side = int(np.sqrt(x.shape[1]))
    return np.moveaxis(x.reshape(len(x), side, side, -1), 3, 1)


def performer(w: Weights, x: np.ndarray) -> np.ndarray:
    """Linear attention, here with the quadratic matrix of weights written out: (B, T, D) -> (B, T, E)."""
    k, q, v = np.split(linear(w / "kqv", norm(w / "norm1", x, 1e-5)), 3, axis=2)
    k, q = kernel_features(w["w"], k), kernel_features(w["w"], q)
    weight = np.einsum("btm,bsm->bts", q, k)
    x = v + linear(w / "proj", weight @ v / (weight.sum(-1, keepdims=True) + 1e-8))
    return x + linear(w / "mlp" / 2, gelu(linear(w / "mlp" / 0, norm(w / "norm2", x, 1e-5))))


def kernel_features(random: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.exp(y @ random.T - np.square(y).sum(-1, keepdims=True) / 2) / np.sqrt(len(random))


# --------------------------------------------------------------------------------------------------------------- resize


def resize_axis(x: np.ndarray, axis: int, config: ModelConfig, index: int, keep_class: bool) -> np.ndarray:
    """One token axis from the grid of the exit before to that of exit `index`; the class token is kept or zero."""
    source, target, side = config.grid_sizes[index - 1], config.grid_sizes[index], config.resize_sides[index - 1]
    x = np.moveaxis(x, axis, 0)
    grid = x[1:].reshape(source, source, *x.shape[1:])
    for spatial in (0, 1):
        grid = np.moveaxis(resize_first_axis(np.moveaxis(grid, spatial, 0), side, target), 0, spatial)
    first = x[:1] if keep_class else np.zeros_like(x[:1])
    return np.moveaxis(np.concatenate([first, grid.reshape(target * target, *x.shape[1:])]), 0, axis)


def resize_first_axis(x: np.ndarray, side: int, target: int) -> np.ndarray:
    """Nearest-neighbour upsampling to `side`, then adaptive average pooling to `target`."""
    large = np.stack([x[int(np.floor(i * len(x) / side))] for i in range(side)])
    bounds = [(int(np.floor(i * side / target)), int(np.ceil((i + 1) * side / target))) for i in range(target)]
    return np.stack([large[start:stop].mean(axis=0) for start, stop in bounds])


# ---------------------------------------------------------------------------------------------------------------- parts


def linear(w: Weights, x: np.ndarray) -> np.ndarray:
    bias = w["bias"]
    return x @ w["weight"].T + (0.0 if bias is None else bias)


def conv_1x1(w: Weights, x: np.ndarray) -> np.ndarray:
    return np.einsum("oi,binm->bonm", w["weight"][:, :, 0, 0], x) + w["bias"][:, None, None]


def norm(w: Weights, x: np.ndarray, eps: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + eps) * w["weight"] + w["bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + erf(x / np.sqrt(2)))


def mlp(w: Weights, x: np.ndarray) -> np.ndarray:
    return linear(w / "fc2", gelu(linear(w / "fc1", x)))


def heads_of(qkv: np.ndarray, heads: int) -> list[np.ndarray]:
    """(B, N, 3*C) -> q, k, v, each (B, H, N, D)."""
    return [np.stack(np.split(part, heads, axis=2), axis=1) for part in np.split(qkv, 3, axis=2)]
