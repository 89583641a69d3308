"""Which widths a group chooses from: legal ones near ratios of its original width, and wider ones that are added.

A wider candidate comes while the search runs: the network is resized, and everything that was learned comes along. The
width choices and the quantizers are taken out, `resize` widens the plain float network (its function stays, but for
what the quantizers make of the new weights), and both are put in again; see `nce_fx.search.carrying`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from nce_fx.devices import device_of
from nce_fx.passes.analysis.channels import ChannelGraph, ChannelGroup
from nce_fx.passes.planning.choices import Rules, widths_of
from nce_fx.passes.transform.quantize import QuantSpec, RemoveQuantizers
from nce_fx.passes.transform.resize import ResizeChannels, gathers_of
from nce_fx.passes.transform.widths import (
    InsertWidthChoices,
    Mixing,
    Order,
    RemoveWidthChoices,
    WidthDraw,
    WidthNorm,
    carried_order,
)
from nce_fx.pipeline import Pipeline
from nce_fx.search.carrying import along, carried_momenta, carried_momentum, of_kind, resized_anew
from nce_fx.search.recipes import SearchRecipe


@dataclass(frozen=True)
class Start:
    """The candidates a search starts with, and the groups that keep their width, with the reason."""

    candidates: dict[str, tuple[int, ...]]
    left: dict[str, str]


def first_candidates(channels: ChannelGraph, recipe: SearchRecipe) -> Start:
    """Return for each group the legal widths nearest to the recipe's ratios."""
    start = Start({}, {})
    for group in channels:
        if group.pinned is not None:
            start.left[group.id] = group.pinned
            continue
        legal = _legal(group, recipe)
        chosen = {_nearest(legal, ratio * group.width) for ratio in recipe.ratios}
        if len(chosen) < 2 and not (recipe.expand and legal[-1] > group.width):
            start.left[group.id] = "no other legal width is near the ratios"
            continue
        start.candidates[group.id] = tuple(sorted(chosen))
    return start


def wider_candidate(group: ChannelGroup, widest: int, recipe: SearchRecipe) -> int | None:
    """Return the width to add to a group whose widest candidate is this, or ``None`` at the upper limit."""
    legal = [width for width in _legal(group, recipe) if width > widest]
    return min(legal, key=lambda width: abs(width - widest - recipe.expand_by * group.width)) if legal else None


def _legal(group: ChannelGroup, recipe: SearchRecipe) -> list[int]:
    widths: list[int] = np.asarray(widths_of(group, Rules(0.0, recipe.max_ratio))).tolist()
    return widths


def _nearest(legal: list[int], wanted: float) -> int:
    return min(legal, key=lambda width: (abs(width - wanted), width))


@dataclass(frozen=True)
class Grown:
    """A search network with wider candidates."""

    network: GraphModule
    order: Order
    momenta: dict[str, Tensor]


def grow(
    network: GraphModule,
    candidates: Mapping[str, tuple[int, ...]],
    order: Order,
    momenta: Mapping[str, Tensor],
    spec: QuantSpec | None,
    seed: int,
    mixing: Mixing = "zeros",
) -> Grown:
    """Return the network with these candidates: for each group those it had, and at most one wider.

    Args:
        network: with width choices; it is not changed.
        candidates: of all groups that have a choice.
        order: in which order channels go.
        momenta: of the parameters of ``network``, by name.
        spec: how it is quantized, or ``None``.
        seed: of the noise that parts copies.
        mixing: as the network was made with.
    """
    device = device_of(network)
    draws = {draw.group: draw for draw in of_kind(network, WidthDraw).values()}
    rows = {path: _rows(norm) for path, norm in of_kind(network, WidthNorm).items()}
    wider = {group: widths[-1] for group, widths in candidates.items() if widths[-1] != draws[group].widths[-1]}
    # One name for all that it becomes, so that a large network is not held at every stage.
    result = Pipeline((RemoveWidthChoices(), RemoveQuantizers()))(network).graph_module.cpu()
    gathers = gathers_of(result, wider)
    result = resized_anew(network, result, ResizeChannels(wider, seed), spec)
    order = carried_order(result, order, {axis: gather.index for axis, gather in gathers.items()})
    result = InsertWidthChoices(candidates, order, mixing)(result).graph_module
    for draw in of_kind(result, WidthDraw).values():
        draw.alpha.data.copy_(extended(draws[draw.group].alpha.detach().cpu(), len(draw.widths)))
        draw.alpha.requires_grad_(False)
        draw.tau = draws[draw.group].tau
    norms = of_kind(result, WidthNorm)
    for path, norm in norms.items():
        for name, before in rows[path].items():
            own = along(before, 1, gathers.get((f"{path}.{name}", 0)))
            norm.rows(name).data[: len(own)] = own
    of_norms = {name for name in momenta if name.rpartition(".")[0] in norms}
    others = {name: value for name, value in momenta.items() if name not in of_norms}
    carried = carried_momenta(result, others, gathers)
    for name in of_norms:
        owner = name.rpartition(".")[0]
        value = momenta[name].cpu().view(-1, rows[owner]["weight"].shape[1])
        value = extended(carried_momentum(value, {1: gathers.get((name, 0))}), norms[owner].candidates)
        carried[name] = value.reshape(-1)
    return Grown(result.to(device).train(network.training), order, carried)


def extended(values: Tensor, length: int) -> Tensor:
    """Return values along the first axis with the last one repeated up to a length."""
    return torch.cat([values, values[-1:].expand(length - len(values), *values.shape[1:])])


def _rows(norm: WidthNorm) -> dict[str, Tensor]:
    """The scales and shifts of every candidate."""
    return {name: norm.rows(name).detach().cpu() for name in ("weight", "bias")}
