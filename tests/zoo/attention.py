"""Attention: heads are copied whole, the token axis is not a channel, tables follow their heads."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.model import OUTPUT, ZooModel, image, noise, together

HEADS, DEPTH, WIDTH = 2, 3, 6


class Block(nn.Module):
    """A pre-norm transformer block around any attention of width 6."""

    def __init__(self, attention: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(WIDTH), attention(), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class TokenModel(nn.Module):
    """Linear embedding, one block, mean over tokens, classifier."""

    def __init__(self, attention: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.embed, self.block, self.norm, self.out = (
            nn.Linear(5, WIDTH),
            Block(attention),
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 3),
        )

    def forward(self, x):
        return self.out(self.norm(self.block(self.embed(x))).mean(1))


class FusedUnbind(nn.Module):
    """timm's form: qkv in one linear, reshape to [3, B, heads, N, depth], unbind, matrix products."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.Identity, heads: int = HEADS) -> None:
        super().__init__()
        self.heads, self.depth = heads, WIDTH // heads
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.q_norm, self.k_norm = norm(self.depth), norm(self.depth)

    def forward(self, x):
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.depth).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        scores = (q * self.depth**-0.5) @ k.transpose(-2, -1)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, width))


class PooledHeads(nn.Module):
    """MViT: queries, keys and values pooled over tokens by one convolution for all heads; the first token goes beside.

    What pools sees every head alike, so a channel of it is one of each head: all heads widen, none is copied whole.
    """

    def __init__(self, heads: int = HEADS) -> None:
        super().__init__()
        self.heads, self.depth = heads, WIDTH // heads
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.pools = nn.ModuleList(
            nn.Conv1d(self.depth, self.depth, 3, padding=1, groups=self.depth, bias=False) for _ in range(3)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(self.depth) for _ in range(3))

    def pooled(self, x, place):
        first, x = torch.tensor_split(x, (1,), dim=2)
        x = x.transpose(2, 3)
        batch, heads = x.shape[:2]
        x = self.pools[place](x.reshape(batch * heads, self.depth, -1)).reshape(batch, heads, self.depth, -1)
        return self.norms[place](torch.cat((first, x.transpose(2, 3)), dim=2))

    def forward(self, x):
        batch, tokens = x.shape[:2]
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.depth).transpose(1, 3).unbind(2)
        q, k, v = self.pooled(q, 0), self.pooled(k, 1), self.pooled(v, 2)
        mixed = self.mixed(q, torch.matmul(self.scores(q, k).softmax(-1), v))
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))

    def scores(self, q, k):
        return torch.matmul(q * self.depth**-0.5, k.transpose(2, 3))

    def mixed(self, q, x):
        return x


class PooledHeadsWithTable(PooledHeads):
    """MViTv2: besides, queries are multiplied with a table of distances, looked up for every pair of tokens."""

    distance: torch.Tensor

    def __init__(self, heads: int = HEADS) -> None:
        super().__init__(heads)
        self.table = nn.Parameter(torch.randn(7, self.depth))
        self.register_buffer("distance", torch.arange(4)[:, None] - torch.arange(4)[None] + 3)

    def scores(self, q, k):
        return super().scores(q, k) + torch.einsum("bhtc,tsc->bhts", q, self.table[self.distance])


class ResidualPooling(PooledHeadsWithTable):
    """MViTv2 whole: pooled queries are added to what the heads return, in place, but for the first token."""

    def mixed(self, q, x):
        x[:, :, 1:].add_(q[:, :, 1:])
        return x


class Separate(nn.Module):
    """Three linears, view and transpose, scaled_dot_product_attention; the width written as -1."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = (layer(x).view(batch, tokens, HEADS, DEPTH).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, -1))


class MultiQuery(nn.Module):
    """Every head has its own queries, and all share one head of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.proj = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, DEPTH), nn.Linear(WIDTH, DEPTH)

    def forward(self, x):
        batch, tokens, width = x.shape
        q = self.q(x).view(batch, tokens, HEADS, DEPTH).transpose(1, 2)
        x = F.scaled_dot_product_attention(q, self.k(x).unsqueeze(1), self.v(x).unsqueeze(1))
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))


class ByEinsum(nn.Module):
    """The same in einsum, fused by chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = (piece.view(batch, tokens, HEADS, DEPTH) for piece in self.qkv(x).chunk(3, dim=-1))
        scores = torch.einsum("bihd,bjhd->bhij", q, k) * DEPTH**-0.5
        return self.proj(torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).reshape(batch, tokens, WIDTH))


class SingleHead(nn.Module):
    """Non-local attention: one head over all channels; copies of a query and its key share their product."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (
            nn.Linear(WIDTH, 4),
            nn.Linear(WIDTH, 4),
            nn.Linear(WIDTH, 5),
            nn.Linear(5, WIDTH),
        )

    def forward(self, x):
        scores = torch.bmm(self.q(x), self.k(x).transpose(1, 2)) * 0.5
        return self.proj(torch.bmm(scores.softmax(-1), self.v(x)))


class Module(nn.Module):
    """nn.MultiheadAttention, called for its output alone."""

    def __init__(self) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x):
        return self.mha(x, x, x, need_weights=False)[0]


class GroupedQuery(nn.Module):
    """Four query heads read two key-value heads, each repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.proj = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH)

    def forward(self, x):
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, 4, 2).transpose(1, 2)
        k, v = self.kv(x).view(batch, tokens, 2, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)
        k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, 8))


class Rotary(nn.Module):
    """Queries and keys turned by position: halves of each head negated and swapped, cosines as buffers."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (
            nn.Linear(WIDTH, 8),
            nn.Linear(WIDTH, 8),
            nn.Linear(WIDTH, 8),
            nn.Linear(8, WIDTH),
        )
        angle = torch.outer(torch.arange(4.0), torch.tensor([1.0, 0.1]))
        self.register_buffer("cos", torch.cat([angle, angle], 1).cos())
        self.register_buffer("sin", torch.cat([angle, angle], 1).sin())

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = (layer(x).view(batch, tokens, HEADS, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, -1))

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-second, first], -1) * self.sin


class RotaryByBands(nn.Module):
    """Angles of rows and columns, computed from a buffer of frequencies, which all heads of a projection share."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 48), nn.Linear(16, WIDTH)
        self.register_buffer("bands", torch.tensor([1.0, 0.1]))

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, -1))

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        angle = (torch.arange(6).view(3, 2, 1) * self.get_buffer("bands")).flatten(1)
        angle = torch.cat([angle, angle], -1)
        first, second = x[:, :, 1:].chunk(2, dim=-1)
        turned = x[:, :, 1:] * angle.cos() + torch.cat([-second, first], -1) * angle.sin()
        return torch.cat([x[:, :, :1], turned], 2)


class RelativeTable(nn.Module):
    """Swin's bias: a table [positions, heads] looked up and added to the scores of cosine attention."""

    index: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj, self.table = (
            nn.Linear(WIDTH, 3 * WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Parameter(torch.zeros(7, HEADS)),
        )
        self.scale = nn.Parameter(torch.ones(HEADS, 1, 1))
        self.register_buffer("index", torch.arange(4)[:, None] - torch.arange(4)[None] + 3)

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, HEADS, DEPTH).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index.view(-1)].view(tokens, tokens, -1).permute(2, 0, 1).contiguous()
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.scale + bias.unsqueeze(0)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, WIDTH))


class OneHeadTable(nn.Module):
    """Swin's first stage: one head, biases from a table of positions, the scale from scaled_dot_product_attention."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.table = nn.Parameter(torch.zeros(7, 1))
        self.register_buffer("places", torch.arange(4)[:, None] - torch.arange(4)[None] + 3)

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = (layer(x).view(batch, tokens, 1, WIDTH).transpose(1, 2) for layer in (self.q, self.k, self.v))
        bias = self.table[self.get_buffer("places").view(-1)].view(4, 4, -1).permute(2, 0, 1).unsqueeze(0)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, -1))


class LinearAttention(nn.Module):
    """EfficientViT's: keys times values first, an extra channel of ones that holds the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = (layer(x).view(batch, tokens, HEADS, DEPTH).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = F.relu(q), F.relu(k)
        mixed = q @ (k.transpose(-2, -1) @ F.pad(v, (0, 1), value=1.0))
        x = mixed[..., :-1] / (mixed[..., -1:] + 1e-3)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, -1))


class Disentangled(nn.Module):
    """DeBERTa's: queries times keys of positions, of which each token picks by its distance, alike in all heads."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.places, self.place, self.fused = nn.Parameter(torch.zeros(7, 5)), nn.Linear(5, WIDTH), fused

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = (layer(x).view(batch, tokens, HEADS, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        p = self.place(self.places).view(1, 7, HEADS, -1).transpose(1, 2)
        distance = torch.arange(tokens).view(-1, 1) - torch.arange(tokens) + 3
        scores, placed = q @ k.transpose(-2, -1), q @ p.transpose(-2, -1)
        if self.fused:
            picked = placed.flatten(0, 1).gather(-1, distance[None].expand(HEADS * batch, -1, -1))
            scores = scores + picked.view(batch, -1, tokens, tokens)
        else:
            scores = scores + placed.gather(-1, distance[None, None].expand(batch, HEADS, -1, -1))
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, -1))


class CrossAttention(nn.Module):
    """Decoder queries, learned, read an image's tokens; the mask hides some."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.queries = nn.Conv2d(3, WIDTH, 4, 4), nn.Parameter(torch.zeros(3, WIDTH))
        self.mha, self.norm, self.out = (
            nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 2),
        )

    def forward(self, x):
        memory = self.patch(x).flatten(2).transpose(1, 2)
        queries = self.queries.unsqueeze(0).expand(x.shape[0], -1, -1)
        found, _ = self.mha(queries, memory, memory, need_weights=False)
        return self.out(self.norm(queries + found))


def _model(attention: Callable[[], nn.Module], *free: str) -> ZooModel:
    names = tuple(f"block.attn.{name}" for name in free)
    trunk: tuple[str, ...] = ("embed", "block.down")
    if names and names[-1].endswith("proj"):
        trunk = (*trunk, names[-1])
    return ZooModel(
        lambda: TokenModel(attention),
        (noise(2, 4, 5),),
        ("embed", *names, "block.up", "block.down"),
        {"out": OUTPUT},
        together(*trunk),
    )


MODELS = {
    "attention_fused_unbind": _model(FusedUnbind, "qkv", "proj"),
    "attention_qk_norm": _model(lambda: FusedUnbind(norm=nn.LayerNorm), "qkv", "proj"),
    "attention_qk_rms_norm": _model(lambda: FusedUnbind(norm=nn.RMSNorm), "qkv", "proj"),
    "attention_separate": _model(Separate, "q", "k", "v", "proj"),
    "attention_multi_query": _model(MultiQuery, "q", "k", "v", "proj"),
    "attention_einsum": _model(ByEinsum, "qkv", "proj"),
    "attention_single_head": _model(SingleHead, "q", "k", "v", "proj"),
    "attention_one_head_by_views": _model(lambda: FusedUnbind(heads=1), "qkv", "proj"),
    "attention_one_head_of_a_table": _model(lambda: OneHeadTable(), "q", "k", "v", "proj"),
    "attention_pooled_heads": _model(PooledHeads, "qkv", "pools.0", "pools.1", "pools.2", "proj"),
    "attention_pooled_head": _model(lambda: PooledHeads(1), "qkv", "pools.0", "pools.1", "pools.2", "proj"),
    "attention_pooled_heads_with_table": _model(
        PooledHeadsWithTable, "qkv", "pools.0", "pools.1", "pools.2", "table", "proj"
    ),
    "attention_residual_pooling": _model(ResidualPooling, "qkv", "pools.0", "pools.1", "pools.2", "table", "proj"),
    "attention_module": _model(Module, "mha.in_proj_weight", "mha.out_proj"),
    "attention_grouped_query": _model(GroupedQuery, "q", "kv", "proj"),
    "attention_rotary": _model(Rotary, "q", "k", "v", "proj"),
    "attention_rotary_by_bands": _model(RotaryByBands, "qkv", "proj"),
    "attention_relative_table": _model(RelativeTable, "qkv", "proj"),
    "attention_linear": _model(LinearAttention, "q", "k", "v", "proj"),
    "attention_disentangled": _model(Disentangled, "q", "k", "v", "place", "proj"),
    "attention_disentangled_fused": _model(lambda: Disentangled(fused=True), "q", "k", "v", "place", "proj"),
    "cross_attention": ZooModel(
        CrossAttention, (image(),), ("patch", "mha.in_proj_weight", "mha.out_proj"), {"out": OUTPUT}
    ),
}
