"""Vision transformers whole: class tokens, position embeddings, windows, patch merging, hybrids."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.attention import Block, FusedUnbind, Separate
from tests.zoo.model import OUTPUT, Head, ZooModel, conv, image, noise, together


class ClassToken(nn.Module):
    """ViT: patches, a class token before them, position embeddings, the token read out."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token, self.positions = (
            nn.Conv2d(3, 6, 4, 4),
            nn.Parameter(torch.zeros(1, 1, 6)),
            nn.Parameter(torch.zeros(1, 5, 6)),
        )
        self.block, self.norm, self.out = Block(FusedUnbind), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.out(self.norm(self.block(x))[:, 0])


class VideoPositions(nn.Module):
    """MViT on clips: a table of times, each entry repeated over a frame, plus one of places, repeated over frames."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.fc, self.out = nn.Conv3d(3, 6, (1, 4, 4), (1, 4, 4)), nn.Linear(6, 5), nn.Linear(5, 3)
        self.times, self.places = nn.Parameter(torch.zeros(2, 6)), nn.Parameter(torch.zeros(4, 6))

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        count, width = self.places.shape
        positions = torch.repeat_interleave(self.times, count, dim=0)
        positions.add_(self.places.unsqueeze(0).expand(2, -1, -1).reshape(-1, width))
        x.add_(positions.unsqueeze(0))
        return self.out(F.relu(self.fc(x)).mean(1))


class PatchMerging(nn.Module):
    """Swin's: four neighbours joined in the channel axis, a norm of four times the width, a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm, self.merge = nn.Conv2d(3, 4, 2, 2), nn.LayerNorm(16), nn.Linear(16, 6, bias=False)
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        x = self.patch(x).permute(0, 2, 3, 1)
        pieces = [x[:, 0::2, 0::2, :], x[:, 1::2, 0::2, :], x[:, 0::2, 1::2, :], x[:, 1::2, 1::2, :]]
        return self.out(self.merge(self.norm(torch.cat(pieces, -1))).mean((1, 2)))


class Windows(nn.Module):
    """Tokens rolled and cut into windows by literal views, attention in each, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm, self.attn, self.head = nn.Conv2d(3, 6, 2, 2), nn.LayerNorm(6), Separate(), Head(6)

    def forward(self, x):
        x = self.patch(x).permute(0, 2, 3, 1)
        batch, height, width, channels = x.shape
        y = torch.roll(self.norm(x), (-1, -1), (1, 2)).view(batch, height // 2, 2, width // 2, 2, channels)
        y = self.attn(y.permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, channels))
        y = y.view(batch, height // 2, width // 2, 2, 2, channels).permute(0, 1, 3, 2, 4, 5)
        y = torch.roll(y.reshape(batch, height, width, channels), (1, 1), (1, 2))
        return self.head((x + y).permute(0, 3, 1, 2))


class MobileHybrid(nn.Module):
    """MobileViT: convolution, unfold to tokens, attention, fold back, joined with what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.block, self.c, self.d = (
            conv(3, 5),
            conv(5, 6, 1),
            Block(Separate),
            conv(6, 5, 1),
            conv(10, 4),
        )
        self.head = Head(4)

    def forward(self, x):
        x = F.silu(self.a(x))
        y = self.b(x)
        batch, channels, height, width = y.shape
        y = y.reshape(batch * channels * height // 2, 2, width // 2, 2).transpose(1, 2)
        y = y.reshape(batch, channels, height * width // 4, 4).transpose(1, 3).reshape(batch * 4, -1, channels)
        y = self.block(y)
        y = y.view(batch, 4, height * width // 4, channels).transpose(1, 3)
        y = (
            y.reshape(batch * channels * height // 2, width // 2, 2, 2)
            .transpose(1, 2)
            .reshape(batch, channels, height, width)
        )
        return self.head(F.silu(self.d(torch.cat([x, self.c(y)], 1))))


class PooledAttention(nn.Module):
    """PVT: keys and values from a strided convolution of the tokens laid out as an image."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.reduce, self.norm = nn.Conv2d(3, 6, 2, 2), nn.Conv2d(6, 6, 2, 2), nn.LayerNorm(6)
        self.q, self.kv, self.proj, self.out = nn.Linear(6, 6), nn.Linear(6, 12), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        batch, tokens, width = x.shape
        q = self.q(x).reshape(batch, tokens, 2, width // 2).permute(0, 2, 1, 3)
        small = self.norm(
            self.reduce(x.permute(0, 2, 1).reshape(batch, width, 4, 4)).reshape(batch, width, -1).permute(0, 2, 1)
        )
        kv = self.kv(small).reshape(batch, -1, 2, 2, width // 2).permute(2, 0, 3, 1, 4)
        scores = (q @ kv[0].transpose(-2, -1)) * 0.5
        x = x + self.proj((scores.softmax(-1) @ kv[1]).transpose(1, 2).reshape(batch, tokens, width))
        return self.out(x.mean(1))


class ChannelAttention(nn.Module):
    """XCiT: attention between channels of a head, over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.proj, self.out = nn.Linear(5, 6), nn.Linear(6, 18), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.embed(x)
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, 2, 3).permute(2, 0, 3, 4, 1).unbind(0)
        scores = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)).softmax(-1)
        return self.out((x + self.proj((scores @ v).permute(0, 3, 1, 2).reshape(batch, tokens, width))).mean(1))


class EncoderLayer(nn.Module):
    """PyTorch's own encoder layer, post-norm, over embedded words."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(10, 6), nn.Linear(6, 3)
        self.layer = nn.TransformerEncoderLayer(6, 2, dim_feedforward=8, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.out(self.layer(self.table(x)).mean(1))


class OutlookAttention(nn.Module):
    """VOLO: a linear writes the attention over each window down, heads beside; one head may be left."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.patch, self.value, self.attn = nn.Conv2d(3, 4, 1), nn.Linear(4, 4, bias=False), nn.Linear(4, 81 * heads)
        self.proj, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.patch(x).permute(0, 2, 3, 1)
        batch, height, width, channels = x.shape
        windows = height // 2 * (width // 2)
        v = F.unfold(self.value(x).permute(0, 3, 1, 2), 3, padding=1, stride=2)
        v = v.reshape(batch, self.heads, channels // self.heads, 9, windows).permute(0, 1, 4, 3, 2)
        attn = self.attn(F.avg_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1))
        attn = attn.reshape(batch, windows, self.heads, 9, 9).permute(0, 2, 1, 3, 4).softmax(-1)
        mixed = (attn @ v).permute(0, 1, 4, 3, 2).reshape(batch, channels * 9, windows)
        mixed = F.fold(mixed, (height, width), 3, padding=1, stride=2)
        return self.out((x + self.proj(mixed.permute(0, 2, 3, 1))).mean((1, 2)))


MODELS = {
    "class_token": ZooModel(
        ClassToken,
        (image(),),
        ("patch", "block.attn.qkv", "block.attn.proj", "block.up", "block.down"),
        {"out": OUTPUT},
        together("patch", "block.attn.proj", "block.down"),
    ),
    "video_positions": ZooModel(VideoPositions, (noise(2, 3, 2, 8, 8),), ("patch", "fc"), {"out": OUTPUT}),
    "patch_merging": ZooModel(PatchMerging, (image(),), ("patch", "merge"), {"out": OUTPUT}),
    "windows": ZooModel(Windows, (image(),), ("patch", "attn.q", "attn.k", "attn.v", "attn.proj")),
    "mobile_hybrid": ZooModel(MobileHybrid, (image(),), ("a", "c", "d", "block.up")),
    "pooled_attention": ZooModel(PooledAttention, (image(),), ("patch", "reduce", "q", "kv", "proj")),
    "outlook_attention": ZooModel(
        OutlookAttention,
        (image(),),
        ("patch", "value", "attn", "proj"),
        {"out": OUTPUT},
        together("value", "attn"),
    ),
    "channel_attention": ZooModel(ChannelAttention, (noise(2, 4, 5),), ("embed", "proj", "qkv")),
    "encoder_layer": ZooModel(EncoderLayer, (torch.arange(8).view(2, 4),), ("table", "layer.linear1", "layer.linear2")),
}
