"""Text models: normalized queries, shared keys, rotary angles from a buffer that is moved, biases by distance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.attention import TokenModel
from tests.zoo.model import OUTPUT, ZooModel, noise, together

WIDTH, INNER = 6, 4


def scaled(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return x over its root mean square, times a weight: the norm of language models, written out."""
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class NormalizedQueries(nn.Module):
    """Qwen3: four query heads, two of keys, each normalized by one weight for all heads, then turned."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(WIDTH, 16), nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8)
        self.proj = nn.Linear(16, WIDTH)
        self.q_norm, self.k_norm = nn.Parameter(torch.ones(INNER)), nn.Parameter(torch.ones(INNER))
        self.register_buffer("bands", torch.tensor([1.0, 0.1]))

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = (layer(x).view(batch, tokens, -1, INNER) for layer in (self.q, self.k, self.v))
        bands = self.get_buffer("bands").to(torch.device("cpu"), torch.float64)
        angle = (torch.arange(4.0).view(1, 4, 1) * bands).to(x.dtype)
        angle = torch.cat([angle, angle], -1).unsqueeze(1)
        q = self.turn(scaled(q, self.q_norm).transpose(1, 2), angle)
        k = self.turn(scaled(k, self.k_norm).transpose(1, 2), angle)
        k, v = (y[:, :, None].expand(batch, 2, 2, tokens, INNER) for y in (k, v.transpose(1, 2)))
        k, v = (y.reshape(batch, 4, tokens, INNER) for y in (k, v))
        x = F.scaled_dot_product_attention(q, k, v, scale=INNER**-0.5)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, -1))

    def turn(self, x: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
        first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return x * angle.cos() + torch.cat([-second, first], -1) * angle.sin()


class BiasByDistance(nn.Module):
    """T5: a bias for each head from a table of distances; where a position is hidden, the least number."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, 8, bias=False) for _ in range(3))
        self.proj, self.table = nn.Linear(8, WIDTH, bias=False), nn.Embedding(7, 2)

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = (layer(x).view(batch, tokens, 2, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        place = torch.arange(4)
        distance = place[:, None] - place[None] + 3
        bias = self.table(distance).permute(2, 0, 1).unsqueeze(0)
        bias = torch.where(distance < 5, bias, torch.finfo(x.dtype).min)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, -1))


class SlopesByHead(nn.Module):
    """ALiBi: a slope for each head that the graph computes, added to the scores; zeros for each head as a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = (layer(x).view(batch, tokens, 4, 2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = q @ k.transpose(-2, -1) * 0.5
        slopes = torch.arange(1, 5).view(1, 4, 1, 1) * torch.arange(4).view(1, 1, 1, 4)
        x = (scores + slopes).softmax(-1) @ v
        x = x + F.scaled_dot_product_attention(q, k, v, attn_mask=(torch.arange(4) < 3).expand(1, 4, 4, 4))
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, -1))


class Padded(nn.Module):
    """Sentences of several lengths: attention with a mask of padding, then an encoder of PyTorch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.drop = nn.Embedding(6, 8), nn.Dropout(0.2)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, ids):
        padding = ids == 0
        x = self.table(ids)
        x = x + self.drop(self.attention(x, x, x, key_padding_mask=padding, need_weights=False)[0])
        return self.out(self.encoder(x, src_key_padding_mask=padding))


class Causal(nn.Module):
    """Tokens first, and a mask of what comes later, which the module is told of twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.attention, self.out = nn.Embedding(6, 8), nn.MultiheadAttention(8, 2), nn.Linear(8, 3)

    def forward(self, ids):
        x = self.table(ids).transpose(0, 1)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[0], dtype=x.dtype)
        x, _ = self.attention(x, x, x, attn_mask=mask, is_causal=True, need_weights=False)
        return self.out(x).transpose(0, 1)


class KeysByDistance(nn.Module):
    """Shaw's: every pair of places has a key of its own by its distance, one for all heads; keys and values are one."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.proj = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 16, bias=False), nn.Linear(8, WIDTH)
        self.table = nn.Embedding(7, INNER)

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = (y.reshape(batch, tokens, 2, INNER).transpose(1, 2) for y in (self.q(x), *self.kv(x).chunk(2, -1)))
        distance = torch.arange(tokens).view(-1, 1) - torch.arange(tokens) + 3
        scores = torch.einsum("bhid,bhjd->bhij", q, k) + torch.einsum("bhid,ijd->bhij", q, self.table(distance))
        x = torch.einsum("bhij,bhjd->bhid", (scores * INNER**-0.5).softmax(-1), v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, -1))


def _model(attention: type[nn.Module], *free: str) -> ZooModel:
    names = tuple(f"block.attn.{name}" for name in free)
    return ZooModel(
        lambda: TokenModel(attention),
        (noise(2, 4, 5),),
        ("embed", *names, "block.up", "block.down"),
        {"out": OUTPUT},
        together("embed", "block.down", "block.attn.proj"),
    )


MODELS = {
    "text_normalized_queries": _model(NormalizedQueries, "q", "k", "v", "proj"),
    "text_slopes_by_head": _model(SlopesByHead, "q", "k", "v", "proj"),
    "text_bias_by_distance": _model(BiasByDistance, "q", "k", "v", "proj"),
    "text_keys_by_distance": _model(KeysByDistance, "q", "kv", "proj"),
    "text_with_padding": ZooModel(
        Padded,
        (torch.tensor([[3, 1, 5, 0, 0], [2, 4, 1, 3, 0]]),),
        ("table", "attention.in_proj_weight", "encoder.self_attn.in_proj_weight", "encoder.linear1"),
        {"out": OUTPUT},
        together("table", "attention.out_proj", "encoder.self_attn.out_proj", "encoder.linear2"),
    ),
    "text_causal_module": ZooModel(
        Causal,
        (torch.tensor([[3, 1, 5, 0], [2, 4, 1, 3]]),),
        ("table", "attention.in_proj_weight", "attention.out_proj"),
        {"out": OUTPUT},
    ),
}
