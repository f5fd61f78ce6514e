"""Weights under the names of the released PyTorch checkpoints, to ours and back, and which model names belong to."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dvt.checkpoint.format import check_weights, load_weights
from dvt.errors import CheckpointError, ConfigError, listing
from dvt.models.names import EXIT_PREFIXES, parameter_shapes, reference_shapes, table
from dvt.models.variants import SOFT_SPLITS_224, VARIANTS, ModelConfig, model_config

if TYPE_CHECKING:
    from mindspore import nn

STARTS = "A training can start from it as it is (train.init_checkpoint)"
# Parts of names that data-parallel training, torch.compile, checkpointing of activations and sharding add, anywhere.
_WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def from_reference(
    config: ModelConfig, state_dict: Mapping[str, np.ndarray], source: str = "the state dict"
) -> dict[str, np.ndarray]:
    """Weights under our names, float32, from arrays under released names, with or without `module.` in front.

    Raises CheckpointError that lists what is missing, unexpected, of another shape, or no finite number.
    """
    stripped = strip_module(state_dict)
    check_weights(reference_shapes(config), stripped, source)
    return {row.ours: np.asarray(stripped[row.theirs], np.float32).reshape(row.our_shape) for row in table(config)}


def to_reference(config: ModelConfig, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays under released names, in released shapes and order; inverse of `from_reference`, same errors."""
    if config.average_exits:
        raise CheckpointError(
            "a model with model.average_exits answers with means over its exits, which a PyTorch DVT does not take: "
            "accuracy and thresholds would differ. Only models without it are converted"
        )
    check_weights(parameter_shapes(config), weights, "the weights to convert")
    return {row.theirs: np.asarray(weights[row.ours]).reshape(row.shape) for row in table(config)}


def load_reference_state_dict(model: "nn.Cell", state_dict: Mapping[str, np.ndarray]) -> None:
    """Fills `model` from NumPy arrays under released names; strict, all or nothing. Raises as `from_reference`."""
    load_weights(model, from_reference(model.config, state_dict))


def to_reference_state_dict(model: "nn.Cell") -> dict[str, np.ndarray]:
    """Copies of a model's weights as NumPy arrays in released names, shapes and order."""
    return to_reference(model.config, {name: p.asnumpy().copy() for name, p in model.parameters_dict().items()})


def strip_module(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The same under the names of the network itself: without `module.`, `_orig_mod.` and the like of wrappers, and
    `model.` or whatever a trainer calls the network. Raises CheckpointError for tensors of several networks."""
    bare = {".".join(part for part in name.split(".") if part not in _WRAPPERS): name for name in state_dict}
    starts = set()
    for *start, last in (name.split(".") for name in bare):
        if last == "cls_token":  # which every exit and every plain backbone has once
            starts.add("".join(f"{part}." for part in (start[:-1] if start and start[-1] in EXIT_PREFIXES else start)))
    start = starts.pop() if starts else ""
    stripped = {name.removeprefix(start): state_dict[given] for name, given in bare.items()}
    if starts or len(stripped) != len(state_dict):
        raise CheckpointError(
            "the state dict holds some tensors twice, with and without a prefix, or those of several networks"
            f" ({listing(sorted({start, *starts}))}); save the weights of one"
        )
    return stripped


def recognise(
    shapes: Mapping[str, tuple[int, ...]], source: str = "the state dict", name: str | None = None
) -> ModelConfig:
    """The configuration whose released tensors look like `shapes`; its variant must be `name`, if given.

    Raises CheckpointError for another network or another variant, and ConfigError for an unknown `name`. Names and
    shapes are not all checked here: `from_reference` does.
    """
    present = {tensor.split(".")[0] for tensor in shapes}
    prefixes = [prefix for prefix in EXIT_PREFIXES if prefix in present]
    if not prefixes or prefixes != list(EXIT_PREFIXES[-len(prefixes) :]):
        what = f"its tensors are {listing(shapes)}, those of a DVT {'.*, '.join(EXIT_PREFIXES)}.*, or the last of these"
        if {"cls_token", "blocks"} <= present:
            what = f"a plain backbone without early exits, which is not converted. {STARTS}"
        raise CheckpointError(f"{source} holds another network than a DVT: {what}")
    try:
        facts, overrides = _read_shapes(shapes, prefixes)
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"{source} looks like a DVT, but tensors are missing or misshapen: {error}") from error
    found = next((key for key in VARIANTS if facts.items() <= vars(model_config(key)).items()), None)
    if found is None:
        described = ", ".join(f"{key} {value}" for key, value in facts.items())
        raise CheckpointError(
            f"{source} holds a DVT of no known variant: {described}. Known: {', '.join(VARIANTS)}. {STARTS}"
        )
    require_variant(found, name, source)
    try:
        return model_config(found, **overrides)
    except ConfigError as error:
        raise CheckpointError(f"{source} holds {found} in a form that cannot be built: {error}") from error


def require_variant(found: str, name: str | None, source: str) -> None:
    """Raises CheckpointError unless the variant in `source` is `name`, and ConfigError if there is no such variant."""
    if name is not None and model_config(name).name != found:
        raise CheckpointError(f"{source} does not hold {name}, but {found}")


def _read_shapes(shapes: Mapping[str, tuple[int, ...]], prefixes: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    last = prefixes[-1]
    grids = tuple(math.isqrt(max(shapes[f"{prefix}.pos_embed"][1] - 1, 0)) for prefix in prefixes)
    patches = f"{last}.patch_embed.proj.weight" in shapes
    facts = {
        "tokenizer": "patch" if patches else "t2t",
        "embed_dim": shapes[f"{last}.cls_token"][2],
        "depth": len({name.split(".")[2] for name in shapes if name.startswith(f"{last}.blocks.")}),
    }
    overrides = {
        "grid_sizes": grids,
        "num_classes": shapes[f"{last}.head.weight"][0],
        "feature_reuse": any(".feature_resuse_mlp." in name for name in shapes) or len(prefixes) == 1,
        "relation_reuse": any(".relation_reuse_conv." in name for name in shapes) or len(prefixes) == 1,
    }
    if patches:
        _, channels, patch, _ = shapes[f"{last}.patch_embed.proj.weight"]
        overrides["in_channels"] = channels
        overrides["image_size"] = 224 if -(-224 // grids[-1]) == patch else patch * grids[-1]
    elif grids[-1] in SOFT_SPLITS_224:
        pixels = shapes[f"{last}.tokens_to_token.attention1.kqv.weight"][1]
        overrides["in_channels"] = max(pixels // SOFT_SPLITS_224[grids[-1]][0] ** 2, 1)
    return facts, overrides
