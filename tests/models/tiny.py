"""Configurations that compile in a second or two, their recipe weights, and the model filled with them."""

from typing import Any

import mindspore as ms
import numpy as np
import recipe
from mindspore import nn

from dvt.convert import load_reference_state_dict, reference_shapes
from dvt.models.cascade import build_from_config
from dvt.models.variants import ModelConfig, model_config

# 24 pixels cut into grids of 2, 3 and 4 patches; 32 pixels soft-split into grids of 2, 3 and 4 tokens.
PATCH = {"image_size": 24, "grid_sizes": (2, 3, 4)}
T2T = {"image_size": 32, "grid_sizes": (2, 3, 4), "soft_splits": ((6, 4, 1), (5, 3, 1), (3, 2, 1))}
SIZES = {"embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_hidden": 24, "num_classes": 7}


def patch_config(**overrides: Any) -> ModelConfig:
    return model_config("dvt_deit_small", **{**PATCH, **SIZES, **overrides})


def t2t_config(**overrides: Any) -> ModelConfig:
    return model_config("dvt_t2t_vit_12", **{**T2T, **SIZES, **overrides})


def recipe_weights(config: ModelConfig) -> dict[str, np.ndarray]:
    return recipe.weights(reference_shapes(config), config.tokenizer)


def images_for(config: ModelConfig, count: int = 2, seed: int = 5) -> np.ndarray:
    shape = (count, config.in_channels, config.image_size, config.image_size)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def filled(config: ModelConfig, tensors: dict[str, np.ndarray] | None = None) -> nn.Cell:
    """The model in evaluation mode, with recipe weights or `tensors`."""
    ms.set_seed(0)
    model = build_from_config(config)
    load_reference_state_dict(model, recipe_weights(config) if tensors is None else tensors)
    model.set_train(False)
    return model
