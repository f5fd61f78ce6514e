"""Starting from other weights: another DVT, a released PyTorch file, or a plain DeiT or T2T-ViT.

What fits by name and shape is taken, exit by exit; the rest keeps its fresh initialisation, and the report says which
layers and why. Learned positions are resized to each grid. All of this is NumPy; MindSpore is imported only to read a
`.ckpt` and to fill a model, PyTorch only to read its files.

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
from typing import TYPE_CHECKING

import numpy as np

from dvt.checkpoint.native import check_weights, load_weights, read_checkpoint
from dvt.checkpoint.pytorch import read_weights
from dvt.errors import CheckpointError, listing
from dvt.models.grids import resize_positions
from dvt.models.names import EXIT_PREFIXES, exit_rows, with_shared
from dvt.models.variants import FEATURE_CHANNELS, ModelConfig

if TYPE_CHECKING:
    from mindspore import nn

PYTORCH_SUFFIXES = (".pth.tar", ".pth", ".pt")

_SHOWN = 6  # kinds of layers per line of the report


@dataclass(frozen=True)
class Initial:
    """What a model starts from: weights by parameter name, float32, and what was taken and what not, line by line."""

    weights: dict[str, np.ndarray]
    report: list[str]


@dataclass(frozen=True)
class _Source:
    """What a file holds.

    Args:
        path: The file.
        kind: What it is, for messages.
        tokenizer: "patch" or "t2t".
        num_heads: Heads of the attention, None where the file does not say.
        exits: One dict per exit, by our names below `exits.K.`.
        unknown: Names that no model of this package has.
    """

    path: Path
    kind: str
    tokenizer: str
    num_heads: int | None
    exits: list[dict[str, np.ndarray]]
    unknown: list[str]

    @property
    def embed_dim(self) -> int:
        return self.exits[0]["cls_token"].shape[-1]

    @property
    def grids(self) -> list[int]:
        """Tokens per side of each exit. Raises CheckpointError for positions that are not a square."""
        return [_grid(exit_, self.path) for exit_ in self.exits]


def initial_weights(config: ModelConfig, path: str | os.PathLike) -> Initial:
    """The weights in `path` that the model of `config` can start from, under its names and in its shapes.

    `path` is a checkpoint of this package (`.ckpt`) or a PyTorch file (`.pth`, `.pth.tar`, `.pt`) of a DVT, a DeiT or a
    T2T-ViT; nothing in it is executed. `match_exits` says which exit starts from which. Within an exit a layer is taken
    if all its tensors fit. Positions of T2T are never taken, since they are computed; learned ones are resized.

    Raises:
        CheckpointError: The file is missing, damaged, of another network, or nothing in it fits; PyTorch is missing.
    """
    path = Path(path)
    source = _read(config, path)
    _check_backbone(config, source)
    grids = source.grids
    weights: dict[str, np.ndarray] = {}
    report = [f"initial weights from {path}: {source.kind}, {_grids(grids)} tokens, {source.embed_dim} channels"]
    chosen = match_exits(grids, config.grid_sizes)
    for index, origin in enumerate(chosen):
        taken, lines = start_exit(config, index, source.exits[origin], grids[origin])
        weights |= {f"exits.{index}.{name}": value for name, value in taken.items()}
        where = f"exit {origin + 1} of the file ({_grids([grids[origin]])} tokens)"
        report.append(f"exit {index + 1} ({_grids([config.grid_sizes[index]])} tokens) starts from {where}")
        report += [f"  {line}" for line in lines]
    if not any(name.endswith(".attn.qkv.weight") for name in weights):
        there = next((value.shape for name, value in source.exits[-1].items() if name.endswith("qkv.weight")), None)
        raise CheckpointError(
            f"nothing in {path} fits {config.name}: found {source.kind} with {source.embed_dim} channels, "
            f"{'no blocks.*.attn.qkv.weight' if there is None else f'blocks.*.attn.qkv.weight of {there}'}; needed "
            f"{(3 * config.embed_dim, config.embed_dim)}. Give weights of the same backbone, or leave "
            "train.init_checkpoint out"
        )
    check_weights({name: value.shape for name, value in weights.items()}, weights, str(path))
    return Initial(
        {name: np.ascontiguousarray(value, np.float32) for name, value in weights.items()},
        report + _not_taken(config, source, chosen),
    )


def apply(model: "nn.Cell", initial: Initial) -> list[str]:
    """Puts the initial weights into a freshly built model and returns the report; what they lack stays as it is.

    Raises CheckpointError, and leaves the model unchanged, if they were made for another configuration.
    """
    fresh = {name: parameter.asnumpy() for name, parameter in model.parameters_dict().items()}
    load_weights(model, fresh | initial.weights, source="the initial weights")
    return initial.report


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
    name = path.name.lower()
    if name.endswith(PYTORCH_SUFFIXES):
        return _read_pytorch(config, path)
    if name.endswith(".ckpt"):
        return _read_own(path)
    raise CheckpointError(
        f"cannot start from {path}: its name must end in .ckpt (a checkpoint of this package) or in "
        f"{', '.join(PYTORCH_SUFFIXES)} (a PyTorch file)"
    )


def _read_own(path: Path) -> _Source:
    checkpoint = read_checkpoint(path)
    model = checkpoint.model
    exits: list[dict[str, np.ndarray]] = [{} for _ in model.grid_sizes]
    unknown = []
    for name, value in with_shared(model, checkpoint.weights).items():
        where = re.fullmatch(r"exits\.(\d+)\.(.+)", name)
        if where and int(where[1]) < len(exits):
            exits[int(where[1])][where[2]] = value
        else:
            unknown.append(name)
    _check_tokens(exits, checkpoint.weights, path)
    return _Source(path, f"a checkpoint of {model.name}", model.tokenizer, model.num_heads, exits, unknown)


def _read_pytorch(config: ModelConfig, path: Path) -> _Source:
    file = read_weights(path)
    prefixes = [prefix for prefix in EXIT_PREFIXES if any(name.startswith(f"{prefix}.") for name in file.tensors)]
    kind = f"a {'DVT' if prefixes else 'plain backbone'} from PyTorch ({file.key or 'the whole file'})"
    # Names alone, so those of any exit will do; the last one has them all, unless it shares some.
    unshared = replace(config, share_blocks=False)
    ours = {row.theirs: row.ours for row in exit_rows(unshared, config.num_exits - 1)} | {"dist_token": "dist_token"}
    exits, unknown = [], []
    for prefix in [f"{prefix}." for prefix in prefixes] or [""]:
        named = {name.removeprefix(prefix): value for name, value in file.tensors.items() if name.startswith(prefix)}
        exits.append(
            {
                ours[theirs]: value.reshape(len(value), -1) if value.ndim == 4 else value
                for theirs, value in named.items()
                if theirs in ours
            }
        )
        unknown += [prefix + theirs for theirs in named if theirs not in ours]
    _check_tokens(exits, file.tensors, path)
    tokenizer = "patch" if any("patch_embed." in name for name in file.tensors) else "t2t"
    return _Source(path, kind, tokenizer, file.model.num_heads if file.model else None, exits, unknown)


def _check_tokens(exits: list[dict[str, np.ndarray]], names: Iterable[str], path: Path) -> None:
    for exit_ in exits:
        if any(exit_.get(name, np.zeros(0)).ndim != 3 for name in ("cls_token", "pos_embed")):
            raise CheckpointError(
                f"{path} holds another network: needed are the tensors of a DVT, a DeiT or a T2T-ViT, among them "
                f"cls_token, pos_embed and blocks.0.attn.qkv.weight for each exit; here they are {listing(names)}"
            )


def _grid(exit_: Mapping[str, np.ndarray], path: Path) -> int:
    special = 2 if "dist_token" in exit_ else 1  # tokens that stand for no place
    cells = exit_["pos_embed"].shape[1] - special
    side = math.isqrt(max(cells, 0))
    if side < 1 or side * side != cells:
        raise CheckpointError(
            f"{path} cannot be used: its {cells + special} positions are not a square grid and {special} more; weights "
            "for square images are needed"
        )
    return side


def _check_backbone(config: ModelConfig, source: _Source) -> None:
    """Refuses weights of which some have fitting shapes but another meaning."""
    words = {"patch": "patch embedding (DeiT)", "t2t": "soft splits (T2T-ViT)"}
    faults = []
    if source.tokenizer != config.tokenizer:
        faults.append(f"{words[source.tokenizer]}, needed {words[config.tokenizer]}")
    if source.embed_dim != config.embed_dim:
        faults.append(f"{source.embed_dim} channels, needed {config.embed_dim}")
    if source.num_heads not in (None, config.num_heads):
        faults.append(f"{source.num_heads} heads, needed {config.num_heads}")
    if faults:
        raise CheckpointError(
            f"nothing in {source.path} fits {config.name}: found {source.kind} with {'; '.join(faults)}. Give weights "
            "of the same backbone, or leave train.init_checkpoint out"
        )


def start_exit(
    config: ModelConfig, index: int, found: Mapping[str, np.ndarray], found_grid: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """What exit `index` takes from an exit with `found_grid` tokens per side: layers whose tensors all fit, and learned
    positions, resized.

    Returns:
        Weights by name below `exits.K.`, and lines on what was not simply copied.
    """
    shapes = {row.ours: row.our_shape for row in exit_rows(config, index)}
    taken, positions = _positions(config, index, found, found_grid)
    fresh: dict[str, list[str]] = {}  # reason -> layers or tensors
    others = (name for name in shapes if name != "pos_embed")
    for layer, grouped in itertools.groupby(others, key=lambda name: name.rpartition(".")[0] or name):
        names = list(grouped)
        there = [name for name in names if name in found]
        misfit = next((name for name in there if found[name].shape != shapes[name]), None)
        if misfit is not None:
            fresh.setdefault(_reason(layer, found[misfit].shape, shapes[misfit]), []).append(layer)
            continue
        taken |= {name: found[name] for name in there}
        if len(there) < len(names):
            fresh.setdefault("not in the file", []).extend([n for n in names if n not in found] if there else [layer])
    lines = [f"taken: {len(taken)} of {len(shapes)} tensors; {positions}"]
    lines += [f"freshly initialised, {reason}: {_kinds(names)}" for reason, names in fresh.items()]
    return taken, lines


def _positions(
    config: ModelConfig, index: int, found: Mapping[str, np.ndarray], found_grid: int
) -> tuple[dict[str, np.ndarray], str]:
    """The positions of one exit by name, none for T2T, and a line that says where they come from."""
    if config.tokenizer == "t2t":
        return {}, "positions: fixed sinusoids, computed for this grid"
    grid, positions = config.grid_sizes[index], found["pos_embed"]
    origin = "as in the file" if grid == found_grid else f"resized from {_grids([found_grid, grid], ' to ')}"
    if "dist_token" in found:
        positions = np.delete(positions, 1, axis=1)
        origin += ", without that of the distillation token"
    if grid != found_grid:
        positions = resize_positions(positions, grid)
    return {"pos_embed": positions}, f"positions: {origin}"


def _reason(layer: str, found: tuple[int, ...], needed: tuple[int, ...]) -> str:
    """Why a layer of the file does not fit, from the shapes of a tensor of it."""
    sizes = f"{found} in the file, {needed} here"
    if len(found) == len(needed):
        if layer == "head":
            return f"other classes ({found[0]} in the file, {needed[0]} here)"
        if layer.startswith("tokens."):
            return f"made for patches of another size ({sizes})"
        if abs(needed[-1] - found[-1]) == FEATURE_CHANNELS:
            return f"widened by feature reuse {'here' if needed[-1] > found[-1] else 'in the file'} ({sizes})"
    return f"of another shape ({sizes})"


def _not_taken(config: ModelConfig, source: _Source, chosen: list[int]) -> list[str]:
    """Lines on what is in the file and has no place in the model at all."""
    lines = []
    unused = [origin for origin in range(len(source.exits)) if origin not in chosen]
    if unused:
        lines.append(f"not taken, exits of the file of no use here: {', '.join(str(k + 1) for k in unused)}")
    placeless = []
    for origin in sorted(set(chosen)):
        known = {row.ours for k, each in enumerate(chosen) if each == origin for row in exit_rows(config, k)}
        placeless += [name for name in source.exits[origin] if name not in known]
    placeless += source.unknown
    if placeless:
        lines.append(f"not taken, no place in this model: {_kinds(placeless)}")
    return lines


def _kinds(names: Iterable[str]) -> str:
    """'blocks.*.norm2 (12), head': names that differ in numbers only are counted."""
    counts = Counter(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names)
    return listing((f"{kind} ({n})" if n > 1 else kind for kind, n in counts.items()), shown=_SHOWN)


def _grids(sides: Iterable[int], separator: str = ", ") -> str:
    return separator.join(f"{side}x{side}" for side in sides)
