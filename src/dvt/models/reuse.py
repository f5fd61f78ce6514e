"""Feature reuse and relation reuse: what an exit makes of what the exit before it hands on (paper, section 3.2).

Both resize from the G'xG' grid of the exit before to the GxG grid of this one by a fixed matrix (`dvt.grids`).
Axis letters: B batch, C width, H heads, L layers, N tokens of this exit, N' tokens of the exit before.
"""

import numpy as np
from mindspore import Tensor, nn, ops

from dvt.grids import token_resize_matrix
from dvt.models.layers import ChannelDense, Gelu, LayerNorm, SwapMiddle, dense
from dvt.variants import FEATURE_CHANNELS, FEATURE_HIDDEN, RELATION_EXPANSION, ModelConfig


class FeatureReuse(nn.Cell):
    """One block's own view of the features of the exit before: (B, N', C) -> (B, N, 48), class row zero."""

    def __init__(self, config: ModelConfig, exit_index: int) -> None:
        super().__init__()
        self.norm = LayerNorm(config.embed_dim, config.norm_eps)
        self.fc1 = dense(config.embed_dim, FEATURE_HIDDEN, config.init_std)
        self.act = Gelu()
        self.fc2 = dense(FEATURE_HIDDEN, FEATURE_CHANNELS, config.init_std)
        self.resize = Tensor(_resize_matrix(config, exit_index, class_weight=0.0))  # (N, N')

    def construct(self, features: Tensor) -> Tensor:
        context = self.fc2(self.act(self.fc1(self.norm(features))))  # (B, N', 48)
        return ops.matmul(self.resize.astype(context.dtype), context)


class RelationReuse(nn.Cell):
    """Mixes the relations of all layers of the exit before: (B, L*H, N', N') -> transposed, same shape, not resized.

    The mixing runs once per exit; `for_layer` resizes one layer's heads when that layer needs them, so that nothing
    of size (B, L*H, N, N) is ever built.
    """

    def __init__(self, config: ModelConfig, exit_index: int) -> None:
        super().__init__()
        channels = config.depth * config.num_heads
        self.fc1 = ChannelDense(channels, RELATION_EXPANSION * channels)
        self.act = Gelu()
        self.fc2 = ChannelDense(RELATION_EXPANSION * channels, channels)
        self.swap = SwapMiddle()
        self.num_heads = config.num_heads
        self.resize = Tensor(_resize_matrix(config, exit_index, class_weight=1.0).T.copy())  # E^T: (N', N)

    def construct(self, relations: Tensor) -> Tensor:
        batch, channels, tokens, _ = relations.shape
        mixed = relations.reshape(batch, channels, tokens * tokens)
        mixed = self.fc2(self.act(self.fc1(mixed)))
        return self._transposed(mixed.reshape(batch, channels, tokens, tokens))

    def for_layer(self, mixed: Tensor, layer: int) -> Tensor:
        """E r E^T for the heads of one layer: (B, L*H, N', N') -> (B, H, N, N); E keeps the class row and column."""
        transposed = mixed[:, layer * self.num_heads : (layer + 1) * self.num_heads]  # r^T: (B, H, N', N')
        rows = self._transposed(self._times_resize(transposed))  # E r: (B, H, N, N')
        return self._times_resize(rows)  # (B, H, N, N)

    def _transposed(self, x: Tensor) -> Tensor:
        _, channels, rows, columns = x.shape
        return self.swap(x.reshape(-1, rows, columns, 1)).reshape(-1, channels, columns, rows)

    def _times_resize(self, x: Tensor) -> Tensor:
        """x E^T over the last axis, as one 2-D product: a broadcast matrix would be copied for every map."""
        _, heads, rows, tokens = x.shape
        resized = ops.matmul(x.reshape(-1, tokens), self.resize.astype(x.dtype))
        return resized.reshape(-1, heads, rows, self.resize.shape[1])


def _resize_matrix(config: ModelConfig, exit_index: int, class_weight: float) -> np.ndarray:
    source, target = config.grid_sizes[exit_index - 1], config.grid_sizes[exit_index]
    return token_resize_matrix(source, config.resize_side(exit_index), target, class_weight)
