"""T2T-ViT with token transformers (Yuan et al. 2021, arXiv 2101.11986).

An image is cut into overlapping 7 x 7 patches; each patch is a token. Then, twice, a small
transformer mixes the tokens, the tokens are arranged as an image, and 3 x 3 neighbours are joined
to one token. The remaining tokens go through an ordinary vision transformer. The names of the
parameters are those of the published checkpoints.

The two token transformers see the long sequences: 3136 and 784 tokens for an image of 224 px. Their
attention can be any callable (query, key, value) -> (output, weights) on arrays (B, T, H, E); see
`examples.attention`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from examples.attention import Attends, Attention, exact, scaled


@dataclass(frozen=True)
class Config:
    """The size of a T2T-ViT; the default is T2T-ViT_t-24 for ImageNet."""

    image: int = 224
    channels: int = 3
    classes: int = 1000
    token_width: int = 64
    width: int = 512
    depth: int = 24
    heads: int = 8
    mlp_ratio: int = 3
    drop_path: float = 0.0  # the rate of the last block; the first has none


def sinusoids(positions: int, width: int) -> torch.Tensor:
    """Position embeddings (1, positions, width): sines in even columns, cosines in odd columns."""
    rate = 10000.0 ** -(torch.arange(width).div(2, rounding_mode="floor") * 2 / width)
    angle = torch.arange(positions)[:, None] * rate
    return torch.where(torch.arange(width) % 2 == 0, angle.sin(), angle.cos())[None]


class Mlp(nn.Module):
    """Two linear layers."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x):
        """(B, T, width) -> (B, T, width)."""
        return self.fc2(functional.gelu(self.fc1(x)))


class DropPath(nn.Module):
    """Drop a residual branch for a random part of the batch, in training only."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        """(B, T, width) -> (B, T, width)."""
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(len(x), 1, 1, device=x.device) >= self.rate
        return x * kept / (1 - self.rate)


class TokenAttention(Attends):
    """One head of attention from `dim` to `inner` channels.

    Input and output differ in dimension, so the skip connection adds the values instead of the
    input. The softmax scale is 1 / sqrt(dim).
    """

    def __init__(self, dim: int, inner: int, attend: Attention):
        super().__init__()
        self.scale = dim**-0.5
        self.qkv = nn.Linear(dim, 3 * inner, bias=False)
        self.proj = nn.Linear(inner, inner)
        self.attend = attend

    def forward(self, x):
        """(B, T, dim) -> (B, T, inner)."""
        query, key, value = self.qkv(x)[:, :, None].chunk(3, dim=-1)  # (B, T, 1, inner)
        output, _ = scaled(self.attend, query, key, value, self.scale)
        return (value + self.proj(output)).squeeze(2)


class TokenTransformer(nn.Module):
    """The transformer layer that mixes tokens before they are joined."""

    def __init__(self, dim: int, inner: int, attend: Attention):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = TokenAttention(dim, inner, attend)
        self.norm2 = nn.LayerNorm(inner)
        self.mlp = Mlp(inner, inner)

    def forward(self, x):
        """(B, T, dim) -> (B, T, inner)."""
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokensToToken(nn.Module):
    """Turn an image (B, channels, image, image) into tokens (B, (image / 16)^2, width)."""

    def __init__(self, config: Config, attention: tuple[Attention, Attention]):
        super().__init__()
        inner = config.token_width
        self.attention1 = TokenTransformer(7 * 7 * config.channels, inner, attention[0])
        self.attention2 = TokenTransformer(3 * 3 * inner, inner, attention[1])
        self.project = nn.Linear(3 * 3 * inner, config.width)

    def forward(self, image):
        """See the class."""
        x = functional.unfold(image, 7, stride=4, padding=2).mT
        x = functional.unfold(_as_image(self.attention1(x)), 3, stride=2, padding=1).mT
        x = functional.unfold(_as_image(self.attention2(x)), 3, stride=2, padding=1).mT
        return self.project(x)


def _as_image(x):
    """Tokens (B, T, width) to (B, width, sqrt(T), sqrt(T))."""
    side = round(x.shape[1] ** 0.5)
    return x.mT.unflatten(2, (side, side))


class SelfAttention(nn.Module):
    """Exact multi-head self-attention of the backbone."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        """(B, T, width) -> (B, T, width)."""
        output, _ = exact(*self.qkv(x).unflatten(2, (3, self.heads, -1)).unbind(2))
        return self.proj(output.flatten(2))


class Block(nn.Module):
    """A layer of the backbone."""

    def __init__(self, config: Config, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attn = SelfAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width)
        self.mlp = Mlp(config.width, config.mlp_ratio * config.width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x):
        """(B, T, width) -> (B, T, width)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class T2TViT(nn.Module):
    """Tokens-to-token vision transformer: images (B, channels, image, image) to (B, classes).

    Parameters
    ----------
    config : Config
        The size of the model.
    attention : tuple of two callables
        The attentions of the two token transformers.
    """

    def __init__(self, config: Config, attention: tuple[Attention, Attention] = (exact, exact)):
        super().__init__()
        self.config = config
        self.tokens_to_token = TokensToToken(config, attention)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.register_buffer("pos_embed", sinusoids((config.image // 16) ** 2 + 1, config.width))
        step = config.drop_path / max(config.depth - 1, 1)
        self.blocks = nn.ModuleList(Block(config, step * n) for n in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.classes)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    @property
    def token_attention(self) -> tuple[TokenAttention, TokenAttention]:
        """The two layers whose attention can be replaced, by setting `attend`."""
        return self.tokens_to_token.attention1.attn, self.tokens_to_token.attention2.attn

    def forward(self, image):
        """See the class."""
        x = self.tokens_to_token(image)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])
