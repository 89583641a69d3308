"""Copy models and graphs; some of the tensors may be replaced by others, and nothing is compiled again."""

import copy
from collections import OrderedDict
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from nce_fx.paths import modules_of

_ATOMS = frozenset({int, float, bool, str, type(None), torch.Size, torch.dtype, torch.device})
_CODE = frozenset({"_code", "_lineno_map", "_prologue_start", "_in_spec", "_out_spec"})
"""What a graph module keeps beside its compiled ``forward``, which its class holds: fx makes a class for each."""
_CONTAINERS = frozenset({dict, OrderedDict, set, list, tuple})
Model = TypeVar("Model", bound=nn.Module)


def copy_model(model: Model) -> Model:
    """Return a deep copy of any model, also of one whose weights hooks compute."""
    return copy.deepcopy(model, dict(computed_by_hooks(model)))


def computed_by_hooks(model: nn.Module) -> dict[int, Tensor]:
    """Return copies of what hooks, such as the older weight_norm's, have computed and compute again, by ``id``.

    PyTorch's own ``deepcopy`` refuses a model with such tensors.
    """
    return {
        id(value): value.detach().clone()
        for _, module in modules_of(model)
        for value in vars(module).values()
        if isinstance(value, Tensor) and value.grad_fn is not None
    }


def copy_graph(gm: GraphModule, memo: dict[int, Any]) -> GraphModule:
    """Return a copy of a graph module, with the code of the original: whoever edits its graph has to recompile it.

    ``memo`` is that of ``copy.deepcopy``: it holds what takes the place of tensors, by the ``id`` of the old ones.
    """
    result = GraphModule.__new__(type(gm))
    memo[id(gm)] = result
    GraphModule.__init__(result, nn.Module(), Graph(tracer_cls=gm.graph._tracer_cls))
    for key, value in computed_by_hooks(gm).items():
        memo.setdefault(key, value)
    for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
        result.__dict__[name] = _attribute(name, gm.__dict__[name], memo)
    result.training = gm.training
    for name in ("_state_dict_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"):
        result.__dict__[name] = _attribute(name, gm.__dict__[name], memo)
    result.meta = copy.deepcopy(gm.meta, memo)
    graph = copy.deepcopy(gm.graph)
    result._graph, graph.owning_module = graph, result
    for name in _CODE & gm.__dict__.keys():
        result.__dict__[name] = gm.__dict__[name]
    type(result).forward = type(gm).forward
    return result


def shallow_copy(gm: GraphModule) -> GraphModule:
    """Return a copy of a graph module on the same tensors: it can be edited and take another mode."""
    result = copy_graph(gm, {id(tensor): tensor for tensor in (*gm.parameters(), *gm.buffers())})
    for name, hooks in gm.__dict__.items():
        if name.startswith(("_forward_hooks", "_forward_pre_hooks")):
            result.__dict__[name] = hooks.copy()
    return result


def _module(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    known: nn.Module | None = memo.get(id(module))
    if known is not None:
        return known
    if not _is_plain(type(module)):
        return copy.deepcopy(module, memo)
    result = type(module).__new__(type(module))
    memo[id(module)] = result
    for name, value in module.__dict__.items():
        if name != "_compiled_call_impl":  # which PyTorch does not copy either
            result.__dict__[name] = value if type(value) in _ATOMS else _attribute(name, value, memo)
    return result


def _is_plain(kind: type[nn.Module]) -> bool:
    """Whether a class is PyTorch's own, and copied attribute by attribute."""
    return (
        kind.__module__.startswith("torch.nn.modules.")
        and not hasattr(kind, "__deepcopy__")
        and kind.__getstate__ is nn.Module.__getstate__
        and kind.__reduce_ex__ is object.__reduce_ex__
    )


def _attribute(name: str, value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in _CONTAINERS and not value:
        return kind()
    if name == "_modules":
        return {key: child and _module(child, memo) for key, child in value.items()}
    if name in ("_parameters", "_buffers"):
        return {key: _tensor(tensor, memo) for key, tensor in value.items()}
    if kind is tuple and all(type(item) in _ATOMS for item in value):
        return value
    return copy.deepcopy(value, memo)


def _tensor(tensor: Any, memo: dict[int, Any]) -> Any:
    if type(tensor) is Tensor and not tensor.requires_grad and id(tensor) not in memo:
        memo[id(tensor)] = tensor.clone()
    return memo[id(tensor)] if id(tensor) in memo else copy.deepcopy(tensor, memo)
