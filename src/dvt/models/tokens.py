"""From image to tokens: patch embedding (DeiT) or soft splits with token performers (T2T-ViT).

Axis letters: B batch, C width, S image side, G grid side, T tokens of a soft split, P pixels of a patch.
"""

from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Orthogonal, Uniform, initializer

from dvt.models.layers import Dense, Gelu, LayerNorm, SwapMiddle, dense
from dvt.models.noise import Dropout, site_number
from dvt.models.per_device import operators
from dvt.models.variants import (
    LATER_SOFT_SPLIT,
    PERFORMER_DIM,
    PERFORMER_EPS,
    PERFORMER_FEATURES,
    PERFORMER_NORM_EPS,
    ModelConfig,
    patch_geometry,
    split_sides,
)

PERFORMER_DROPOUT = 0.1


class PatchEmbedding(nn.Cell):
    """Non-overlapping patches, embedded: (B, I, S, S) -> (B, G*G, C). A reshape and one Dense; as a convolution it
    would be a hundred times slower on MindSpore's CPU."""

    def __init__(self, config: ModelConfig, exit_index: int) -> None:
        super().__init__()
        self.grid = config.grid_sizes[exit_index]
        self.patch, self.padding = patch_geometry(config.image_size, self.grid)
        self.pad = operators().pad
        self.pixels = config.in_channels * self.patch**2
        bound = self.pixels**-0.5
        self.proj = Dense(self.pixels, config.embed_dim, weight_init=Uniform(bound), bias_init=Uniform(bound))

    def construct(self, images: Tensor, noise_key: Tensor | None) -> Tensor:
        if self.padding:
            images = self.pad(images, (self.padding,) * 4)
        channels, grid, patch = images.shape[1], self.grid, self.patch
        x = images.reshape(-1, channels, grid, patch, grid, patch)
        x = x.transpose(0, 2, 4, 1, 3, 5).reshape(-1, grid * grid, self.pixels)  # (B, G*G, I*patch*patch)
        return self.proj(x)


class TokenPerformer(nn.Cell):
    """Linear attention over the tokens of a soft split: (B, T, in_dim) -> (B, T, 64) (T2T-ViT, Performer).
    `random_features` W (m, E) is fixed: an orthogonal m x E matrix times sqrt(m)."""

    def __init__(self, in_dim: int, init_std: float, sites: tuple[int, int]) -> None:
        super().__init__()
        dim = PERFORMER_DIM
        self.norm1 = LayerNorm(in_dim, PERFORMER_NORM_EPS)
        self.kqv = dense(in_dim, 3 * dim, init_std)
        self.proj = dense(dim, dim, init_std)
        self.norm2 = LayerNorm(dim, PERFORMER_NORM_EPS)
        self.fc1 = dense(dim, dim, init_std)
        self.act = Gelu()
        self.fc2 = dense(dim, dim, init_std)
        self.dropout1, self.dropout2 = (Dropout(PERFORMER_DROPOUT, site) for site in sites)
        # Nothing is broadcast within a sum or a product: on the CPU that holds memory (docs/performance.md).
        self.split = ops.Split(axis=-1, output_num=3)
        self.add, self.sub, self.mul, self.exp = ops.Add(), ops.Sub(), ops.Mul(), ops.Exp()
        self.reciprocal, self.broadcast, self.reshape = ops.Reciprocal(), ops.broadcast_to, ops.Reshape()
        self.product, self.transposed_product = ops.BatchMatMul(), ops.BatchMatMul(transpose_a=True)
        self.product_with_transposed = ops.BatchMatMul(transpose_b=True)
        self.projection = ops.MatMul(transpose_b=True)
        random_features = initializer(Orthogonal(PERFORMER_FEATURES**0.5), (PERFORMER_FEATURES, dim))
        self.random_features = Parameter(random_features, name="random_features", requires_grad=False)

    def construct(self, x: Tensor, noise_key: Tensor | None) -> Tensor:
        k, q, v = self.split(self.kqv(self.norm1(x)))  # each (B, T, E)
        k, q = self._kernel(k), self._kernel(q)  # (B, T, m)
        weight = self.product_with_transposed(q, k.sum(axis=1, keepdims=True)) + PERFORMER_EPS  # (B, T, 1)
        y = self.product(q, self.transposed_product(k, v))  # (B, T, E)
        y = self.mul(y, self.broadcast(self.reciprocal(weight), y.shape))
        y = self.add(v, self.dropout1(self.proj(y), noise_key))
        return self.add(y, self.dropout2(self.fc2(self.act(self.fc1(self.norm2(y)))), noise_key))

    def _kernel(self, y: Tensor) -> Tensor:
        """phi(y) = exp(y W^T - |y|^2 / 2) / sqrt(m): (B, T, E) -> (B, T, m)."""
        _, tokens, dim = y.shape
        projected = self.projection(self.reshape(y, (-1, dim)), self.random_features)
        projected = self.reshape(projected, (-1, tokens, PERFORMER_FEATURES))
        half_norm = self.mul(y, y).sum(axis=-1, keepdims=True) * 0.5  # (B, T, 1)
        return self.exp(self.sub(projected, self.broadcast(half_norm, projected.shape))) * PERFORMER_FEATURES**-0.5


class TokensToToken(nn.Cell):
    """Three soft splits, a performer after the first two: (B, I, S, S) -> (B, G*G, C) (T2T-ViT, section 3.1)."""

    def __init__(self, config: ModelConfig, exit_index: int) -> None:
        super().__init__()
        self.unfold = operators().unfold
        self.first = config.soft_splits[exit_index]
        self.later = LATER_SOFT_SPLIT
        self.sides = split_sides(config.image_size, self.first)
        later_dim = PERFORMER_DIM * LATER_SOFT_SPLIT[0] ** 2
        sites = [
            (site_number(exit_index, config.depth, i), site_number(exit_index, config.depth, i + 1)) for i in (0, 2)
        ]
        self.performer1 = TokenPerformer(config.in_channels * self.first[0] ** 2, config.init_std, sites[0])
        self.performer2 = TokenPerformer(later_dim, config.init_std, sites[1])
        self.swap = SwapMiddle()
        self.project = dense(later_dim, config.embed_dim, config.init_std)

    def construct(self, images: Tensor, noise_key: Tensor | None) -> Tensor:
        x = self.performer1(self._soft_split(images, self.first), noise_key)
        x = self.performer2(self._soft_split(self._as_map(x, self.sides[0]), self.later), noise_key)
        return self.project(self._soft_split(self._as_map(x, self.sides[1]), self.later))

    def _as_map(self, x: Tensor, side: int) -> Tensor:
        return self._transposed(x).reshape(-1, PERFORMER_DIM, side, side)

    def _soft_split(self, x: Tensor, split: tuple[int, int, int]) -> Tensor:
        """Overlapping patches, channel-major: (B, I, S, S) -> (B, T, I*kernel*kernel)."""
        return self._transposed(self.unfold(x, *split))

    def _transposed(self, x: Tensor) -> Tensor:
        _, rows, columns = x.shape
        return self.swap(x.reshape(-1, rows, columns, 1)).reshape(-1, columns, rows)
