"""Inserting width choices into a plain graph, and taking them out."""

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch.fx import GraphModule, Node

from nce_fx.devices import device_of
from nce_fx.errors import ChannelError
from nce_fx.ops.layers import find_layers
from nce_fx.passes.analysis.channels import analysis_of
from nce_fx.passes.transform.widths.choice_sites import (
    ChoiceSites,
    Order,
    Reading,
    channel_order,
    find_choice_sites,
    plain_float,
)
from nce_fx.passes.transform.widths.modules import WIDTH_MODULES, WidthChoice, WidthDraw, WidthInterpolation, WidthNorm
from nce_fx.paths import free_name

Mixing = Literal["zeros", "interpolate"]


def insert_width_choices(
    gm: GraphModule,
    candidates: Mapping[str, tuple[int, ...]],
    order: Order | None = None,
    mixing: Mixing = "zeros",
) -> GraphModule:
    """Return a copy of a plain graph in which layers choose among widths of what they read.

    Args:
        gm: a graph at the widest candidate of every group, float or quantized; it is not changed.
        candidates: the legal widths of each group that has a choice, in rising order.
        order: in which order channels go; by default the one in which `resize` narrows.
        mixing: what becomes of the narrower of two drawn candidates: "zeros" pads it, "interpolate" stretches it;
            values with channels on several axes are always padded.

    Raises:
        ChannelError: a width that a group cannot take, or one whose widest is not the graph's own.
    """
    channels = analysis_of(plain_float(gm)).channels
    for group, widths in candidates.items():
        if not widths or widths[-1] != channels[group].width or list(widths) != sorted(set(widths)):
            raise ChannelError(
                f"group {group} cannot choose among {widths}: give rising widths that end with its own,"
                f" {channels[group].width}"
            )
    sites = find_choice_sites(gm, candidates, channel_order(gm) if order is None else order)
    for group, reason in sites.refused.items():
        raise ChannelError(f"group {group} cannot choose its width: {reason}; leave it out")
    result = copy.deepcopy(gm)
    draws = _draws(result, candidates)
    _choices(result, sites, draws, candidates, mixing)
    _norms(result, sites, draws, candidates)
    result.graph.lint()
    result.recompile()
    return result


def remove_width_choices(gm: GraphModule) -> GraphModule:
    """Return a copy of the graph without width choices: the plain network at the widest candidates."""
    result = copy.deepcopy(gm)
    for node in reversed(list(result.graph.nodes)):
        module = result.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, (WidthChoice, WidthInterpolation)):
            node.replace_all_uses_with(node.args[0])
            result.graph.erase_node(node)
        elif isinstance(module, WidthNorm):
            node.args = (node.args[0],)
            node._rename(node.name.removesuffix("_width_norm"))
        elif isinstance(module, WidthDraw) and not node.users:
            result.graph.erase_node(node)
    for path, module in list(result.named_modules()):
        if isinstance(module, WidthNorm):
            result.add_submodule(path, module.plain())
        elif isinstance(module, WIDTH_MODULES):
            result.delete_submodule(path)
    result.graph.lint()
    result.recompile()
    return result


def _draws(gm: GraphModule, candidates: Mapping[str, tuple[int, ...]]) -> dict[str, Node]:
    last = [node for node in gm.graph.nodes if node.op == "placeholder"][-1]
    draws = {}
    for group, widths in candidates.items():
        name = _free(gm, f"{group}_width_draw")
        gm.add_module(name, WidthDraw(group, widths).to(device_of(gm)).train(gm.training))
        with gm.graph.inserting_after(last):
            last = draws[group] = gm.graph.create_node("call_module", name, (), name=name)
    return draws


def _choices(
    gm: GraphModule,
    sites: ChoiceSites,
    draws: Mapping[str, Node],
    candidates: Mapping[str, tuple[int, ...]],
    mixing: Mixing,
) -> None:
    uses: dict[str, int] = {}
    made: dict[tuple[Node, tuple[str, ...]], list[tuple[torch.Tensor, Node]]] = {}
    for layer in find_layers(gm):
        use = (layer.path, uses.setdefault(layer.path, 0))
        uses[layer.path] += 1
        for index, source in enumerate(layer.inputs):
            reading = sites.readers.get((use, index))
            if reading is None:
                continue
            known = made.setdefault((source, reading.groups), [])
            choice = next((node for member, node in known if torch.equal(member, reading.member)), None)
            if choice is None:
                name = _free(gm, f"{layer.path}_width_choice")
                stretched = mixing == "interpolate" and reading.axis is not None
                counts = tuple(len(candidates[group]) for group in reading.groups)
                module = _interpolation(reading) if stretched else WidthChoice(reading.member, counts)
                gm.add_module(name, module.to(device_of(gm)).train(gm.training))
                with gm.graph.inserting_before(layer.node):
                    arguments = (source, *(draws[group] for group in reading.groups))
                    choice = gm.graph.create_node("call_module", name, arguments, name=name)
                if "tensor_meta" in source.meta:
                    choice.meta["tensor_meta"] = source.meta["tensor_meta"]
                known.append((reading.member, choice))
            layer.node.replace_input_with(source, choice)


def _interpolation(reading: Reading) -> WidthInterpolation:
    assert reading.axis is not None
    return WidthInterpolation(reading.axis, reading.member.numel(), reading.blocks)


def _norms(
    gm: GraphModule, sites: ChoiceSites, draws: Mapping[str, Node], candidates: Mapping[str, tuple[int, ...]]
) -> None:
    nodes: dict[str, list[Node]] = {}
    for node in gm.graph.nodes:
        if node.op == "call_module" and node.target in sites.norms:
            nodes.setdefault(str(node.target), []).append(node)
    for path, uses in nodes.items():
        group = sites.norms[path].groups[0]
        norm: Any = gm.get_submodule(path)
        new = WidthNorm(norm, sites.norms[path].member.to(norm.weight.device), len(candidates[group]))
        new.training = norm.training
        gm.add_submodule(path, new)
        for node in uses:
            node.args = (node.all_input_nodes[0], draws[group])
            node.kwargs = {}
            node._rename(f"{node.name}_width_norm")


def _free(gm: GraphModule, wanted: str) -> str:
    """A name that is no module's and no node's yet."""
    name = "".join(letter if letter.isalnum() else "_" for letter in wanted)
    return free_name(name, {node.name for node in gm.graph.nodes} | {path for path, _ in gm.named_modules()})
