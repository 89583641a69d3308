"""Multi-head attention is opened up wherever it stands: torch's module, and the function given parameters of others."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nce_fx
from tests.laws import LAWS
from tests.observing import counted

WIDTH, HEADS, TOKENS, BATCH = 8, 2, 5, 3


class ByModule(nn.Module):
    """Attention of torch's module."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS)

    def forward(self, x, **masks):
        return self.attention(x, x, x, **masks)[0]


class ByFunction(nn.Module):
    """Projections of its own, which the function is given, as WavLM's and CLIP's pooling do."""

    def __init__(self, **options):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.options = options

    def forward(self, x, **masks):
        bias = torch.cat([self.q.bias, self.k.bias, self.v.bias])
        weights = {f"{name}_proj_weight": getattr(self, name).weight for name in "qkv"}
        own = (None, None, self.options.get("add_zero_attn", False), 0.1, self.out.weight, self.out.bias)
        given = {"training": self.training, "use_separate_proj_weight": True, **weights, **masks}
        return F.multi_head_attention_forward(x, x, x, WIDTH, HEADS, None, bias, *own, **given)[0]


class Masked(nn.Module):
    """Attention between two layers, with masks of every form; ``made``: by a module, so that no example is known."""

    def __init__(self, attention, mask):
        super().__init__()
        self.into, self.attention, self.out = nn.Linear(4, WIDTH), attention, nn.Linear(WIDTH, 2)
        self.mask = mask
        self.table = nn.Embedding(TOKENS, 1)

    def forward(self, x):
        place = torch.arange(x.shape[0], device=x.device)
        masks = {
            "none": lambda: {},
            "flat": lambda: {"attn_mask": (place[:, None] - place).to(x)},
            "heads": lambda: {"attn_mask": (place[:, None] - place).to(x).repeat(x.shape[1] * HEADS, 1, 1) / 4},
            "made": lambda: {"attn_mask": self.table((place[:, None] - place).abs())[..., 0]},
            "padding": lambda: {"key_padding_mask": (place > 1).repeat(x.shape[1], 1)},
        }
        return self.out(self.attention(self.into(x), **masks[self.mask]()))


@pytest.mark.parametrize("mask", ["none", "flat", "heads", "made", "padding"])
@pytest.mark.parametrize("attention", [ByModule, ByFunction])
def test_it_is_opened_and_keeps_the_laws(attention, mask):
    torch.manual_seed(0)
    model, x = Masked(attention(), mask).eval(), (torch.randn(TOKENS, BATCH, 4),)
    gm = nce_fx.trace(model, x)
    assert gm.meta["traced"] == "fx"
    assert not any("multi_head" in str(node.target) or str(node.target) == "attention" for node in gm.graph.nodes)
    torch.testing.assert_close(gm(*x), model(*x))
    for law in LAWS:
        LAWS[law](model, x)


def test_one_that_cannot_be_opened_is_counted():
    torch.manual_seed(0)
    model, x = Masked(ByFunction(add_zero_attn=True), "none").eval(), (torch.randn(TOKENS, BATCH, 4),)
    gm = nce_fx.trace(model, x)
    assert any(node.target is F.multi_head_attention_forward for node in gm.graph.nodes)
    assert nce_fx.analyze_cost(gm).macs == counted(gm, x)[0]
