"""Weights that are moved or cut out of a parameter: whether they grow as the parameter does.

``weight.view(10, -1)`` and ``weight[:, :x.shape[1]]`` do; ``weight.view(10, 8)`` and ``weight[:, :8]`` have the width
written down. The graph says which: it is run again, without values, on a parameter that is one longer.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from nce_fx.ids.space import ParameterAxis, Tensors
from nce_fx.ids.value import ChannelTensor
from nce_fx.ops.work import ancestors


class _UnknownError(Exception):
    """A value that is needed is not of the parameter, nor a number."""


def grows_with_parameter(
    node: Node, axis: int, read: ParameterAxis, tensors: Tensors, values: Mapping[Node, Any]
) -> bool:
    """Whether an axis of a weight is one longer where the axis of the parameter that it comes from is."""
    path, position = read
    length = tensors.tensors[path].shape[position]
    known: dict[Node, Any] = {}

    def value(n: Node) -> Any:
        if n not in known:
            known[n] = _again(n)
        return known[n]

    def _again(n: Node) -> Any:
        if n.op == "get_attr" and str(n.target) in tensors.canonical:
            shape = list(tensors.tensors[str(n.target)].shape)
            shape[position] += tensors.canonical[str(n.target)] == path
            return torch.empty(shape, device="meta")
        if _comes_from(n, path, tensors) and n.op in ("call_function", "call_method"):
            args, kwargs = map_arg((n.args, n.kwargs), value)
            if n.op == "call_function":
                return n.target(*args, **kwargs)  # type: ignore[operator]
            return getattr(args[0], str(n.target))(*args[1:], **kwargs)
        recorded = values.get(n)
        if type(recorded) is int:
            return recorded + (recorded == length)
        if isinstance(recorded, ChannelTensor) or n.op == "call_module":
            raise _UnknownError
        return recorded

    try:
        longer = value(node)
    except _UnknownError:
        return True
    except Exception:
        # The numbers that are written down do not fit the longer parameter.
        return False
    return isinstance(longer, torch.Tensor) and longer.shape[axis] == length + 1


def _comes_from(node: Node, path: str, tensors: Tensors) -> bool:
    """Whether a parameter is among what a node is computed from."""
    return any(n.op == "get_attr" and tensors.canonical.get(str(n.target)) == path for n in ancestors([node]))
