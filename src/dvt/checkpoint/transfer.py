"""Starting from other weights: another DVT, a released PyTorch file, or a plain DeiT or T2T-ViT.

What fits by name and shape is taken, exit by exit; the rest keeps its fresh initialisation, and the report says which
layers and why. Learned positions are resized to each grid.
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

from dvt.checkpoint.format import check_weights, kind_of, load_weights, weights_file
from dvt.checkpoint.native import read_checkpoint
from dvt.checkpoint.pytorch import read_weights
from dvt.errors import CheckpointError, listing
from dvt.models.grids import resize_positions
from dvt.models.names import EXIT_PREFIXES, exit_rows, with_shared
from dvt.models.variants import FEATURE_CHANNELS, ModelConfig

if TYPE_CHECKING:
    from mindspore import nn

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Initial:
    """What a model starts from, float32."""

    weights: Weights  # whole tensors by parameter name
    parts: Weights  # of layers that fit but for the columns of feature reuse: the first columns of each tensor
    report: list[str]  # what was taken and what not, line by line


class _Source(NamedTuple):
    """What a file holds."""

    kind: str  # for messages
    tokenizer: str  # "patch" or "t2t"
    num_heads: int | None  # None where the file does not say
    exits: list[Weights]  # by our names below `exits.K.`
    unknown: list[str]  # names that no model of this package has
    notes: list[str]  # on how the file was read


def initial_weights(config: ModelConfig, path: str | os.PathLike, exits: int | None = None) -> Initial:
    """The weights in `path` that the model of `config` can start from, under its names and in its shapes.

    `path` is a checkpoint of this package or a PyTorch file; nothing in it is executed. Only the first `exits` of the
    model take something (None: all), each from the one that `match_exits` says. Raises CheckpointError for a file that
    is missing, damaged or of another network, where nothing in it fits, and where PyTorch is missing.
    """
    path = weights_file(Path(path))
    source = _read(config, path)
    grids = [_grid(exit_, source, path) for exit_ in source.exits]
    _check_backbone(config, source, path)
    report = [f"initial weights from {path}: {source.kind}, {_grids(*grids)} tokens, {config.embed_dim} channels"]
    report += source.notes
    weights: Weights = {}
    parts: Weights = {}
    known: dict[int, set[str]] = {}  # exit of the file -> the names that exits of the model which start from it have
    for index, origin in enumerate(match_exits(grids, config.grid_sizes)[:exits]):
        whole, partly, lines = start_exit(config, index, source.exits[origin], grids[origin])
        for kept, taken in ((weights, whole), (parts, partly)):
            kept |= {f"exits.{index}.{name}": np.asarray(value, np.float32) for name, value in taken.items()}
        here, there = _grids(config.grid_sizes[index]), _grids(grids[origin])
        report.append(f"exit {index + 1} ({here} tokens) starts from exit {origin + 1} of the file ({there} tokens)")
        report += [f"  {line}" for line in lines]
        known.setdefault(origin, set()).update(row.ours for row in exit_rows(config, index))
    taken = weights | parts
    check_weights({name: value.shape for name, value in taken.items()}, taken, str(path))
    if unused := [str(k + 1) for k in range(len(grids)) if k not in known]:
        report.append(f"not taken, exits of the file of no use here: {', '.join(unused)}")
    placeless = [name for k, names in sorted(known.items()) for name in source.exits[k] if name not in names]
    if placeless + source.unknown:
        report.append(f"not taken, no place in this model: {_kinds(placeless + source.unknown)}")
    return Initial(weights, parts, report)


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


def _read(config: ModelConfig, path: Path) -> _Source:
    if kind_of(path) in ("PyTorch", "safetensors"):
        file = read_weights(path)
        tensors, num_heads, notes = file.tensors, file.model and file.model.num_heads, file.notes
        prefixes = [prefix for prefix in EXIT_PREFIXES if any(name.startswith(f"{prefix}.") for name in tensors)]
        kind = f"a {'DVT' if prefixes else 'plain backbone'} from PyTorch ({file.key or 'the whole file'})"
        # Names alone, so those of any exit will do; the last one has them all, unless it shares some.
        rows = exit_rows(replace(config, share_blocks=False), config.num_exits - 1)
        ours = {row.theirs: row.ours for row in rows} | {"dist_token": "dist_token"}
    else:
        checkpoint = read_checkpoint(path)
        tensors, num_heads, notes = with_shared(checkpoint.model, checkpoint.weights), checkpoint.model.num_heads, []
        prefixes = [f"exits.{k}" for k in range(checkpoint.model.num_exits)]
        kind, ours = f"a checkpoint of {checkpoint.model.name}", None
    exits: dict[str, Weights] = {prefix: {} for prefix in prefixes or [""]}
    unknown = []
    for name, value in tensors.items():
        prefix = next((each for each in prefixes if name.startswith(f"{each}.")), "")
        below = name.removeprefix(f"{prefix}.")
        if prefix in exits and (ours is None or below in ours):
            exits[prefix][ours[below] if ours else below] = (
                value.reshape(len(value), -1) if value.ndim == 4 and len(value) else value
            )
        else:
            unknown.append(name)
    tokenizer = "patch" if any("patch_embed." in name or "tokens.proj." in name for name in tensors) else "t2t"
    return _Source(kind, tokenizer, num_heads, list(exits.values()), unknown, notes)


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
    """What exit `index` takes from an exit with `found_grid` tokens per side, by name below `exits.K.`: layers whose
    tensors all fit, and learned positions, resized; layers that fit but for the columns of feature reuse, which stand
    last; and lines on what was not simply copied."""
    shapes = {row.ours: row.our_shape for row in exit_rows(config, index)}
    grid, taken, origin = config.grid_sizes[index], {}, "fixed sinusoids, computed for this grid"
    if config.tokenizer == "patch":
        origin = "as in the file" if grid == found_grid else f"resized from {_grids(found_grid)} to {_grids(grid)}"
        positions = found["pos_embed"]
        if "dist_token" in found:
            positions = np.delete(positions, 1, axis=1)
            origin += ", without that of the distillation token"
        taken = {"pos_embed": positions if grid == found_grid else resize_positions(positions, grid)}
    parts: Weights = {}
    left: dict[str, list[str]] = {}  # what was done -> layers or tensors
    others = (name for name in shapes if name != "pos_embed")
    for layer, grouped in itertools.groupby(others, key=lambda name: name.rpartition(".")[0] or name):
        names = list(grouped)
        there = {name: found[name] for name in names if name in found}
        misfits = [(value.shape, shapes[name]) for name, value in there.items() if value.shape != shapes[name]]
        if not misfits:
            taken |= there
            if len(there) < len(names):
                missing = [name for name in names if name not in there] if there else [layer]
                left.setdefault("freshly initialised, not in the file", []).extend(missing)
            continue
        has, needs = misfits[0]
        widened = all(a[:-1] == b[:-1] and abs(a[-1] - b[-1]) == FEATURE_CHANNELS for a, b in misfits)
        if widened and layer.startswith("blocks."):
            parts |= {name: value[..., : shapes[name][-1]] for name, value in there.items()}
            rest = "the rest, for feature reuse, freshly initialised" if has < needs else "the rest left out"
            done = f"the first {min(has[-1], needs[-1])} columns taken, {rest}"
        elif layer == "head" and len(has) == len(needs):
            done = f"freshly initialised, other classes ({has[0]} in the file, {needs[0]} here)"
        else:
            done = f"freshly initialised, of another shape ({has} in the file, {needs} here)"
        left.setdefault(done, []).append(layer)
    lines = [f"taken: {len(taken)} of {len(shapes)} tensors; positions: {origin}"]
    return taken, parts, lines + [f"{done}: {_kinds(names)}" for done, names in left.items()]


def _kinds(names: Iterable[str]) -> str:
    """'blocks.*.norm2 (12), head': names that differ in numbers only are counted."""
    counts = Counter(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names)
    return listing((f"{kind} ({n})" if n > 1 else kind for kind, n in counts.items()), shown=6)


def _grids(*sides: int) -> str:
    return ", ".join(f"{side}x{side}" for side in sides)
