"""The one table of variants, and the checked configuration of a model. Imports no framework.

Axis letters used throughout the package: B batch, C width (`embed_dim`), H heads, L layers (`depth`), G grid side,
N = G*G + 1 tokens (class token first), K exits.
"""

import difflib
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any

from dvt.errors import ConfigError
from dvt.value_checks import check_values

# The released models: DVT (NeurIPS 2021, arXiv 2105.15075), section 4 and the published code; dvt_deit_tiny is no
# published DVT but DeiT-Ti (arXiv 2012.12877, table 1) in the same cascade. What a row does not name is the dataclass
# default below.
VARIANTS: dict[str, dict[str, Any]] = {
    "dvt_t2t_vit_12": {"tokenizer": "t2t", "embed_dim": 256, "depth": 12, "num_heads": 4, "mlp_hidden": 512},
    "dvt_t2t_vit_14": {"tokenizer": "t2t", "embed_dim": 384, "depth": 14, "num_heads": 6, "mlp_hidden": 1152},
    "dvt_deit_small": {
        "tokenizer": "patch",
        "embed_dim": 384,
        "depth": 12,
        "num_heads": 6,
        "mlp_hidden": 1536,
        "qkv_bias": True,
        "norm_eps": 1e-6,
    },
    "dvt_deit_tiny": {
        "tokenizer": "patch",
        "embed_dim": 192,
        "depth": 12,
        "num_heads": 3,
        "mlp_hidden": 768,
        "qkv_bias": True,
        "norm_eps": 1e-6,
    },
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

# Far beyond any model of this family; more is a slip of the pen that no machine could hold.
LARGEST = {
    "embed_dim": 16384,
    "depth": 512,
    "num_heads": 1024,
    "mlp_hidden": 65536,
    "num_classes": 1_000_000,
    "image_size": 4096,
    "in_channels": 1024,
}
LARGEST_GRID = 256
LARGEST_WEIGHTS = 10**10  # parameters of all blocks; float32 makes 40 GB of them
LARGEST_RELATIONS = 2**31 - 1  # elements per image that an exit hands on, L*H*N*N
LARGEST_RATE = 0.999  # of dropout and stochastic depth: what is kept is divided by 1 - rate
NORM_EPS_RANGE = (1e-12, 1.0)
LARGEST_INIT_STD = 10.0


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the weights' names and shapes and the function they compute.

    `soft_splits` is one (kernel, stride, padding) of the first T2T split per exit; None takes the published ones, which
    exist for 224x224 and grids 7, 10, 14. `resize_sides` is one intermediate side per hand-over (spec: the resize).
    With `share_blocks` the blocks of all exits have those weights in common that do not depend on reuse
    (`shared_layers`). With `average_exits` an exit answers, in evaluation, with the mean of its own probabilities and
    those of the exits before.
    `init_std` is that of freshly initialised Linear weights, class token and positions; narrow models learn faster from
    a larger one.
    """

    name: str
    tokenizer: str
    embed_dim: int
    depth: int
    num_heads: int
    mlp_hidden: int
    qkv_bias: bool = False
    norm_eps: float = 1e-5
    num_classes: int = 1000
    image_size: int = 224
    in_channels: int = 3
    grid_sizes: tuple[int, ...] = (7, 10, 14)
    feature_reuse: bool = True
    relation_reuse: bool = True
    drop_path_rate: float = 0.1
    dropout_rate: float = 0.0
    soft_splits: tuple[tuple[int, int, int], ...] | None = None
    resize_sides: tuple[int, ...] | None = None
    init_std: float = 0.02
    share_blocks: bool = False
    average_exits: bool = False

    def __post_init__(self) -> None:
        if self.tokenizer not in ("patch", "t2t"):
            raise ConfigError(f"model.tokenizer is {self.tokenizer!r}; it must be 'patch' or 't2t'")
        for key, largest in LARGEST.items():
            _require_positive_int(key, getattr(self, key))
            _set(self, key, int(getattr(self, key)))
            if getattr(self, key) > largest:
                raise ConfigError(f"model.{key} is {getattr(self, key)}; it must be at most {largest}")
        _set(self, "grid_sizes", _int_tuple("grid_sizes", self.grid_sizes))
        if self.embed_dim % self.num_heads:
            raise ConfigError(
                f"model.embed_dim {self.embed_dim} is not a multiple of model.num_heads {self.num_heads}; each head "
                "needs a whole share of the width"
            )
        if self.tokenizer == "t2t" and self.embed_dim % 2:
            raise ConfigError(f"model.embed_dim {self.embed_dim} must be even for the sinusoid positions of T2T")
        for key in ("qkv_bias", "feature_reuse", "relation_reuse", "share_blocks", "average_exits"):
            if not isinstance(getattr(self, key), bool):
                raise ConfigError(f"model.{key} is {getattr(self, key)!r}; it must be true or false")
        for key in ("norm_eps", "drop_path_rate", "dropout_rate", "init_std"):
            _require_number(key, getattr(self, key))
            check_values({key: float(getattr(self, key))}, "model.")
        for key in ("drop_path_rate", "dropout_rate"):
            if not 0.0 <= getattr(self, key) < 1.0:
                raise ConfigError(f"model.{key} is {getattr(self, key)}; it must be at least 0 and below 1")
            if getattr(self, key) > LARGEST_RATE:
                raise ConfigError(f"model.{key} is {getattr(self, key)}; it must be at most {LARGEST_RATE}")
        if not self.init_std > 0:
            raise ConfigError(f"model.init_std is {self.init_std}; it must be above 0")
        if self.init_std > LARGEST_INIT_STD:
            raise ConfigError(f"model.init_std is {self.init_std}; it must be at most {LARGEST_INIT_STD:g}")
        if not self.norm_eps > 0:
            raise ConfigError(f"model.norm_eps is {self.norm_eps}; it must be above 0")
        smallest, largest = NORM_EPS_RANGE
        if not smallest <= self.norm_eps <= largest:
            raise ConfigError(f"model.norm_eps is {self.norm_eps}; it must lie between {smallest:g} and {largest:g}")
        if not self.grid_sizes:
            raise ConfigError("model.grid_sizes is empty; give one grid side per exit, such as [7, 10, 14]")
        if min(self.grid_sizes) < 1:
            raise ConfigError(f"model.grid_sizes is {list(self.grid_sizes)}; every grid side must be at least 1")
        if any(a >= b for a, b in zip(self.grid_sizes, self.grid_sizes[1:], strict=False)):
            raise ConfigError(f"model.grid_sizes {list(self.grid_sizes)} must rise from exit to exit: [7, 10, 14]")
        self._check_size()
        self._check_resize_sides()
        if self.tokenizer == "t2t":
            self._check_soft_splits()
        else:
            if self.soft_splits is not None:
                raise ConfigError("model.soft_splits is for T2T models; this one cuts the image into patches")
            for grid in self.grid_sizes:
                patch_geometry(self.image_size, grid)

    @property
    def num_exits(self) -> int:
        return len(self.grid_sizes)

    @property
    def shared_layers(self) -> tuple[str, ...]:
        """Layers of a block, by their names in it, whose weights the first exit's block lends to those of the others.

        Those of which all exits have the same shapes; norm2 and the MLP's first layer are widened by feature reuse.
        """
        if not self.share_blocks:
            return ()
        everywhere = ("norm1", "attn.qkv", "attn.proj", "mlp.fc2")
        return everywhere if self.feature_reuse else (*everywhere, "norm2", "mlp.fc1")

    def num_tokens(self, exit_index: int) -> int:
        """N of one exit, class token included."""
        return self.grid_sizes[exit_index] ** 2 + 1

    def first_split(self, exit_index: int) -> tuple[int, int, int]:
        """(kernel, stride, padding) of the first soft split of one exit of a T2T model."""
        return self.soft_splits[exit_index]

    def resize_side(self, exit_index: int) -> int:
        """Side of the intermediate grid on the way from exit `exit_index - 1` to exit `exit_index`."""
        return self.resize_sides[exit_index - 1]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for YAML and JSON; `ModelConfig.from_dict` reads it back."""
        values = asdict(self)
        for key in ("grid_sizes", "resize_sides"):
            values[key] = list(values[key])
        if self.soft_splits is not None:
            values["soft_splits"] = [list(split) for split in self.soft_splits]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """Inverse of `to_dict`; raises ConfigError for unknown or missing keys."""
        _refuse_unknown_keys(values)
        missing = [f.name for f in fields(cls) if f.name not in values and f.name in _REQUIRED]
        if missing:
            raise ConfigError(f"the model configuration lacks {', '.join(missing)}")
        return cls(**values)

    def _check_size(self) -> None:
        """Refuses what each key allows but all of them together make too large for any machine."""
        if max(self.grid_sizes) > LARGEST_GRID:
            raise ConfigError(f"model.grid_sizes is {list(self.grid_sizes)}; sides must be at most {LARGEST_GRID}")
        weights = self.num_exits * self.depth * (4 * self.embed_dim**2 + 2 * self.embed_dim * self.mlp_hidden)
        if weights > LARGEST_WEIGHTS:
            raise ConfigError(
                f"model.embed_dim {self.embed_dim}, model.depth {self.depth} and model.mlp_hidden {self.mlp_hidden} "
                f"make {weights:,} weights; at most {LARGEST_WEIGHTS:,} can be built: lower one of them"
            )
        relations = self.depth * self.num_heads * self.num_tokens(self.num_exits - 1) ** 2
        if relations > LARGEST_RELATIONS:
            raise ConfigError(
                f"model.grid_sizes {list(self.grid_sizes)}, model.depth {self.depth} and model.num_heads "
                f"{self.num_heads} make {relations:,} attention logits per image; at most {LARGEST_RELATIONS:,} can be "
                "computed: lower one of them"
            )

    def _check_resize_sides(self) -> None:
        pairs = list(zip(self.grid_sizes, self.grid_sizes[1:], strict=False))
        if self.resize_sides is None:
            _set(self, "resize_sides", tuple(RESIZE_SIDES.get(pair, 2 * pair[0]) for pair in pairs))
        _set(self, "resize_sides", _int_tuple("resize_sides", self.resize_sides))
        if len(self.resize_sides) != len(pairs):
            raise ConfigError(
                f"model.resize_sides {list(self.resize_sides)} has {len(self.resize_sides)} entries; "
                f"{self.num_exits} exits need {len(pairs)}, one per hand-over"
            )
        for (source, _), side in zip(pairs, self.resize_sides, strict=True):
            if side < source:
                raise ConfigError(f"model.resize_sides holds {side}, less than the {source} it upsamples from")
            if side > 2 * LARGEST_GRID:
                raise ConfigError(f"model.resize_sides holds {side}; sides must be at most {2 * LARGEST_GRID}")

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
        try:
            splits = tuple(_int_tuple("soft_splits", split) for split in self.soft_splits)
        except TypeError:
            splits = ()
        if len(splits) != self.num_exits or any(len(split) != 3 for split in splits):
            raise ConfigError(
                f"model.soft_splits is {self.soft_splits!r}; {self.num_exits} exits need {self.num_exits} triples "
                "[kernel, stride, padding]"
            )
        _set(self, "soft_splits", splits)
        for grid, split in zip(self.grid_sizes, splits, strict=True):
            kernel, stride, padding = split
            if kernel < 1 or stride < 1 or padding < 0 or padding >= kernel:
                raise ConfigError(f"model.soft_splits holds {list(split)}; need kernel > padding >= 0 and stride >= 1")
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
    """The configuration of variant `name` with `overrides` laid over it; None means "as in the table".

    Raises ConfigError for an unknown name or key (naming the nearest valid one) and for shapes that do not fit.
    """
    if name not in VARIANTS:
        near = difflib.get_close_matches(str(name), VARIANTS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown model {name!r}.{hint} Known models: {', '.join(VARIANTS)}")
    _refuse_unknown_keys(overrides)
    given = {key: value for key, value in overrides.items() if value is not None}
    return ModelConfig(**{"name": name, **VARIANTS[name], **given})


def split_sides(image_size: int, first_split: tuple[int, int, int]) -> tuple[int, int, int]:
    """Grid sides after the first, second and third soft split of T2T."""
    sides = []
    side = image_size
    for kernel, stride, padding in (first_split, LATER_SOFT_SPLIT, LATER_SOFT_SPLIT):
        side = (side + 2 * padding - kernel) // stride + 1
        sides.append(side)
    return tuple(sides)


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


_REQUIRED = ("name", "tokenizer", "embed_dim", "depth", "num_heads", "mlp_hidden")


def _refuse_unknown_keys(values: dict[str, Any]) -> None:
    known = [f.name for f in fields(ModelConfig) if f.name != "name"]
    for key in values:
        if key not in known and key != "name":
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(known)}"
            raise ConfigError(f"unknown model key {key!r}{hint}")


def _require_positive_int(key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ConfigError(f"model.{key} is {value!r}; it must be a whole number of at least 1")


def _int_tuple(key: str, values: Any) -> tuple[int, ...]:
    try:
        result = tuple(values)
    except TypeError:
        raise ConfigError(f"model.{key} is {values!r}; it must be a list of whole numbers") from None
    if any(isinstance(v, bool) or not isinstance(v, Integral) or v < 0 for v in result):
        raise ConfigError(f"model.{key} is {values!r}; it must be a list of whole numbers")
    return tuple(int(v) for v in result)


def _require_number(key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigError(f"model.{key} is {value!r}; it must be a number")


def _set(config: ModelConfig, key: str, value: Any) -> None:
    object.__setattr__(config, key, value)
