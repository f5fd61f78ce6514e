"""The same models in plain eager PyTorch, with the tensors of the released checkpoints: what speed is compared with.

    python benchmarks/pytorch_model.py dvt_deit_small --batch_size 8
    python benchmarks/inference.py --models dvt_deit_small --batch_sizes 8 \
        --against "python benchmarks/pytorch_model.py dvt_deit_small --batch_size 8"
    python benchmarks/training.py --cases dvt_deit_small \
        --against "python benchmarks/pytorch_model.py dvt_deit_small --batch_size 8 --train"

Written from the paper and the names of the tensors in the released files; `tests/benchmarks` compares its logits with
ours. Prints images per second: all exits on every image, or training steps (AdamW and a moving average of the weights;
no stochastic depth).

Axis letters: B batch, C width, H heads, L layers, N tokens, P tokens of the previous exit, all with the class token.
"""

import argparse
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dvt.models.names import EXIT_PREFIXES
from dvt.models.variants import ModelConfig, list_models, model_config

PATCHES = {14: (16, 16, 0), 10: (23, 23, 3), 7: (32, 32, 0)}  # grid -> kernel, stride, padding
SPLITS = {14: (7, 4, 2), 10: (11, 6, 5), 7: (14, 8, 3)}
REUSED = (128, 48)  # hidden and output channels of the reused features


class Performer(nn.Module):
    """A token performer of T2T-ViT: attention with random features."""

    def __init__(self, inputs: int, width: int = 64, features: int = 32) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(inputs), nn.LayerNorm(width)
        self.kqv, self.proj = nn.Linear(inputs, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.w = nn.Parameter(nn.init.orthogonal_(torch.empty(features, width)) * features**0.5, requires_grad=False)
        self.dropout = nn.Dropout(0.1)

    def random_features(self, x: Tensor) -> Tensor:
        return torch.exp(x @ self.w.T - x.square().sum(-1, keepdim=True) / 2) / len(self.w) ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        key, query, value = self.kqv(self.norm1(x)).chunk(3, -1)
        key, query = self.random_features(key), self.random_features(query)
        total = (query * key.sum(1, keepdim=True)).sum(-1, keepdim=True)
        x = value + self.dropout(self.proj(query @ (key.mT @ value) / (total + 1e-8)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class TokensToToken(nn.Module):
    def __init__(self, grid: int, width: int) -> None:
        super().__init__()
        kernel, stride, padding = SPLITS[grid]
        self.first, self.later = nn.Unfold(kernel, 1, padding, stride), nn.Unfold(3, 1, 1, 2)
        self.attention1, self.attention2 = Performer(3 * kernel**2), Performer(9 * 64)
        self.project = nn.Linear(9 * 64, width)

    def forward(self, images: Tensor) -> Tensor:
        x = self.attention1(self.first(images).mT)
        x = self.attention2(self.later(self.as_map(x)).mT)
        return self.project(self.later(self.as_map(x)).mT)

    @staticmethod
    def as_map(x: Tensor) -> Tensor:
        return x.mT.unflatten(2, (int(x.shape[1] ** 0.5),) * 2)


class PatchEmbed(nn.Module):
    def __init__(self, grid: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, *PATCHES[grid])

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).mT


class Mlp(nn.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Resize(nn.Module):
    """The last axis, P tokens, to N tokens: nearest to `side`, then average pooling; the class token stays, or is 0."""

    def __init__(self, grid: int, side: int) -> None:
        super().__init__()
        self.grid, self.side = grid, side

    def forward(self, x: Tensor, keep_class: bool) -> Tensor:
        old = int((x.shape[-1] - 1) ** 0.5)
        tokens = x[..., 1:].reshape(1, -1, old, old)
        tokens = F.adaptive_avg_pool2d(F.interpolate(tokens, size=self.side), self.grid)
        first = x[..., :1] if keep_class else torch.zeros_like(x[..., :1])
        return torch.cat([first, tokens.reshape(*x.shape[:-1], -1)], -1)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim, bias=config.qkv_bias)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(self, x: Tensor, relations: Tensor | None) -> tuple[Tensor, Tensor]:
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = query @ key.mT * query.shape[-1] ** -0.5
        if relations is not None:
            scores = scores + relations
        return self.proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2)), scores


class Block(nn.Module):
    def __init__(self, config: ModelConfig, reuse: bool) -> None:
        super().__init__()
        width, eps = config.embed_dim, config.norm_eps
        self.attn = Attention(config)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width + reuse * REUSED[1], eps)
        self.mlp = Mlp(width + reuse * REUSED[1], config.mlp_hidden, width)
        if reuse:
            self.feature_resuse_mlp = nn.Sequential(nn.LayerNorm(width, eps), Mlp(width, *REUSED))

    def forward(self, x: Tensor, features: Tensor | None, relations: Tensor | None, resize: Resize) -> tuple:
        attended, scores = self.attn(self.norm1(x), relations)
        tokens = x = x + attended
        if features is not None:
            reused = resize(self.feature_resuse_mlp(features).mT, keep_class=False).mT
            tokens = torch.cat([x, reused], -1)
        return x + self.mlp(self.norm2(tokens)), scores


class Exit(nn.Module):
    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        grid, width, reuse = config.grid_sizes[index], config.embed_dim, index > 0
        if config.tokenizer == "patch":
            self.patch_embed = PatchEmbed(grid, width)
        else:
            self.tokens_to_token = TokensToToken(grid, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, grid**2 + 1, width), requires_grad=config.tokenizer == "patch")
        self.blocks = nn.ModuleList(Block(config, reuse) for _ in range(config.depth))
        self.norm, self.head = nn.LayerNorm(width, config.norm_eps), nn.Linear(width, config.num_classes)
        self.heads = config.num_heads
        self.resize = Resize(grid, config.resize_sides[index - 1]) if reuse else None
        if reuse:
            maps = config.depth * config.num_heads
            convolutions = nn.Conv2d(maps, 3 * maps, 1), nn.GELU(), nn.Conv2d(3 * maps, maps, 1)
            self.relation_reuse_conv = nn.Sequential(*convolutions)

    def forward(self, images: Tensor, features: Tensor | None, relations: Tensor | None) -> tuple[Tensor, ...]:
        """Logits (B, classes), features (B, N, C), relations (B, L*H, N, N)."""
        x = self.patch_embed(images) if hasattr(self, "patch_embed") else self.tokens_to_token(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        given = [None] * len(self.blocks)
        if relations is not None:
            rows = self.resize(self.relation_reuse_conv(relations), keep_class=True)
            given = self.resize(rows.mT, keep_class=True).mT.split(self.heads, 1)
        handed_on = []
        for block, each in zip(self.blocks, given, strict=True):
            x, scores = block(x, features, each, self.resize)
            handed_on.append(scores)
        return self.head(self.norm(x)[:, 0]), x, torch.cat(handed_on, 1)


class PyTorchDVT(nn.Module):
    """All exits; its `state_dict` has the names and shapes of the released checkpoints."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        for index, name in enumerate(EXIT_PREFIXES[-len(config.grid_sizes) :]):
            setattr(self, name, Exit(config, index))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, S, S) -> the logits (B, classes) of every exit."""
        logits, features, relations = [], None, None
        for each in self.children():
            found, features, relations = each(images, features, relations)
            logits.append(found)
        return logits


def training_steps(model: nn.Module, images: Tensor, labels: Tensor) -> Iterator[None]:
    """Each `next` is one step."""
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], 1e-4, weight_decay=0.05)
    average = [each.detach().clone() for each in model.parameters()]
    while True:
        loss = sum(F.cross_entropy(logits, labels) for logits in model(images))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch._foreach_lerp_(average, [each.detach() for each in model.parameters()], 1e-4)
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", choices=[name for name in list_models() if name.startswith("dvt_")])
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--train", action="store_true", help="training steps rather than inference")
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = PyTorchDVT(model_config(arguments.model)).train(arguments.train)
    images, labels = torch.randn(arguments.batch_size, 3, 224, 224), torch.arange(arguments.batch_size)
    if arguments.train:
        steps = training_steps(model, images, labels)
        run = lambda: next(steps)  # noqa: E731
    else:
        run = torch.inference_mode()(lambda: model(images))
    seconds = []
    for _ in range(1 + arguments.repetitions):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    print(arguments.batch_size / float(np.median(seconds[1:])))


if __name__ == "__main__":
    main()
