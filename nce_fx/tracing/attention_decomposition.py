"""Open multi-head attention up into linears and scaled dot product attention, on its own parameters: torch's module,
and the function that others call with parameters of their own.

q, k, v = split(x @ in_proj_weight.T + in_proj_bias)
out = out_proj(concat over heads(softmax(q k / sqrt(d) + masks) v))
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node, Proxy
from torch.fx.node import map_arg

from nce_fx.paths import run_node, tensor_at

Known = Callable[[Any], Any]
"""Returns a mask as it is for the example inputs; ``None`` where that is not known."""


def can_open(m: Any, args: tuple[Any, ...], kwargs: dict[str, Any], known: Known) -> bool:
    """Say whether the call is one that ``open_attention`` does: no extra key, and padding of known type."""
    padding = args[3] if len(args) > 3 else kwargs.get("key_padding_mask")
    plain = m.bias_k is None and m.bias_v is None and not m.add_zero_attn
    return plain and (padding is None or known(padding) is not None)


def in_example(named: Mapping[str, Any], root: nn.Module, mask: Any) -> Any:
    """Return a mask that is traced as it is for the example inputs; ``None`` where modules make it."""
    if not isinstance(mask, Proxy):
        return mask
    known: dict[Node, Any] = {}

    def value(node: Node) -> Any:
        if node not in known:
            known[node] = own(node)
        return known[node]

    def own(node: Node) -> Any:
        if node.op == "placeholder":
            return _copy(named[str(node.target)])
        if node.op == "get_attr":
            return _copy(tensor_at(root, str(node.target)))
        assert node.op != "call_module"  # no example is run through a part of the model
        args, kwargs = map_arg((node.args, node.kwargs), value)
        return run_node(root, node, args, kwargs)

    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return value(mask.node)
    except Exception:
        # Whatever a module's name, called as a function, or a value without an example raises.
        return None


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Let an attribute be another one meanwhile."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def attention_opened() -> Iterator[None]:
    """Let ``nn.MultiheadAttention`` be what it does on its own parameters, without a number of heads written down."""
    forward = nn.MultiheadAttention.forward

    def opened(self: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        if query.dim() == 3 and can_open(self, (query, *args), kwargs, lambda mask: mask):
            return open_attention(self, query, *args, **kwargs)
        return forward(self, query, *args, **kwargs)

    with replaced(nn.MultiheadAttention, "forward", opened):
        yield


@contextmanager
def attention_function_opened(applies: Callable[[Any], bool], known: Known) -> Iterator[None]:
    """Let ``F.multi_head_attention_forward`` be what it does where it applies to a query and can be opened."""
    function = F.multi_head_attention_forward
    order = inspect.signature(function)

    def opened(*args: Any, **kwargs: Any) -> Any:
        bound = order.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        m = _module_of(given)
        call = {name: given[name] for name in (*_CALL, "query")}
        static = given["static_k"] is not None or given["static_v"] is not None
        if applies(call["query"]) and not static and can_open(m, (), call, known):
            return open_attention(m, **call, known=known, by_function=True)
        # It says its own name where it is traced.
        with replaced(F, "multi_head_attention_forward", function):
            return function(*args, **kwargs)

    with replaced(F, "multi_head_attention_forward", opened):
        yield


_CALL = (
    "key", "value", "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal",
)  # fmt: skip


def _module_of(given: Mapping[str, Any]) -> SimpleNamespace:
    """Return what a module of the parameters that the function is given holds."""
    return SimpleNamespace(
        head_dim=given["embed_dim_to_check"] // given["num_heads"],
        batch_first=False,
        dropout=given["dropout_p"],
        out_proj=lambda x: F.linear(x, given["out_proj_weight"], given["out_proj_bias"]),
        _qkv_same_embed_dim=not given["use_separate_proj_weight"],
        **{name: given[name] for name in ("training", "bias_k", "bias_v", "add_zero_attn")},
        **{name: given[name] for name in ("in_proj_weight", "in_proj_bias")},
        **{name: given[name] for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight")},
    )


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
    known: Known = lambda mask: mask,
    by_function: bool = False,
) -> tuple[Any, Any]:
    """Return what the module returns: (batch, length, features) or (length, batch, features), and the weights."""
    head = m.head_dim

    def heads(x: Any) -> Any:
        split = x.unflatten(-1, (-1, head))
        return split.transpose(1, 2) if m.batch_first else split.permute(1, 2, 0, 3)

    q, k, v = (heads(x) for x in _project(m, query, key, value))
    by_head: Any = None
    if attn_mask is not None:
        example = known(attn_mask)
        attn_mask = _added(attn_mask, example)
        if example is None and by_function:
            # Of two axes or of three, the first of which are the batch's heads: who calls the function often has these.
            attn_mask, by_head = None, attn_mask
        elif example is not None and example.dim() == 3:
            attn_mask = attn_mask.unflatten(0, (q.shape[0], -1))
    if key_padding_mask is not None:
        padding = _added(key_padding_mask, known(key_padding_mask)).unsqueeze(1).unsqueeze(1)
        attn_mask = padding if attn_mask is None else attn_mask + padding
    weights = None
    if need_weights or m.dropout or by_head is not None:
        scores = torch.matmul(q * head**-0.5, k.transpose(-2, -1))
        if by_head is not None:
            scores = (scores.flatten(0, 1) + by_head).unflatten(0, (q.shape[0], -1))
        if attn_mask is not None:
            scores = scores + attn_mask
        # A query to which all is hidden: the attention in one has zeros for it, the weights in full are not finite.
        safe = (attn_mask is not None or by_head is not None) and not need_weights
        weights = torch._safe_softmax(scores, -1) if safe else F.softmax(scores, dim=-1)
        out = torch.matmul(F.dropout(weights, m.dropout, m.training) if m.dropout else weights, v)
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask)
    # The module's own layout, in which dropouts after it draw their numbers.
    out = m.out_proj(out.permute(2, 0, 1, 3).flatten(2))
    return out.transpose(0, 1) if m.batch_first else out, weights if need_weights else None


def _added(mask: Any, example: Any) -> Any:
    """Return a mask as what is added to the scores."""
    if getattr(example, "dtype", None) is not torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=torch.float32).masked_fill(mask, float("-inf"))


def _project(m: Any, query: Any, key: Any, value: Any) -> tuple[Any, Any, Any]:
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
