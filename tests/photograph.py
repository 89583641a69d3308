"""Everything about a value that a function could change, as plain values that can be compared: a photograph of it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

_KEPT = frozenset({"_channel_analysis", "_graph"})
"""What the analysis keeps with a graph is no part of it; nodes are looked at by themselves."""


def photograph(value: Any) -> Any:
    """Return what there is to see of modules with their modes and hooks, graphs, tensors, values of dataclasses."""
    if isinstance(value, nn.Module):
        return {path: _module(module) for path, module in value.named_modules(remove_duplicate=False)}
    if isinstance(value, Graph):
        return [_node(node) for node in value.nodes]
    if isinstance(value, Tensor):
        return _tensor(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: photograph(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return [(photograph(key), photograph(item)) for key, item in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return type(value).__name__, [photograph(item) for item in value]
    return value if isinstance(value, bool | int | float | str | bytes | type(None)) else id(value)


def surroundings() -> Any:
    """Return what the whole process shares: random states, and the settings of PyTorch."""
    numbers = np.random.get_state(legacy=False)
    return {
        "random": random.getstate(),
        "numpy": photograph({**numbers, "state": {k: str(v) for k, v in numbers["state"].items()}}),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "defaults": (torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()),
        "algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def _module(module: nn.Module) -> Any:
    parts = {name: id(part) for name, part in module._modules.items()}
    seen = {name: photograph(item) for name, item in vars(module).items() if name not in (*_KEPT, "_modules")}
    graph = (module.code, photograph(module.graph)) if isinstance(module, GraphModule) else None
    return id(module), type(module), type(module).forward, parts, seen, graph


def _node(node: Node) -> Any:
    users = [user.name for user in node.users]
    return id(node), node.name, node.op, node.target, repr((node.args, node.kwargs)), users, photograph(node.meta)


def _tensor(tensor: Tensor) -> Any:
    if tensor.is_meta or type(tensor) not in (Tensor, nn.Parameter):
        return id(tensor), tuple(tensor.shape), tensor.dtype
    contents = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    gradient = None if tensor.grad is None else _tensor(tensor.grad)
    return id(tensor), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.requires_grad, contents, gradient
