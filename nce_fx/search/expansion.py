"""A wider candidate while the search runs: the network is resized, and everything that was learned comes along.

The width choices and the quantizers are taken out, `resize` widens the plain float network (its function stays, but for
what the quantizers make of the new weights), and both are put in again. What the optimizers remember goes through the
same gathers as the weights:

    a channel that is copied n times   each copy receives 1/n of its gradient: so 1/n of the momentum
    what reads it                      is divided, and its gradient is as before: so is the momentum
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from nce_fx.devices import device_of
from nce_fx.passes.analysis.channels.edits import Gather
from nce_fx.passes.transform.quantize import InsertQuantizers, QuantSpec, RemoveQuantizers
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
from nce_fx.pipeline import Pass, Pipeline
from nce_fx.quantizers import Quantizer

M = TypeVar("M")


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
    ranges = {path: quantizer.state_dict() for path, quantizer in of_kind(network, Quantizer).items()}
    # One name for all that it becomes, so that a large network is not held at every stage.
    result = Pipeline((RemoveWidthChoices(), RemoveQuantizers()))(network).graph_module.cpu()
    gathers = gathers_of(result, wider)
    result = Pipeline((ResizeChannels(wider, seed), *quantizing(spec)))(result).graph_module
    _restore_quantizers(result, ranges)
    order = carried_order(result, order, {axis: gather.index for axis, gather in gathers.items()})
    result = InsertWidthChoices(candidates, order, mixing)(result).graph_module
    for draw in of_kind(result, WidthDraw).values():
        draw.alpha.data.copy_(extended(draws[draw.group].alpha.detach().cpu(), len(draw.widths)))
        draw.alpha.requires_grad_(False)
        draw.tau = draws[draw.group].tau
    norms = of_kind(result, WidthNorm)
    for path, norm in norms.items():
        for name, before in rows[path].items():
            own = _along(before, 1, gathers.get((f"{path}.{name}", 0)))
            norm.rows(name).data[: len(own)] = own
    carried = {}
    for name, parameter in result.named_parameters():
        if name not in momenta:
            continue
        owner, value = name.rpartition(".")[0], momenta[name].cpu()
        if owner in norms:
            value = _carried(value.view(-1, rows[owner]["weight"].shape[1]), {1: gathers.get((name, 0))})
            value = extended(value, norms[owner].candidates).reshape(-1)
        else:
            value = _carried(value, {axis: gathers.get((name, axis)) for axis in range(value.dim())})
        if value.shape == parameter.shape:
            carried[name] = value.to(device)
    return Grown(result.to(device).train(network.training), order, carried)


def quantizing(spec: QuantSpec | None) -> tuple[Pass, ...]:
    """Return the pass that quantizes as a spec says; none where there is none."""
    return () if spec is None else (InsertQuantizers(spec),)


def of_kind(gm: GraphModule, kind: type[M]) -> dict[str, M]:
    """Return the modules of a kind by path."""
    return {path: module for path, module in gm.named_modules() if isinstance(module, kind)}


def extended(values: Tensor, length: int) -> Tensor:
    """Return values along the first axis with the last one repeated up to a length."""
    return torch.cat([values, values[-1:].expand(length - len(values), *values.shape[1:])])


def _rows(norm: WidthNorm) -> dict[str, Tensor]:
    """The scales and shifts of every candidate."""
    return {name: norm.rows(name).detach().cpu() for name in ("weight", "bias")}


def _along(value: Tensor, axis: int, gather: Gather | None) -> Tensor:
    return value if gather is None else value.index_select(axis, torch.from_numpy(gather.index))


def _carried(momentum: Tensor, gathers: Mapping[int, Gather | None]) -> Tensor:
    """Return what a momentum is at the new widths, by the gather of each axis."""
    for axis, gather in gathers.items():
        if gather is None:
            continue
        momentum = _along(momentum, axis, gather)
        if gather.divisor is None:
            copies = np.bincount(gather.index)[gather.index]
            shape = [-1 if k == axis else 1 for k in range(momentum.dim())]
            momentum = momentum / torch.from_numpy(copies).to(momentum.dtype).reshape(shape)
    return momentum


def _restore_quantizers(network: GraphModule, ranges: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Give the quantizers of a network what they had learned before it was resized."""
    for path, quantizer in of_kind(network, Quantizer).items():
        state, mine = ranges.get(path, {}), quantizer.state_dict()
        if state and all(name in mine and mine[name].shape == value.shape for name, value in state.items()):
            quantizer.load_state_dict(state)
