"""Which convs and linears of a model lie in unpinned groups, counted without the analysis' own help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

import nce_fx

_CONVS = (nn.modules.conv._ConvNd,)
_FUNCTIONS = {
    "conv1d": "convs", "conv2d": "convs", "conv3d": "convs",
    "conv_transpose1d": "convs", "conv_transpose2d": "convs", "conv_transpose3d": "convs", "convolution": "convs",
    "linear": "linears",
}  # fmt: skip


def coverage(model: nn.Module, gm: GraphModule, channels: nce_fx.ChannelGraph) -> dict[str, Any]:
    """Count convs and linears, and those in unpinned groups; layers that make an output are listed apart."""
    layers = weighted_layers(model, gm)
    makers = output_makers(gm)
    groups = {producer: group for group in channels.groups for producer in group.producers}
    used = used_parameters(gm)
    result: dict[str, Any] = {"convs": [0, 0], "linears": [0, 0], "outputs": [], "unused": [], "pinned": []}
    for kind, names, weight in layers:
        group = next((groups[name] for name in names if name in groups), None)
        reason = group.pinned if group else "in no group: law 5 is broken"
        if id(weight) not in used:
            result["unused"].append(names[0])
        elif (
            reason is not None and any(name in makers for name in names) and (group and "output of the model" in reason)
        ):
            result["outputs"].append(names[0])
        else:
            result[kind][0] += reason is None
            result[kind][1] += 1
            if reason is not None:
                result["pinned"].append([names[0], kind, reason])
    return result


def weighted_layers(model: nn.Module, gm: GraphModule) -> list[tuple[str, list[str], torch.Tensor]]:
    """Return (kind, names, weight) of every conv and linear: modules, and raw parameters that functions read."""
    found: dict[int, tuple[str, list[str], torch.Tensor]] = {}

    def add(kind: str, name: str, weight: torch.Tensor) -> None:
        known = found.setdefault(id(weight), (kind, [], weight))
        if name not in known[1]:
            known[1].append(name)

    for name, module in model.named_modules(remove_duplicate=False):
        kind = "convs" if isinstance(module, _CONVS) else "linears" if isinstance(module, nn.Linear) else None
        own = next(module.parameters(), None)
        if kind and own is not None:
            weight = module._parameters.get("weight")
            add(kind, name, own if weight is None else weight)
        if isinstance(module, nn.MultiheadAttention):
            for key in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
                if getattr(module, key, None) is not None:
                    add("linears", f"{name}.{key}", getattr(module, key))
    parameters = dict(gm.named_parameters(remove_duplicate=False))
    for node in gm.graph.nodes:
        target = getattr(node.target, "__name__", str(node.target)).split(".")[0]
        if node.op == "call_function" and target in _FUNCTIONS and len(node.args) > 1:
            weight = node.args[1]
            if isinstance(weight, Node) and weight.op == "get_attr" and str(weight.target) in parameters:
                path = str(weight.target)
                add(_FUNCTIONS[target], path.removesuffix(".weight"), parameters[path])
    return list(found.values())


def used_parameters(gm: GraphModule) -> set[int]:
    """Return the identities of the parameters that the graph reads."""
    modules = dict(gm.named_modules(remove_duplicate=False))
    parameters: Mapping[str, torch.Tensor] = dict(gm.named_parameters(remove_duplicate=False))
    used: set[int] = set()
    for node in gm.graph.nodes:
        if node.op == "call_module":
            used |= {id(p) for p in modules[str(node.target)].parameters()}
        elif node.op == "get_attr" and str(node.target) in parameters:
            used.add(id(parameters[str(node.target)]))
    return used


def output_makers(gm: GraphModule) -> set[str]:
    """Return the layers from which the output is reached without passing another conv or linear."""
    modules = dict(gm.named_modules(remove_duplicate=False))
    found: set[str] = set()
    seen: set[Node] = set()
    ahead = [node for node in gm.graph.nodes if node.op == "output"]
    while ahead:
        node = ahead.pop()
        if node in seen:
            continue
        seen.add(node)
        target = getattr(node.target, "__name__", str(node.target)).split(".")[0]
        if node.op == "call_module" and isinstance(modules[str(node.target)], (*_CONVS, nn.Linear)):
            found.add(str(node.target))
        elif node.op == "call_module" and isinstance(modules[str(node.target)], nn.MultiheadAttention):
            found |= {f"{node.target}.out_proj", str(node.target)}
        elif node.op == "call_function" and target in _FUNCTIONS and len(node.args) > 1:
            weight = node.args[1]
            found |= {str(weight.target).removesuffix(".weight")} if isinstance(weight, Node) else set()
        else:
            ahead.extend(node.all_input_nodes)
    return found
