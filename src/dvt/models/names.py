"""The table of tensor names and shapes, ours and those of the released PyTorch checkpoints; `dvt.checkpoint.released`
moves weights across it. Imports no framework."""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from dvt.errors import CheckpointError
from dvt.models.variants import (
    FEATURE_CHANNELS,
    FEATURE_HIDDEN,
    LATER_SOFT_SPLIT,
    PERFORMER_DIM,
    PERFORMER_FEATURES,
    RELATION_EXPANSION,
    ModelConfig,
    patch_geometry,
)

EXIT_PREFIXES = ("less_less_token", "less_token", "normal_token")  # a model of K exits uses the last K

Shapes = dict[str, tuple[int, ...]]


class Row(NamedTuple):
    """One tensor: our name, the released name, the released shape. Ours is the same, 4-D kernels flattened to 2-D."""

    ours: str
    theirs: str
    shape: tuple[int, ...]

    @property
    def our_shape(self) -> tuple[int, ...]:
        return (self.shape[0], math.prod(self.shape[1:])) if len(self.shape) == 4 else self.shape


def reference_shapes(config: ModelConfig) -> Shapes:
    """Name and shape of every tensor of the released `model_state_dict` of `config`, in the released order."""
    return {row.theirs: row.shape for row in table(config)}


def parameter_shapes(config: ModelConfig) -> Shapes:
    """Name and shape of every parameter of the model of `config`, without building it."""
    return {
        f"exits.{index}.{row.ours}": row.our_shape
        for index in range(config.num_exits)
        for row in exit_rows(config, index)
    }


def with_shared(config: ModelConfig, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same weights, with those that exits share under the name of each of these exits."""
    layers = [f"blocks.{layer}.{name}." for layer in range(config.depth) for name in config.shared_layers]
    spread = dict(weights)
    for name, value in weights.items():
        if name.removeprefix("exits.0.").startswith(tuple(layers)):
            spread |= {name.replace("exits.0.", f"exits.{k}.", 1): value for k in range(1, config.num_exits)}
    return spread


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor, in the released order. Raises CheckpointError beyond three exits, and for shared weights."""
    if config.share_blocks:
        raise CheckpointError(
            "a model with model.share_blocks has fewer tensors than a PyTorch DVT, whose exits share none; it cannot "
            "be converted, neither way"
        )
    if config.num_exits > len(EXIT_PREFIXES):
        raise CheckpointError(f"released names exist for at most {len(EXIT_PREFIXES)} exits, not {config.num_exits}")
    return [
        Row(f"exits.{index}.{row.ours}", f"{prefix}.{row.theirs}", row.shape)
        for index, prefix in enumerate(EXIT_PREFIXES[-config.num_exits :])
        for row in exit_rows(config, index)
    ]


def exit_rows(config: ModelConfig, exit_index: int) -> Iterator[Row]:
    """The rows of one exit, their names without its prefix; shared weights are rows of the first exit alone."""
    dim, channels = config.embed_dim, config.depth * config.num_heads
    feature_reuse, relation_reuse = (on and exit_index > 0 for on in (config.feature_reuse, config.relation_reuse))
    mlp_in = dim + FEATURE_CHANNELS if feature_reuse else dim

    yield Row("cls_token", "cls_token", (1, 1, dim))
    yield Row("pos_embed", "pos_embed", (1, config.num_tokens(exit_index), dim))
    if config.tokenizer == "patch":
        patch, _ = patch_geometry(config.image_size, config.grid_sizes[exit_index])
        yield from _dense("tokens.proj", "patch_embed.proj", dim, config.in_channels, patch, patch)
    else:
        later = PERFORMER_DIM * LATER_SOFT_SPLIT[0] ** 2
        first = config.in_channels * config.soft_splits[exit_index][0] ** 2
        yield from _performer("tokens.performer1", "tokens_to_token.attention1", first)
        yield from _performer("tokens.performer2", "tokens_to_token.attention2", later)
        yield from _dense("tokens.project", "tokens_to_token.project", dim, later)
    shared = config.shared_layers if exit_index > 0 else ()
    for block in (f"blocks.{layer}" for layer in range(config.depth)):
        for row in _block_rows(config, block, mlp_in, feature_reuse):
            if row.ours.removeprefix(f"{block}.").rpartition(".")[0] not in shared:
                yield row
    yield from _norm("norm", "norm", dim)
    if relation_reuse:
        hidden = RELATION_EXPANSION * channels
        yield from _dense("relation_reuse.fc1", "relation_reuse_conv.0", hidden, channels, 1, 1)
        yield from _dense("relation_reuse.fc2", "relation_reuse_conv.2", channels, hidden, 1, 1)
    yield from _dense("head", "head", config.num_classes, dim)


def _block_rows(config: ModelConfig, block: str, mlp_in: int, feature_reuse: bool) -> Iterator[Row]:
    dim = config.embed_dim
    yield from _norm(f"{block}.norm1", f"{block}.norm1", dim)
    yield from _dense(f"{block}.attn.qkv", f"{block}.attn.qkv", 3 * dim, dim, bias=config.qkv_bias)
    yield from _dense(f"{block}.attn.proj", f"{block}.attn.proj", dim, dim)
    yield from _norm(f"{block}.norm2", f"{block}.norm2", mlp_in)
    yield from _dense(f"{block}.mlp.fc1", f"{block}.mlp.fc1", config.mlp_hidden, mlp_in)
    yield from _dense(f"{block}.mlp.fc2", f"{block}.mlp.fc2", dim, config.mlp_hidden)
    if feature_reuse:
        ours, theirs = f"{block}.feature_reuse", f"{block}.feature_resuse_mlp"
        yield from _norm(f"{ours}.norm", f"{theirs}.0", dim)
        yield from _dense(f"{ours}.fc1", f"{theirs}.1.fc1", FEATURE_HIDDEN, dim)
        yield from _dense(f"{ours}.fc2", f"{theirs}.1.fc2", FEATURE_CHANNELS, FEATURE_HIDDEN)


def _performer(ours: str, theirs: str, in_dim: int) -> Iterator[Row]:
    dim = PERFORMER_DIM
    yield Row(f"{ours}.random_features", f"{theirs}.w", (PERFORMER_FEATURES, dim))
    yield from _dense(f"{ours}.kqv", f"{theirs}.kqv", 3 * dim, in_dim)
    yield from _dense(f"{ours}.proj", f"{theirs}.proj", dim, dim)
    yield from _norm(f"{ours}.norm1", f"{theirs}.norm1", in_dim)
    yield from _norm(f"{ours}.norm2", f"{theirs}.norm2", dim)
    yield from _dense(f"{ours}.fc1", f"{theirs}.mlp.0", dim, dim)
    yield from _dense(f"{ours}.fc2", f"{theirs}.mlp.2", dim, dim)


def _norm(ours: str, theirs: str, dim: int) -> Iterator[Row]:
    yield Row(f"{ours}.gamma", f"{theirs}.weight", (dim,))
    yield Row(f"{ours}.beta", f"{theirs}.bias", (dim,))


def _dense(ours: str, theirs: str, *shape: int, bias: bool = True) -> Iterator[Row]:
    yield Row(f"{ours}.weight", f"{theirs}.weight", shape)
    if bias:
        yield Row(f"{ours}.bias", f"{theirs}.bias", shape[:1])
