"""Feature reuse and relation reuse: what an exit makes of what the exit before it hands on (paper, section 3.2).

Both resize from the G'xG' grid of the exit before to the GxG grid of this one by a fixed matrix (`dvt.models.grids`).
Axis letters: B batch, C width, H heads, L layers, N tokens of this exit, N' tokens of the exit before.
"""

import numpy as np
from mindspore import Tensor, nn, ops

from dvt.models.grids import token_resize_matrix
from dvt.models.layers import ChannelDense, Gelu, LayerNorm, SwapMiddle, dense
from dvt.models.variants import FEATURE_CHANNELS, FEATURE_HIDDEN, RELATION_EXPANSION, ModelConfig


class FeatureReuse(nn.Cell):
    """One block's own view of the features of the exit before: (B, N', C) -> (B, N, 48), class row zero."""

    def __init__(self, config: ModelConfig, exit_index: int) -> None:
        super().__init__()
        self.norm = LayerNorm(config.embed_dim, config.norm_eps)
        self.fc1 = dense(config.embed_dim, FEATURE_HIDDEN, config.init_std)
        self.act = Gelu()
        self.fc2 = dense(FEATURE_HIDDEN, FEATURE_CHANNELS, config.init_std)
        self.resize = Tensor(_resize_matrix(config, exit_index, class_weight=0.0))  # (N, N')
        self.cast = ops.Cast()

    def construct(self, features: Tensor) -> Tensor:
        context = self.fc2(self.act(self.fc1(self.norm(features))))  # (B, N', 48)
        return ops.matmul(self.cast(self.resize, context.dtype), context)


class RelationReuse(nn.Cell):
    """Mixes the relations of all layers of the exit before: (B, L*H, N', N') -> transposed, (B, H, N', N') per layer,
    which `RelationResize` brings to this exit's grid: nothing of size (B, L*H, N, N) is ever built."""

    def __init__(self, config: ModelConfig, exit_index: int) -> None:
        super().__init__()
        channels = config.depth * config.num_heads
        self.fc1 = ChannelDense(channels, RELATION_EXPANSION * channels)
        self.act = Gelu()
        self.fc2 = ChannelDense(RELATION_EXPANSION * channels, channels)
        self.swap = SwapMiddle()
        self.split = ops.Split(axis=1, output_num=config.depth)

    def construct(self, relations: Tensor) -> tuple[Tensor, ...]:
        batch, channels, tokens, _ = relations.shape
        mixed = self.fc2(self.act(self.fc1(relations.reshape(batch, channels, tokens * tokens))))
        transposed = self.swap(mixed.reshape(batch * channels, tokens, tokens, 1))
        return self.split(transposed.reshape(batch, channels, tokens, tokens))


class RelationResize(nn.Cell):
    """r^T (B, H, N', N') -> E r E^T (B, H, N, N), where E keeps the class row and column. Both products are 2-D, over
    the last axis: a broadcast matrix would be copied for every map."""

    def __init__(self, config: ModelConfig, exit_index: int) -> None:
        super().__init__()
        self.transposed_matrix = Tensor(_resize_matrix(config, exit_index, class_weight=1.0).T.copy())  # E^T: (N', N)
        self.source, self.target = self.transposed_matrix.shape
        self.num_heads = config.num_heads
        self.swap = SwapMiddle()
        self.product = ops.MatMul()
        self.cast, self.reshape = ops.Cast(), ops.Reshape()

    def construct(self, transposed: Tensor) -> Tensor:
        matrix = self.cast(self.transposed_matrix, transposed.dtype)
        rows = self.product(self.reshape(transposed, (-1, self.source)), matrix)  # (B*H*N', N)
        rows = self.swap(self.reshape(rows, (-1, self.source, self.target, 1)))  # E r: (B*H, N, N', 1)
        resized = self.product(self.reshape(rows, (-1, self.source)), matrix)  # (B*H*N, N)
        return self.reshape(resized, (-1, self.num_heads, self.target, self.target))


def _resize_matrix(config: ModelConfig, exit_index: int, class_weight: float) -> np.ndarray:
    source, target = config.grid_sizes[exit_index - 1], config.grid_sizes[exit_index]
    return token_resize_matrix(source, config.resize_side(exit_index), target, class_weight)
