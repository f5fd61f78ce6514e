"""The cascade of exits, and the factory that builds it."""

from typing import Any, NamedTuple

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from dvt.models.backbone import Backbone
from dvt.models.noise import DrawnKey
from dvt.models.variants import ModelConfig, model_config

SMALLEST_PROBABILITY = 1e-30  # its logarithm is finite


class ExitFeatures(NamedTuple):
    """What one exit computes: logits (B, classes), the last block's tokens (B, N, C) with the class token first, and
    the relations of all layers (B, L*H, N, N), which are attention logits, layer by layer and head by head."""

    logits: Tensor
    features: Tensor
    relations: Tensor


class DVT(nn.Cell):
    """Dynamic Vision Transformer (NeurIPS 2021, arXiv 2105.15075), all exits run on every image.

    Call: images (B, I, S, S), normalised float32 -> tuple of K logits, each (B, classes). For inference that stops
    early see `dvt.AdaptiveClassifier`. Gradients of later exits flow back through reused features and relations.

    With `average_exits`, the logits in evaluation are logarithms of the mean of the probabilities of the exits so far,
    so that their softmax is that mean; in training they are each exit's own.
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
        self._all_features: list[nn.Cell] = []  # a list, so that it is no part of the model

    def construct(self, images: Tensor, noise_key: Tensor | None = None) -> tuple[Tensor, ...]:
        if noise_key is None and self.training:
            noise_key = self.drawn_key()
        features, relations = None, None
        all_logits = ()
        for exit_ in self.exits:
            logits, features, relations = exit_(images, features, relations, noise_key)
            all_logits = all_logits + (logits,)
        return running_means(all_logits) if self.config.average_exits and not self.training else all_logits

    def forward_features(self, images: Tensor) -> tuple[ExitFeatures, ...]:
        """Features and relations of every exit, of the last one too, for research and figures; K entries. The logits
        are each exit's own.

        All exits run on every image (B, I, S, S), in evaluation mode or training mode as the model is. Compiled apart
        from the plain forward pass, once per batch size.
        """
        if not self._all_features:
            self._all_features.append(_AllFeatures(self))
        kept = [(exit_.hands_on_features, exit_.hands_on_relations) for exit_ in self.exits]
        try:
            for exit_ in self.exits:  # read when the graph is built
                exit_.hands_on_features = exit_.hands_on_relations = True
            outputs = self._all_features[0](images)
        finally:
            for exit_, (features, relations) in zip(self.exits, kept, strict=True):
                exit_.hands_on_features, exit_.hands_on_relations = features, relations
        return tuple(ExitFeatures(*outputs[start : start + 3]) for start in range(0, len(outputs), 3))


class _AllFeatures(nn.Cell):
    """images -> (logits, features, relations) of exit after exit, in one flat tuple."""

    def __init__(self, model: "DVT") -> None:
        super().__init__(auto_prefix=False)
        self.exits = model.exits

    def construct(self, images: Tensor) -> tuple[Tensor, ...]:
        features, relations = None, None
        outputs = ()
        for exit_ in self.exits:
            logits, features, relations = exit_(images, features, relations)
            outputs = outputs + (logits, features, relations)
        return outputs


def running_means(all_logits: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Logits (B, classes) of K exits -> those whose softmax is the mean of the probabilities of exits 1..k."""
    total, means = 0.0, ()
    for count, logits in enumerate(all_logits, start=1):
        total = total + ops.softmax(logits.astype(mstype.float32), axis=-1)
        means = means + (ops.log(ops.maximum(total / count, SMALLEST_PROBABILITY)),)
    return means


def _share_layers(lender: Backbone, borrower: Backbone, layers: tuple[str, ...]) -> None:
    """Puts these layers of one exit's blocks into the blocks of another; before the exits get their names."""
    for lent, block in zip(lender.blocks, borrower.blocks, strict=True):
        for layer in layers:
            *owners, name = layer.split(".")
            source, target = lent, block
            for owner in owners:
                source, target = getattr(source, owner), getattr(target, owner)
            setattr(target, name, getattr(source, name))


def build_from_config(config: ModelConfig) -> DVT:
    """The model of a checked configuration, freshly initialised from MindSpore's global seed."""
    return DVT(config)


def build_model(name: str, num_classes: int = 1000, **overrides: Any) -> DVT:
    """Builds variant `name` (one of `dvt.list_models()`).

    Overrides: `image_size`, `grid_sizes` (its length is the number of exits), `embed_dim`, `depth`, `num_heads`,
    `mlp_hidden`, `feature_reuse`, `relation_reuse`, `drop_path_rate`, `soft_splits`, `in_channels`, and the other
    fields of `dvt.models.variants.ModelConfig`. Raises ConfigError for unknown names, keys and shapes that do not fit.
    """
    return build_from_config(model_config(name, num_classes=num_classes, **overrides))
