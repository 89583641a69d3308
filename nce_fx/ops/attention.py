"""Attention."""

from torch import nn, randn

from nce_fx.ops import work
from nce_fx.ops.op import Absent, Op
from nce_fx.ops.rules import contraction

ROWS = (
    Op(
        name="scaled_dot_product_attention",
        kind="product",
        signature="query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False",
        channels=contraction.attention,
        catch="call",
        macs=work.attention,
        example=lambda: (randn(2, 1, 5, 8), randn(2, 1, 5, 8), randn(2, 1, 5, 8)),
    ),
    Op(
        name="nn.MultiheadAttention",
        kind="weighted",
        modules=(nn.MultiheadAttention,),
        signature="query, key, value, key_padding_mask=None, need_weights=True, attn_mask=None, "
        "average_attn_weights=True, is_causal=False",
        channels=Absent("tracing takes it apart into linear layers and attention"),
        macs=work.multihead,
        quantize=Absent("its projections are layers of their own in a graph"),
        example=lambda: (randn(5, 2, 8), randn(5, 2, 8), randn(5, 2, 8)),
    ),
)
