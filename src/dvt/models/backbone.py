"""One exit: a complete Vision Transformer that may reuse what the exit before it computed.

Axis letters: B batch, C width, H heads, D = C/H, L layers, N tokens of this exit (class token first), N' tokens of
the exit before. "Relations" are attention logits: after the scale and after what the layer received, before softmax.
"""

from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.common.initializer import initializer

from dvt.models.grids import sinusoid_positions
from dvt.models.layers import LayerNorm, Mlp, Softmax, SwapMiddle, dense, normal
from dvt.models.noise import Dropout, StochasticDepth, site_number
from dvt.models.reuse import FeatureReuse, RelationResize, RelationReuse
from dvt.models.tokens import PatchEmbedding, TokensToToken
from dvt.models.variants import FEATURE_CHANNELS, ModelConfig


class ScaledDotProduct(nn.Cell):
    """Attention without its weights; one serves all blocks of an exit, so that MindSpore works out its types once."""

    def __init__(self, config: ModelConfig, exit_index: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.head_dim = config.embed_dim // config.num_heads
        self.scale = self.head_dim**-0.5
        receives = config.relation_reuse and exit_index > 0
        self.resize = RelationResize(config, exit_index) if receives else None
        self.swap = SwapMiddle()
        self.split = ops.Split(axis=1, output_num=3)
        self.product = ops.BatchMatMul()
        self.product_with_transposed = ops.BatchMatMul(transpose_b=True)  # avoids a copy of k on the CPU
        self.softmax = Softmax()

    def construct(self, qkv: Tensor, received: Tensor | None) -> tuple[Tensor, Tensor]:
        """qkv (B, N, 3*C), received (B, H, N', N'), the mixed relations of the exit before, transposed, or None
        -> (B, N, C), relations (B, H, N, N)."""
        _, tokens, channels = qkv.shape
        qkv = qkv.reshape(-1, tokens, 3 * self.num_heads, self.head_dim)
        q, k, v = self.split(self.swap(qkv))  # each (B, H, N, D)
        relations = self.product_with_transposed(q * self.scale, k)  # (B, H, N, N)
        if received is not None:
            relations = relations + self.resize(received)
        weights = self.softmax(relations).astype(v.dtype)
        x = self.product(weights, v)  # (B, H, N, D)
        return self.swap(x).reshape(-1, tokens, channels // 3), relations


class Attention(nn.Cell):
    """(B, N, C), received (B, H, N', N') or None -> (B, N, C), relations (B, H, N, N)."""

    def __init__(self, config: ModelConfig, core: ScaledDotProduct) -> None:
        super().__init__()
        self.qkv = dense(config.embed_dim, 3 * config.embed_dim, config.init_std, has_bias=config.qkv_bias)
        self.proj = dense(config.embed_dim, config.embed_dim, config.init_std)
        self.core = core

    def construct(self, x: Tensor, received: Tensor | None) -> tuple[Tensor, Tensor]:
        x, relations = self.core(self.qkv(x), received)
        return self.proj(x), relations


class Residual(nn.Cell):
    """x + branch, both (B, N, C). In training, elements of the branch are dropped, and the branch of some images."""

    def __init__(self, config: ModelConfig, exit_index: int, layer: int, branch: int) -> None:
        super().__init__()
        self.dropout = Dropout(config.dropout_rate, site_number(exit_index, layer, 2 * branch))
        self.place = 2 * layer + branch
        self.add = ops.Add()

    def construct(self, x: Tensor, branch: Tensor, noise_key: Tensor | None, branch_scales: tuple | None) -> Tensor:
        if noise_key is None:
            return self.add(x, branch)
        branch = self.dropout(branch, noise_key)
        if branch_scales is not None:
            scales = branch_scales[self.place].astype(branch.dtype)  # (B, 1, 1)
            branch = branch * ops.broadcast_to(scales, branch.shape)  # a broadcast product holds memory on the CPU
        return x + branch


class Block(nn.Cell):
    """Pre-norm attention and MLP; with feature reuse, 48 channels of context join the tokens in front of norm2."""

    def __init__(self, config: ModelConfig, exit_index: int, layer: int, core: ScaledDotProduct) -> None:
        super().__init__()
        reuse = config.feature_reuse and exit_index > 0
        mlp_in = config.embed_dim + (FEATURE_CHANNELS if reuse else 0)
        self.norm1 = LayerNorm(config.embed_dim, config.norm_eps)
        self.attn = Attention(config, core)
        self.feature_reuse = FeatureReuse(config, exit_index) if reuse else None
        self.norm2 = LayerNorm(mlp_in, config.norm_eps)
        self.concat = ops.Concat(axis=-1)
        dropout = Dropout(config.dropout_rate, site_number(exit_index, layer, 1))
        self.mlp = Mlp(mlp_in, config.mlp_hidden, config.embed_dim, config.init_std, dropout)
        self.add_attention, self.add_mlp = (Residual(config, exit_index, layer, branch) for branch in range(2))

    def construct(
        self,
        x: Tensor,
        features: Tensor | None,
        received: Tensor | None,
        noise_key: Tensor | None,
        branch_scales: tuple[Tensor, ...] | None,
    ) -> tuple[Tensor, Tensor]:
        """x (B, N, C), features (B, N', C), received (B, H, N', N') -> (B, N, C), relations (B, H, N, N).

        In training, branch_scales, 2 per layer of shape (B, 1, 1), drop the attention or the MLP of some images.
        """
        attended, relations = self.attn(self.norm1(x), received)
        x = self.add_attention(x, attended, noise_key, branch_scales)
        y = x
        if self.feature_reuse is not None:
            y = self.concat((x, self.feature_reuse(features).astype(x.dtype)))  # (B, N, C + 48)
        y = self.mlp(self.norm2(y), noise_key)
        return self.add_mlp(x, y, noise_key, branch_scales), relations


class Backbone(nn.Cell):
    """One exit of the cascade.

    Call: images (B, I, S, S), what the exit before handed on and, in training, the key of this step's dropout and
    stochastic depth -> (logits (B, classes), features (B, N, C), relations (B, L*H, N, N)); without `keep_all`,
    features and relations are None where no exit uses them. Source: paper, section 3.
    """

    def __init__(self, config: ModelConfig, exit_index: int) -> None:
        super().__init__()
        num_tokens, dim = config.num_tokens(exit_index), config.embed_dim
        hands_on = exit_index < config.num_exits - 1
        self.hands_on_features = hands_on and config.feature_reuse
        self.hands_on_relations = hands_on and config.relation_reuse

        t2t = config.tokenizer == "t2t"
        self.tokens = TokensToToken(config, exit_index) if t2t else PatchEmbedding(config, exit_index)
        self.cls_token = Parameter(initializer(normal(config.init_std), (1, 1, dim)), name="cls_token")
        shape = (1, num_tokens, dim)
        positions = Tensor(sinusoid_positions(*shape[1:])) if t2t else initializer(normal(config.init_std), shape)
        self.pos_embed = Parameter(positions, name="pos_embed", requires_grad=not t2t)
        self.relation_reuse = RelationReuse(config, exit_index) if config.relation_reuse and exit_index > 0 else None
        self.dropout = Dropout(config.dropout_rate, site_number(exit_index, config.depth))
        self.stochastic_depth = StochasticDepth(config.drop_path_rate, config.depth, site_number(exit_index))
        self.depth = config.depth
        core = ScaledDotProduct(config, exit_index)
        self.blocks = nn.CellList([Block(config, exit_index, layer, core) for layer in range(config.depth)])
        self.norm = LayerNorm(dim, config.norm_eps)
        self.head = dense(dim, config.num_classes, config.init_std)
        self.stream_type = mstype.float32  # of what flows from block to block; see `dvt.models.precision`

    def construct(
        self,
        images: Tensor,
        features: Tensor | None = None,
        relations: Tensor | None = None,
        noise_key: Tensor | None = None,
        keep_all: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        x = self.tokens(images, noise_key)  # (B, G*G, C)
        cls_token = ops.broadcast_to(self.cls_token, (x.shape[0], 1, x.shape[2])).astype(x.dtype)
        x = ops.concat((cls_token, x), axis=1) + self.pos_embed  # (B, N, C)
        x = self.dropout(x, noise_key).astype(self.stream_type)

        mixed = (None,) * self.depth if self.relation_reuse is None else self.relation_reuse(relations)
        branch_scales = self.stochastic_depth(x.shape[0], noise_key)
        handed_on = ()
        for layer in range(self.depth):
            x, relation = self.blocks[layer](x, features, mixed[layer], noise_key, branch_scales)
            handed_on = handed_on + (relation,)

        logits = self.head(self.norm(x[:, 0]))
        return (
            logits,
            x if keep_all or self.hands_on_features else None,
            ops.concat(handed_on, axis=1) if keep_all or self.hands_on_relations else None,
        )
