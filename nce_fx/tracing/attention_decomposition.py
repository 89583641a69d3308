"""Open nn.MultiheadAttention up into linears and scaled dot product attention, on its own parameters.

q, k, v = split(x @ in_proj_weight.T + in_proj_bias)
out = out_proj(concat over heads(softmax(q k / sqrt(d)) v))
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def can_open(m: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Say whether the call is one that ``open_attention`` does: no extra key, no padding mask."""
    padding = args[3] if len(args) > 3 else kwargs.get("key_padding_mask")
    plain = m.bias_k is None and m.bias_v is None and not m.add_zero_attn
    return plain and padding is None and not kwargs.get("is_causal", False)


def open_attention(
    m: Any,
    query: Any,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Any, Any]:
    """Return what the module returns: (batch, length, features) or (length, batch, features), and the weights."""
    head = m.head_dim

    def heads(x: Any) -> Any:
        split = x.unflatten(-1, (-1, head))
        return split.transpose(1, 2) if m.batch_first else split.permute(1, 2, 0, 3)

    q, k, v = (heads(x) for x in _project(m, query, key, value))
    if attn_mask is not None and getattr(attn_mask, "dtype", None) is torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=torch.float32).masked_fill(attn_mask, float("-inf"))
    weights = None
    if need_weights or m.dropout:
        scores = torch.matmul(q * head**-0.5, k.transpose(-2, -1))
        weights = F.softmax(scores if attn_mask is None else scores + attn_mask, dim=-1)
        out = torch.matmul(F.dropout(weights, m.dropout, m.training) if m.dropout else weights, v)
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask)
    out = out.transpose(1, 2) if m.batch_first else out.permute(2, 0, 1, 3)
    return m.out_proj(out.flatten(2)), weights if need_weights else None


def _project(m: nn.MultiheadAttention, query: Any, key: Any, value: Any) -> tuple[Any, Any, Any]:
    if not m._qkv_same_embed_dim:
        bias = (None, None, None) if m.in_proj_bias is None else m.in_proj_bias.chunk(3)
        return (
            F.linear(query, m.q_proj_weight, bias[0]),
            F.linear(key, m.k_proj_weight, bias[1]),
            F.linear(value, m.v_proj_weight, bias[2]),
        )
    if query is key and key is value:
        q, k, v = F.linear(query, m.in_proj_weight, m.in_proj_bias).chunk(3, dim=-1)
        return q, k, v
    weights = m.in_proj_weight.chunk(3)
    bias = (None, None, None) if m.in_proj_bias is None else m.in_proj_bias.chunk(3)
    return (
        F.linear(query, weights[0], bias[0]),
        F.linear(key, weights[1], bias[1]),
        F.linear(value, weights[2], bias[2]),
    )
