"""Starting from other weights: another DVT, a released PyTorch file, or a plain DeiT or T2T-ViT.

What fits by name and shape is taken, exit by exit; the rest keeps its fresh initialisation, and the report says which
layers and why. Learned positions are resized to each grid. All of this is NumPy; MindSpore is imported only to read a
`.ckpt`, PyTorch only to read its files.

Axis letters: G grid side, N = G*G + 1 tokens (class token first), C width.
"""

import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dvt.checkpoint.format import kind_of
from dvt.checkpoint.native import check_weights, load_weights, read_checkpoint
from dvt.checkpoint.pytorch import read_weights
from dvt.errors import CheckpointError, listing
from dvt.models.grids import resize_positions
from dvt.models.names import EXIT_PREFIXES, exit_rows, with_shared
from dvt.models.variants import FEATURE_CHANNELS, ModelConfig

if TYPE_CHECKING:
    from mindspore import nn

Weights = dict[str, np.ndarray]

_SHOWN = 6  # kinds of layers per line of the report


@dataclass(frozen=True)
class Initial:
    """What a model starts from, float32.

    Args:
        weights: Whole tensors by parameter name.
        parts: Tensors of layers that fit but for the columns of feature reuse: the first columns of each.
        report: What was taken and what not, line by line.
    """

    weights: Weights
    parts: Weights
    report: list[str]


class _Source(NamedTuple):
    """What a file holds."""

    kind: str  # for messages
    tokenizer: str  # "patch" or "t2t"
    num_heads: int | None  # None where the file does not say
    exits: list[Weights]  # by our names below `exits.K.`
    unknown: list[str]  # names that no model of this package has
    notes: list[str]  # on how the file was read


def initial_weights(config: ModelConfig, path: str | os.PathLike) -> Initial:
    """The weights in `path` that the model of `config` can start from, under its names and in its shapes.

    `path` is a checkpoint of this package or a PyTorch file, under any name, of a DVT, a DeiT or a T2T-ViT; nothing in
    it is executed. `match_exits` says which exit starts from which. Within an exit a layer is taken if all its tensors
    fit, or do but for the columns of feature reuse. Positions of T2T are never taken, since they are computed; learned
    ones are resized.

    Raises:
        CheckpointError: The file is missing, damaged, of another network, or nothing in it fits; PyTorch is missing.
    """
    path = Path(path)
    source = _read_pytorch(config, path) if kind_of(path) == "PyTorch" else _read_own(path)
    grids = [_grid(exit_, source, path) for exit_ in source.exits]
    _check_backbone(config, source, path)
    report = [f"initial weights from {path}: {source.kind}, {_grids(*grids)} tokens, {config.embed_dim} channels"]
    report += source.notes
    weights: Weights = {}
    parts: Weights = {}
    chosen = match_exits(grids, config.grid_sizes)
    for index, origin in enumerate(chosen):
        whole, partly, lines = start_exit(config, index, source.exits[origin], grids[origin])
        for kept, taken in ((weights, whole), (parts, partly)):
            kept |= {f"exits.{index}.{name}": np.asarray(value, np.float32) for name, value in taken.items()}
        here, there = _grids(config.grid_sizes[index]), _grids(grids[origin])
        report.append(f"exit {index + 1} ({here} tokens) starts from exit {origin + 1} of the file ({there} tokens)")
        report += [f"  {line}" for line in lines]
    taken = weights | parts
    check_weights({name: value.shape for name, value in taken.items()}, taken, str(path))
    return Initial(weights, parts, report + _not_taken(config, source, chosen))


def apply(model: "nn.Cell", initial: Initial) -> list[str]:
    """Puts the initial weights into a freshly built model and returns the report; what they lack stays as it is.

    Parameters of which nothing was taken are marked as fresh. Raises CheckpointError, and leaves the model unchanged,
    if the weights were made for another configuration.
    """
    parameters = model.parameters_dict()
    values = {name: parameter.asnumpy().copy() for name, parameter in parameters.items()} | initial.weights
    for name, part in initial.parts.items():
        if name in values:
            values[name][..., : part.shape[-1]] = part
    load_weights(model, values, source="the initial weights")
    mark_fresh(model, parameters.keys() - initial.weights.keys() - initial.parts.keys())
    return initial.report


def mark_fresh(model: "nn.Cell", names: Iterable[str]) -> None:
    """Gives these parameters the attribute `starts_fresh`, for which the optimizer takes the full learning rate."""
    parameters = model.parameters_dict()
    for name in parameters.keys() & set(names):
        parameters[name].starts_fresh = True


def match_exits(source: Sequence[int], target: Sequence[int]) -> list[int]:
    """Which exit with grid sides `source` each exit with grid sides `target` starts from.

    As many exits: in order. Otherwise the one of equal grid, else the one as far from the last (at most the first).
    """
    if len(source) == len(target):
        return list(range(len(source)))
    shift = len(source) - len(target)
    return [
        source.index(grid) if grid in source else max(index + shift, 0)  # grids rise, so each is there at most once
        for index, grid in enumerate(target)
    ]


def _read_own(path: Path) -> _Source:
    checkpoint = read_checkpoint(path)
    model = checkpoint.model
    weights = with_shared(model, checkpoint.weights)
    exits, unknown = _by_exit(weights, [f"exits.{k}." for k in range(model.num_exits)], {})
    return _Source(f"a checkpoint of {model.name}", model.tokenizer, model.num_heads, exits, unknown, [])


def _read_pytorch(config: ModelConfig, path: Path) -> _Source:
    file = read_weights(path)
    prefixes = [f"{prefix}." for prefix in EXIT_PREFIXES if any(name.startswith(f"{prefix}.") for name in file.tensors)]
    kind = f"a {'DVT' if prefixes else 'plain backbone'} from PyTorch ({file.key or 'the whole file'})"
    # Names alone, so those of any exit will do; the last one has them all, unless it shares some.
    unshared = replace(config, share_blocks=False)
    ours = {row.theirs: row.ours for row in exit_rows(unshared, config.num_exits - 1)} | {"dist_token": "dist_token"}
    flat = {
        name: value.reshape(len(value), -1) if value.ndim == 4 and len(value) else value
        for name, value in file.tensors.items()
    }
    exits, unknown = _by_exit(flat, prefixes or [""], ours)
    tokenizer = "patch" if any("patch_embed." in name for name in flat) else "t2t"
    num_heads = file.model.num_heads if file.model else None
    return _Source(kind, tokenizer, num_heads, exits, unknown, file.notes)


def _by_exit(weights: Weights, prefixes: list[str], ours: dict[str, str]) -> tuple[list[Weights], list[str]]:
    """The weights below each prefix, by our names if theirs are others, and the names of the rest."""
    exits: list[Weights] = [{} for _ in prefixes]
    unknown = []
    for name, value in weights.items():
        index = next((k for k, prefix in enumerate(prefixes) if name.startswith(prefix)), None)
        below = None if index is None else name.removeprefix(prefixes[index])
        if below is None or (ours and below not in ours):
            unknown.append(name)
        else:
            exits[index][ours.get(below, below)] = value
    return exits, unknown


def _grid(exit_: Weights, source: _Source, path: Path) -> int:
    """Tokens per side. Raises CheckpointError for another network, and for positions that are not a square."""
    if any(exit_.get(name, np.zeros(0)).ndim != 3 for name in ("cls_token", "pos_embed")):
        raise CheckpointError(
            f"{path} holds another network: needed are the tensors of a DVT, a DeiT or a T2T-ViT, among them "
            f"cls_token, pos_embed and blocks.0.attn.qkv.weight for each exit; here they are "
            f"{listing([*source.unknown, *exit_])}"
        )
    special = 2 if "dist_token" in exit_ else 1  # tokens that stand for no place
    cells = exit_["pos_embed"].shape[1] - special
    side = math.isqrt(max(cells, 0))
    if side < 1 or side * side != cells:
        raise CheckpointError(
            f"{path} cannot be used: its {cells + special} positions are not a square grid and {special} more; weights "
            "for square images are needed"
        )
    return side


def _check_backbone(config: ModelConfig, source: _Source, path: Path) -> None:
    """Refuses weights of which nothing fits, or some have fitting shapes but another meaning."""
    words = {"patch": "patch embedding (DeiT)", "t2t": "soft splits (T2T-ViT)"}
    channels, heads = source.exits[0]["cls_token"].shape[-1], source.num_heads or config.num_heads
    found = (words[source.tokenizer], f"{channels} channels", f"{heads} heads")
    needed = (words[config.tokenizer], f"{config.embed_dim} channels", f"{config.num_heads} heads")
    faults = [f"{here}, needed {there}" for here, there in zip(found, needed, strict=True) if here != there]
    if not any(name.endswith(".attn.qkv.weight") for name in source.exits[-1]):
        faults.append("no blocks.*.attn.qkv.weight")
    if faults:
        raise CheckpointError(
            f"nothing in {path} fits {config.name}: found {source.kind} with {'; '.join(faults)}. Give weights "
            "of the same backbone, or leave train.init_checkpoint out"
        )


def start_exit(
    config: ModelConfig, index: int, found: Mapping[str, np.ndarray], found_grid: int
) -> tuple[Weights, Weights, list[str]]:
    """What exit `index` takes from an exit with `found_grid` tokens per side.

    Returns:
        By name below `exits.K.`, layers whose tensors all fit, and learned positions, resized; layers that fit but for
        the columns of feature reuse, which stand last; and lines on what was not simply copied.
    """
    shapes = {row.ours: row.our_shape for row in exit_rows(config, index)}
    taken, positions = _positions(config, config.grid_sizes[index], found, found_grid)
    parts: Weights = {}
    left: dict[str, list[str]] = {}  # what was done -> layers or tensors
    others = (name for name in shapes if name != "pos_embed")
    for layer, grouped in itertools.groupby(others, key=lambda name: name.rpartition(".")[0] or name):
        names = list(grouped)
        there = {name: found[name] for name in names if name in found}
        misfits = [name for name, value in there.items() if value.shape != shapes[name]]
        if misfits and layer.startswith("blocks.") and all(_is_widened(there[n].shape, shapes[n]) for n in misfits):
            parts |= {name: value[..., : shapes[name][-1]] for name, value in there.items()}
            has, needs = there[misfits[0]].shape[-1], shapes[misfits[0]][-1]
            rest = "the rest, for feature reuse, freshly initialised" if has < needs else "the rest left out"
            left.setdefault(f"the first {min(has, needs)} columns taken, {rest}", []).append(layer)
        elif misfits:
            reason = _reason(layer, there[misfits[0]].shape, shapes[misfits[0]])
            left.setdefault(f"freshly initialised, {reason}", []).append(layer)
        else:
            taken |= there
            missing = [name for name in names if name not in there] if there else [layer]
            if len(there) < len(names):
                left.setdefault("freshly initialised, not in the file", []).extend(missing)
    lines = [f"taken: {len(taken)} of {len(shapes)} tensors; positions: {positions}"]
    return taken, parts, lines + [f"{done}: {_kinds(names)}" for done, names in left.items()]


def _positions(config: ModelConfig, grid: int, found: Mapping[str, np.ndarray], found_grid: int) -> tuple[Weights, str]:
    """The positions of one exit by name, none for T2T, and where they come from."""
    if config.tokenizer == "t2t":
        return {}, "fixed sinusoids, computed for this grid"
    positions, origin = found["pos_embed"], "as in the file"
    if grid != found_grid:
        origin = f"resized from {_grids(found_grid)} to {_grids(grid)}"
    if "dist_token" in found:
        positions = np.delete(positions, 1, axis=1)
        origin += ", without that of the distillation token"
    return {"pos_embed": positions if grid == found_grid else resize_positions(positions, grid)}, origin


def _is_widened(found: tuple[int, ...], needed: tuple[int, ...]) -> bool:
    return found[:-1] == needed[:-1] and abs(needed[-1] - found[-1]) == FEATURE_CHANNELS


def _reason(layer: str, found: tuple[int, ...], needed: tuple[int, ...]) -> str:
    """Why a layer of the file does not fit, from the shapes of a tensor of it."""
    if layer == "head" and len(found) == len(needed):
        return f"other classes ({found[0]} in the file, {needed[0]} here)"
    shape = "made for patches of another size" if layer.startswith("tokens.") else "of another shape"
    return f"{shape} ({found} in the file, {needed} here)"


def _not_taken(config: ModelConfig, source: _Source, chosen: list[int]) -> list[str]:
    """Lines on what is in the file and has no place in the model at all."""
    unused = [str(origin + 1) for origin in range(len(source.exits)) if origin not in chosen]
    placeless = []
    for origin in sorted(set(chosen)):
        known = {row.ours for k, each in enumerate(chosen) if each == origin for row in exit_rows(config, k)}
        placeless += [name for name in source.exits[origin] if name not in known]
    names = {
        "exits of the file of no use here": ", ".join(unused),
        "no place in this model": _kinds(placeless + source.unknown),
    }
    return [f"not taken, {what}: {which}" for what, which in names.items() if which]


def _kinds(names: Iterable[str]) -> str:
    """'blocks.*.norm2 (12), head': names that differ in numbers only are counted."""
    counts = Counter(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names)
    return listing((f"{kind} ({n})" if n > 1 else kind for kind, n in counts.items()), shown=_SHOWN)


def _grids(*sides: int) -> str:
    return ", ".join(f"{side}x{side}" for side in sides)
