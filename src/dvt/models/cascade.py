"""The cascade of exits, what can be asked of all of them at once, and the functions that build it."""

import copy
from typing import Any, NamedTuple

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from dvt.models import kernels as compiled
from dvt.models.backbone import Backbone
from dvt.models.kernels.operators import use_kernels
from dvt.models.noise import DrawnKey
from dvt.models.per_device import ON_CPU
from dvt.models.variants import ModelConfig, model_config

SMALLEST_PROBABILITY = 1e-30  # its logarithm is finite


class ExitFeatures(NamedTuple):
    """What one exit computes: its own logits (B, classes), the last block's tokens (B, N, C), class token first, and
    the relations of all layers (B, L*H, N, N), which are attention logits, layer by layer and head by head."""

    logits: Tensor
    features: Tensor
    relations: Tensor


class DVT(nn.Cell):
    """Dynamic Vision Transformer (NeurIPS 2021, arXiv 2105.15075), all exits run on every image.

    Call: images (B, I, S, S), normalised float32 -> tuple of K logits, each (B, classes). For inference that stops
    early see `dvt.AdaptiveClassifier`. Gradients of later exits flow back through reused features and relations. With
    `average_exits`, the softmax of logits in evaluation is the mean of the probabilities of the exits so far.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.num_exits = config.num_exits
        exits = [Backbone(config, index) for index in range(config.num_exits)]
        for exit_ in exits[1:]:
            _share_layers(exits[0], exit_, config.shared_layers)
        self.exits = nn.CellList(exits)  # gives the parameters their names, shared ones those of the first exit
        self.drawn_key = DrawnKey()

    def construct(self, images: Tensor, noise_key: Tensor | None = None, keep_all: bool = False) -> tuple[Tensor, ...]:
        if noise_key is None and self.training and not keep_all:
            noise_key = self.drawn_key()
        features, relations = None, None
        all_logits, everything = (), ()
        for exit_ in self.exits:
            logits, features, relations = exit_(images, features, relations, noise_key, keep_all)
            all_logits = all_logits + (logits,)
            everything = everything + (logits, features, relations)
        if keep_all:  # see `forward_features`
            return everything
        return running_means(all_logits) if self.config.average_exits and not self.training else all_logits

    def forward_features(self, images: Tensor) -> tuple[ExitFeatures, ...]:
        """images (B, I, S, S) -> what every exit computes, the last one too, for research and figures; K entries, in
        the mode of the model. Compiled apart from the plain forward pass."""
        outputs = self(images, None, True)
        return tuple(ExitFeatures(*outputs[start : start + 3]) for start in range(0, len(outputs), 3))


class AllExits(nn.Cell):
    """images (B, I, S, S) -> the answers of all exits (K, B, classes): probabilities in float32, or logits."""

    def __init__(self, model: DVT, probabilities: bool = True) -> None:
        super().__init__(auto_prefix=False)
        self.model, self.probabilities = model, probabilities

    def construct(self, images: Tensor) -> Tensor:
        logits = ops.stack(self.model(images))
        return ops.softmax(logits.astype(mstype.float32), axis=-1) if self.probabilities else logits


def running_means(all_logits: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Logits (B, classes) of K exits -> those whose softmax is the mean of the probabilities of exits 1..k."""
    total, means = 0.0, ()
    for count, logits in enumerate(all_logits, start=1):
        total = total + ops.softmax(logits.astype(mstype.float32), axis=-1)
        means = means + (ops.log(ops.maximum(total / count, SMALLEST_PROBABILITY)),)
    return means


def _share_layers(lender: Backbone, borrower: Backbone, layers: tuple[str, ...]) -> None:
    """Puts these layers of one exit's blocks into the blocks of another; before the exits get their names."""
    for source, target in zip(lender.blocks, borrower.blocks, strict=True):
        for layer in layers:
            owner, _, name = layer.rpartition(".")  # "norm1" or "attn.qkv"
            giver, taker = (getattr(block, owner) if owner else block for block in (source, target))
            setattr(taker, name, getattr(giver, name))


def build_from_config(config: ModelConfig, *, kernels: bool = True, initialised: bool = True) -> DVT:
    """The model of a checked configuration.

    `kernels` takes what is fastest on this device; False builds a model that can be exported, of operators that every
    device has. `initialised` draws fresh weights from MindSpore's global seed, which takes most of the time; False
    leaves zeros, for a model whose weights are loaded next.
    """
    model = DVT(config if initialised else _without_drawing(config))
    model.config = config
    if not kernels and config.tokenizer == "t2t":
        for exit_ in model.exits:
            exit_.tokens.unfold = ON_CPU.unfold
    library = compiled.library() if kernels else None
    if library is not None:
        use_kernels(model, library)
    return model


def _without_drawing(config: ModelConfig) -> ModelConfig:
    quick = copy.copy(config)
    object.__setattr__(quick, "init_std", 0.0)  # which no user can ask for
    return quick


def build_model(name: str, num_classes: int = 1000, *, kernels: bool = True, **overrides: Any) -> DVT:
    """Builds variant `name` (one of `dvt.list_models()`), freshly initialised from MindSpore's global seed.

    Overrides are fields of `dvt.models.variants.ModelConfig`, such as `image_size` or `grid_sizes` (its length is the
    number of exits). `kernels` as in `build_from_config`. Raises ConfigError for unknown names and what does not fit.
    """
    return build_from_config(model_config(name, num_classes=num_classes, **overrides), kernels=kernels)
