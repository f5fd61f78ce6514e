"""What a model costs: GMACs and parameters per exit, from its configuration alone.

GMACs are billions of multiply-adds in the published convention (the papers write "GFLOPs"): every convolution, linear
layer and matrix product, plus 5 per element entering a LayerNorm, plus 1 per element leaving the nearest upsampling
and 1 per element entering the average pooling of the published two-step resize of all layers at once (spec: cost).
"""

import math
from dataclasses import replace
from itertools import accumulate
from typing import Any

from dvt.models.names import exit_rows, parameter_shapes
from dvt.models.variants import (
    FEATURE_CHANNELS,
    PERFORMER_DIM,
    PERFORMER_FEATURES,
    ModelConfig,
    list_models,
    model_config,
    split_sides,
)

LAYER_NORM_COST = 5


def cumulative_gmacs(model: Any, **overrides: Any) -> list[float]:
    """GMACs spent on one image that leaves at each exit, everything before included: K rising floats. `model` is a
    model name, a `ModelConfig`, or a built model; overrides are laid over it. Raises ConfigError."""
    config = _config_of(model, overrides)
    each = (sum(exit_macs(config, exit_index).values()) for exit_index in range(config.num_exits))
    return [total / 1e9 for total in accumulate(each)]


def exit_macs(config: ModelConfig, exit_index: int) -> dict[str, int]:
    """Multiply-adds of one exit for one image, by part."""
    n, grid = config.num_tokens(exit_index), config.grid_sizes[exit_index]
    source, resize = (config.num_tokens(exit_index - 1), config.resize_side(exit_index)) if exit_index else (0, 0)
    t2t = config.tokenizer == "t2t"
    sides = split_sides(config.image_size, config.soft_splits[exit_index]) if t2t else (0, 0, 0)
    # What is in the name of a tensor -> the part it belongs to, and to how many positions of an image it is applied.
    places = {
        "tokens.performer1": ("tokens", sides[0] ** 2),
        "tokens.performer2": ("tokens", sides[1] ** 2),
        "tokens": ("tokens", grid**2),
        "feature_reuse": ("feature_reuse", source),
        "relation_reuse": ("relation_reuse", source**2),
        "norm1": ("attention", n),
        "attn": ("attention", n),
        "norm2": ("mlp", n),
        "mlp": ("mlp", n),
        "norm": ("head", n),
        "head": ("head", 1),
    }
    times = {"weight": 1, "gamma": LAYER_NORM_COST, "random_features": 2}  # these for phi(k) and phi(q)
    macs = dict.fromkeys((part for part, _ in places.values()), 0)
    for row in exit_rows(replace(config, share_blocks=False), exit_index):
        owner, _, kind = row.ours.rpartition(".")
        if kind in times:
            part, positions = next(place for key, place in places.items() if key in owner)
            macs[part] += times[kind] * positions * math.prod(row.shape)

    for side in sides[:2]:  # phi(k)^T v, phi(q) (...), phi(q) . sum phi(k)
        macs["tokens"] += side**2 * PERFORMER_FEATURES * (2 * PERFORMER_DIM + 1)
    macs["attention"] += config.depth * 2 * n * n * config.embed_dim
    if config.feature_reuse:
        macs["feature_reuse"] += config.depth * 2 * FEATURE_CHANNELS * resize**2
    if config.relation_reuse:
        macs["relation_reuse"] += config.depth * config.num_heads * 2 * resize**2 * (source + n)
    return macs


def parameter_count(model: Any, **overrides: Any) -> int:
    """Number of parameters, fixed positions and random features included; arguments as for `cumulative_gmacs`."""
    return sum(exit_parameters(_config_of(model, overrides)))


def exit_parameters(config: ModelConfig) -> list[int]:
    """Parameters of each exit (K,), its reuse layers included; they add up to `parameter_count`."""
    counts = [0] * config.num_exits
    for name, shape in parameter_shapes(config).items():
        counts[int(name.split(".")[1])] += math.prod(shape)
    return counts


def handed_on_shapes(config: ModelConfig, exit_index: int) -> dict[str, tuple[int, ...]]:
    """What an exit hands on to the next for one image, in the order in which exits take it: "features" (N, C) and
    "relations" (L*H, N, N) where reused, "probabilities" (classes,) where averaged; the last exit and -1 nothing."""
    if not 0 <= exit_index < config.num_exits - 1:
        return {}
    tokens = config.num_tokens(exit_index)
    shapes: dict[str, tuple[int, ...]] = {}
    if config.feature_reuse:
        shapes["features"] = (tokens, config.embed_dim)
    if config.relation_reuse:
        shapes["relations"] = (config.depth * config.num_heads, tokens, tokens)
    if config.average_exits:
        shapes["probabilities"] = (config.num_classes,)
    return shapes


def describe_all() -> str:
    """One line per variant: parameters, and GMACs up to each exit."""
    lines = [f"{'model':<18} {'parameters':>12}  GMACs up to each exit (grid)"]
    for name in list_models():
        config = model_config(name)
        costs = zip(cumulative_gmacs(config), config.grid_sizes, strict=True)
        exits = "   ".join(f"{cost:.3f} ({grid}x{grid})" for cost, grid in costs)
        lines.append(f"{name:<18} {parameter_count(config):>12,}  {exits}")
    return "\n".join(lines)


def describe_model(config: ModelConfig) -> str:
    """Parameters and GMACs by part of every exit, and the configuration."""
    exits = range(config.num_exits)
    parts = [exit_macs(config, k) for k in exits]
    table = [
        ("parameters", ",", exit_parameters(config)),
        *((f"GMACs, {part.replace('_', ' ')}", ".4f", [macs[part] / 1e9 for macs in parts]) for part in parts[0]),
        ("GMACs, this exit", ".4f", [sum(macs.values()) / 1e9 for macs in parts]),
        ("GMACs up to here", ".4f", cumulative_gmacs(config)),
    ]
    heads = [f"exit {k + 1} ({grid}x{grid})" for k, grid in enumerate(config.grid_sizes)]
    return "\n".join(
        [
            f"{config.name}: {parameter_count(config):,} parameters",
            " " * 24 + "".join(f"{head:>15}" for head in heads),
            *(f"{name:<24}" + "".join(f"{value:>15{form}}" for value in values) for name, form, values in table),
            "",
            *(f"{key:<18} {value}" for key, value in config.to_dict().items()),
        ]
    )


def _config_of(model: Any, overrides: dict[str, Any]) -> ModelConfig:
    if isinstance(model, str):
        return model_config(model, **overrides)
    config = model if isinstance(model, ModelConfig) else model.config
    if "grid_sizes" in overrides:  # what was derived from the former grids is derived again
        overrides = {"resize_sides": None, "soft_splits": None, **overrides}
    return ModelConfig.from_dict(config.to_dict() | overrides) if overrides else config
