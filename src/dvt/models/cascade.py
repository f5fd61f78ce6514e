"""The cascade of exits, and the factory that builds it."""

from typing import Any

from mindspore import Tensor, nn

from dvt.models.backbone import Backbone
from dvt.models.noise import DrawnKey
from dvt.variants import ModelConfig, model_config


class DVT(nn.Cell):
    """Dynamic Vision Transformer (NeurIPS 2021, arXiv 2105.15075), all exits run on every image.

    Call: images (B, I, S, S), normalised float32 -> tuple of K logits, each (B, classes). For inference that stops
    early see `dvt.AdaptiveClassifier`. Gradients of later exits flow back through reused features and relations.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.exits = nn.CellList([Backbone(config, index) for index in range(config.num_exits)])
        self.drawn_key = DrawnKey()

    def construct(self, images: Tensor, noise_key: Tensor | None = None) -> tuple[Tensor, ...]:
        if noise_key is None and self.training:
            noise_key = self.drawn_key()
        features, relations = None, None
        all_logits = ()
        for exit_ in self.exits:
            logits, features, relations = exit_(images, features, relations, noise_key)
            all_logits = all_logits + (logits,)
        return all_logits


def build_from_config(config: ModelConfig) -> DVT:
    """The model of a checked configuration, freshly initialised from MindSpore's global seed."""
    return DVT(config)


def build_model(name: str, num_classes: int = 1000, **overrides: Any) -> DVT:
    """Builds variant `name` (one of `dvt.list_models()`).

    Overrides: `image_size`, `grid_sizes` (its length is the number of exits), `embed_dim`, `depth`, `num_heads`,
    `mlp_hidden`, `feature_reuse`, `relation_reuse`, `drop_path_rate`, `soft_splits`, `in_channels`, and the other
    fields of `dvt.variants.ModelConfig`. Raises ConfigError for unknown names, keys and shapes that do not fit.
    """
    return build_from_config(model_config(name, num_classes=num_classes, **overrides))
