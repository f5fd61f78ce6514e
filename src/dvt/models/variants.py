"""The one table of variants, and the checked configuration of a model. Imports no framework.

Axis letters used throughout the package: B batch, C width (`embed_dim`), H heads, L layers (`depth`), G grid side,
N = G*G + 1 tokens (class token first), K exits.
"""

from dataclasses import MISSING, dataclass, field, fields
from itertools import pairwise
from numbers import Integral
from typing import Any, Literal

from dvt.errors import ConfigError, did_you_mean
from dvt.value_checks import bounds, check_fields

# The released models: DVT (NeurIPS 2021, arXiv 2105.15075), section 4 and the published code; dvt_deit_tiny is no
# published DVT but DeiT-Ti (arXiv 2012.12877, table 1) in the same cascade.
_T2T = {"tokenizer": "t2t"}
_DEIT = {"tokenizer": "patch", "qkv_bias": True, "norm_eps": 1e-6}
VARIANTS: dict[str, dict[str, Any]] = {
    "dvt_t2t_vit_12": {**_T2T, "embed_dim": 256, "depth": 12, "num_heads": 4, "mlp_hidden": 512},
    "dvt_t2t_vit_14": {**_T2T, "embed_dim": 384, "depth": 14, "num_heads": 6, "mlp_hidden": 1152},
    "dvt_deit_small": {**_DEIT, "embed_dim": 384, "depth": 12, "num_heads": 6, "mlp_hidden": 1536},
    "dvt_deit_tiny": {**_DEIT, "embed_dim": 192, "depth": 12, "num_heads": 3, "mlp_hidden": 768},
}

# First soft split of T2T at 224x224, per grid side: (kernel, stride, padding).
SOFT_SPLITS_224: dict[int, tuple[int, int, int]] = {7: (14, 8, 3), 10: (11, 6, 5), 14: (7, 4, 2)}

# Side of the intermediate upsampled grid in the published resize; other pairs use twice the source side.
RESIZE_SIDES: dict[tuple[int, int], int] = {(7, 10): 14, (10, 14): 20, (7, 14): 20}

# Second and third soft split of T2T, the same at every grid.
LATER_SOFT_SPLIT: tuple[int, int, int] = (3, 2, 1)

# Sizes that no variant changes (spec: tokens, feature reuse, relation reuse).
PERFORMER_DIM = 64  # token width E inside the T2T module
PERFORMER_FEATURES = 32  # random features m of the performer's kernel
PERFORMER_EPS = 1e-8  # added to what its attention is divided by
PERFORMER_NORM_EPS = 1e-5  # of its LayerNorms, whatever the backbone's
FEATURE_HIDDEN = 128  # hidden width of the feature reuse MLP
FEATURE_CHANNELS = 48  # channels it adds to each token in front of a block's MLP
RELATION_EXPANSION = 3  # the relation MLP goes L*H -> 3*L*H -> L*H

# The bounds below are far beyond any model of this family; more is a typing mistake that no machine could hold.
LARGEST_GRID = 256
LARGEST_WEIGHTS = 10**10  # parameters of all blocks; float32 makes 40 GB of them
LARGEST_RELATIONS = 2**31 - 1  # elements per image that an exit hands on, L*H*N*N
LARGEST_RATE = 0.999  # of dropout and stochastic depth: what is kept is divided by 1 - rate


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the weights' names and shapes and the function they compute.

    `dvt.config.ModelSection` explains the keys. Three more belong to the backbone: `tokenizer`, how an image becomes
    tokens; `qkv_bias`, whether queries, keys and values have biases; `norm_eps`, the epsilon of LayerNorm. None gives
    the published `soft_splits`, which exist for 224x224 and grids 7, 10, 14, and `resize_sides`.
    """

    name: str
    tokenizer: Literal["patch", "t2t"]
    embed_dim: int = field(metadata=bounds(1, 16384))
    depth: int = field(metadata=bounds(1, 512))
    num_heads: int = field(metadata=bounds(1, 1024))
    mlp_hidden: int = field(metadata=bounds(1, 65536))
    qkv_bias: bool = False
    norm_eps: float = field(default=1e-5, metadata=bounds(1e-12, 1.0))
    num_classes: int = field(default=1000, metadata=bounds(1, 1_000_000))
    image_size: int = field(default=224, metadata=bounds(1, 4096))
    in_channels: int = field(default=3, metadata=bounds(1, 1024))
    grid_sizes: tuple[int, ...] = field(default=(7, 10, 14), metadata=bounds(1, LARGEST_GRID))
    feature_reuse: bool = True
    relation_reuse: bool = True
    drop_path_rate: float = field(default=0.1, metadata=bounds(0, LARGEST_RATE))
    dropout_rate: float = field(default=0.0, metadata=bounds(0, LARGEST_RATE))
    soft_splits: tuple[tuple[int, ...], ...] | None = field(default=None, metadata=bounds(0))
    resize_sides: tuple[int, ...] | None = field(default=None, metadata=bounds(1, 2 * LARGEST_GRID, may_be_empty=True))
    init_std: float = field(default=0.02, metadata=bounds(above=0, most=10))
    share_blocks: bool = False
    average_exits: bool = False

    def __post_init__(self) -> None:
        for each in fields(self):
            _set(self, each.name, _plain(getattr(self, each.name)))
        check_fields(self, "model.")
        if self.embed_dim % self.num_heads:
            raise ConfigError(
                f"model.embed_dim {self.embed_dim} is not a multiple of model.num_heads {self.num_heads}; each head "
                "needs a whole share of the width"
            )
        if self.tokenizer == "t2t" and self.embed_dim % 2:
            raise ConfigError(f"model.embed_dim {self.embed_dim} must be even for the sinusoid positions of T2T")
        if any(a >= b for a, b in pairwise(self.grid_sizes)):
            raise ConfigError(f"model.grid_sizes {list(self.grid_sizes)} must rise from exit to exit: [7, 10, 14]")
        self._check_size()
        self._check_resize_sides()
        if self.tokenizer == "t2t":
            self._check_soft_splits()
        elif self.soft_splits is not None:
            raise ConfigError("model.soft_splits is for T2T models; this one cuts the image into patches")
        else:
            for grid in self.grid_sizes:
                patch_geometry(self.image_size, grid)

    @property
    def num_exits(self) -> int:
        return len(self.grid_sizes)

    @property
    def shared_layers(self) -> tuple[str, ...]:
        """Layers of a block, by their names in it, whose weights the first exit's block lends to those of the others:
        all of one shape; norm2 and the MLP's first layer are widened by feature reuse."""
        if not self.share_blocks:
            return ()
        everywhere = ("norm1", "attn.qkv", "attn.proj", "mlp.fc2")
        return everywhere if self.feature_reuse else (*everywhere, "norm2", "mlp.fc1")

    def num_tokens(self, exit_index: int) -> int:
        """N of one exit, class token included."""
        return self.grid_sizes[exit_index] ** 2 + 1

    def resize_side(self, exit_index: int) -> int:
        """Side of the intermediate grid on the way from exit `exit_index - 1` to exit `exit_index`."""
        return self.resize_sides[exit_index - 1]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for YAML and JSON; `ModelConfig.from_dict` reads it back."""
        return {key: _lists(value) for key, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """Inverse of `to_dict`; raises ConfigError for unknown or missing keys."""
        _refuse_unknown_keys(values)
        if missing := [each.name for each in fields(cls) if each.default is MISSING and each.name not in values]:
            raise ConfigError(f"the model configuration lacks {', '.join(missing)}")
        return cls(**values)

    def _check_size(self) -> None:
        """Refuses what each key allows but all of them together make too large for any machine."""
        weights = self.num_exits * self.depth * (4 * self.embed_dim**2 + 2 * self.embed_dim * self.mlp_hidden)
        logits = self.depth * self.num_heads * self.num_tokens(self.num_exits - 1) ** 2
        for what, amount, most, keys in (
            ("weights", weights, LARGEST_WEIGHTS, ("embed_dim", "depth", "mlp_hidden")),
            ("attention logits per image", logits, LARGEST_RELATIONS, ("grid_sizes", "depth", "num_heads")),
        ):
            if amount > most:
                given = ", ".join(f"model.{key} {_lists(getattr(self, key))}" for key in keys)
                raise ConfigError(f"{given} make {amount:,} {what}; at most {most:,} can be built: lower one of them")

    def _check_resize_sides(self) -> None:
        pairs = list(pairwise(self.grid_sizes))
        if self.resize_sides is None:
            _set(self, "resize_sides", tuple(RESIZE_SIDES.get(pair, 2 * pair[0]) for pair in pairs))
        sources = [source for source, _ in pairs]
        if len(self.resize_sides) != len(pairs) or any(map(int.__lt__, self.resize_sides, sources)):
            raise ConfigError(
                f"model.resize_sides is {list(self.resize_sides)}; {self.num_exits} exits need {len(pairs)} sides, one "
                f"per hand-over, at least as large as those they come from, {sources}"
            )

    def _check_soft_splits(self) -> None:
        if self.soft_splits is None:
            unknown = [grid for grid in self.grid_sizes if grid not in SOFT_SPLITS_224]
            if self.image_size != 224 or unknown:
                raise ConfigError(
                    f"model.soft_splits is needed for image_size {self.image_size} with grid_sizes "
                    f"{list(self.grid_sizes)}: give one [kernel, stride, padding] per exit. Known without it: "
                    f"image_size 224 with grids from {sorted(SOFT_SPLITS_224)}"
                )
            _set(self, "soft_splits", tuple(SOFT_SPLITS_224[grid] for grid in self.grid_sizes))
        sound = all(len(split) == 3 and split[0] > split[2] and split[1] >= 1 for split in self.soft_splits)
        if len(self.soft_splits) != self.num_exits or not sound:
            raise ConfigError(
                f"model.soft_splits is {_lists(self.soft_splits)}; it must be a list of {self.num_exits} triples "
                "[kernel, stride, padding], one per exit, with kernel > padding >= 0 and stride >= 1"
            )
        for grid, split in zip(self.grid_sizes, self.soft_splits, strict=True):
            side = split_sides(self.image_size, split)[-1]
            if side != grid:
                raise ConfigError(
                    f"model.soft_splits {list(split)} turns image_size {self.image_size} into a {side}x{side} grid, "
                    f"not the {grid}x{grid} of model.grid_sizes; change one of the three"
                )


def list_models() -> list[str]:
    """Names that `build_model` knows."""
    return list(VARIANTS)


def model_config(name: str, **overrides: Any) -> ModelConfig:
    """The configuration of variant `name` with `overrides` laid over it; None means "as in the table". Raises
    ConfigError for an unknown name or key and for shapes that do not fit."""
    if name not in VARIANTS:
        hint = did_you_mean(str(name), VARIANTS)
        raise ConfigError(f"unknown model {name!r}{hint}; known models: {', '.join(VARIANTS)}")
    _refuse_unknown_keys(overrides)
    given = {key: value for key, value in overrides.items() if value is not None}
    return ModelConfig(**{"name": name, **VARIANTS[name], **given})


def split_sides(image_size: int, first_split: tuple[int, int, int]) -> tuple[int, int, int]:
    """Grid sides after the first, second and third soft split of T2T."""
    sides = [image_size]
    for kernel, stride, padding in (first_split, LATER_SOFT_SPLIT, LATER_SOFT_SPLIT):
        sides.append((sides[-1] + 2 * padding - kernel) // stride + 1)
    return tuple(sides[1:])


def patch_geometry(image_size: int, grid: int) -> tuple[int, int]:
    """(patch side, padding) of the DeiT patch embedding: ceil(S/G) and (patch*G - S)/2, which must be whole."""
    patch = -(-image_size // grid)
    excess = patch * grid - image_size
    if grid > image_size:
        raise ConfigError(
            f"model.grid_sizes: a {grid}x{grid} grid needs an image_size of at least {grid} pixels; it is {image_size}"
        )
    if excess % 2:
        raise ConfigError(
            f"model.grid_sizes: a {grid}x{grid} grid cannot be cut from image_size {image_size}: patches of {patch} "
            f"pixels cover {patch * grid}, and the {excess} extra pixels do not split evenly over both sides. Choose "
            f"an image_size such as {patch * grid} or another grid"
        )
    return patch, excess // 2


def _refuse_unknown_keys(values: dict[str, Any]) -> None:
    known = [each.name for each in fields(ModelConfig)]
    for key in values.keys() - set(known):
        hint = did_you_mean(key, known) or f"; known keys: {', '.join(known)}"
        raise ConfigError(f"unknown model key {key!r}{hint}")


def _plain(value: Any) -> Any:
    """Lists as tuples, which cannot be changed, and NumPy's integers as Python's, which JSON can write."""
    if isinstance(value, list | tuple):
        return tuple(_plain(each) for each in value)
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def _lists(value: Any) -> Any:
    return [_lists(each) for each in value] if isinstance(value, tuple) else value


def _set(config: ModelConfig, key: str, value: Any) -> None:
    object.__setattr__(config, key, value)
