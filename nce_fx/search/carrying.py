"""A network that is resized while it is trained: what was learned comes along, and training goes on.

What the optimizer remembers goes through the same gathers as the weights:

    a channel that is copied n times   each copy receives 1/n of its gradient: so 1/n of the momentum
    what reads it                      is divided, and its gradient is as before: so is the momentum
    a channel that goes                takes its momentum with it

Quantizers keep what they learned, of one range a tensor.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from nce_fx.passes.analysis.channels.edits import Gather
from nce_fx.passes.transform.quantize import InsertQuantizers, QuantSpec
from nce_fx.passes.transform.resize import ResizeChannels
from nce_fx.pipeline import Pass, Pipeline
from nce_fx.processes import distributed
from nce_fx.quantizers import Quantizer
from nce_fx.training.optimizer import build_optimizer, restore_momenta
from nce_fx.training.run import Run
from nce_fx.training.stages import stages_of

M = TypeVar("M")


def going_on_with(run: Run, network: GraphModule, momenta: Mapping[str, Tensor]) -> Run:
    """Return the run that trains this network from here on, with these momenta by parameter name."""
    run.optimizer.zero_grad(set_to_none=True)
    optimizer = build_optimizer(network, run.recipe)
    restore_momenta(network, optimizer, dict(momenta))
    student, stages = distributed(network, run.engine), stages_of(network, run.recipe)
    return replace(run, model=network, student=student, optimizer=optimizer, stages=stages)


def quantizing(spec: QuantSpec | None) -> tuple[Pass, ...]:
    """Return the pass that quantizes as a spec says; none where there is none."""
    return () if spec is None else (InsertQuantizers(spec),)


def of_kind(gm: GraphModule, kind: type[M]) -> dict[str, M]:
    """Return the modules of a kind by path."""
    return {path: module for path, module in gm.named_modules() if isinstance(module, kind)}


def along(value: Tensor, axis: int, gather: Gather | None) -> Tensor:
    """Return the entries of an axis that a gather names, in its order; the value itself where there is none."""
    return value if gather is None else value.index_select(axis, torch.from_numpy(gather.index))


def carried_momentum(momentum: Tensor, gathers: Mapping[int, Gather | None]) -> Tensor:
    """Return what a momentum is at the new widths, by the gather of each axis."""
    for axis, gather in gathers.items():
        if gather is None:
            continue
        momentum = along(momentum, axis, gather)
        if gather.divisor is None:
            copies = np.bincount(gather.index)[gather.index]
            shape = [-1 if k == axis else 1 for k in range(momentum.dim())]
            momentum = momentum / torch.from_numpy(copies).to(momentum.dtype).reshape(shape)
    return momentum


def carried_momenta(
    network: GraphModule, momenta: Mapping[str, Tensor], gathers: Mapping[tuple[str, int], Gather]
) -> dict[str, Tensor]:
    """Return what the optimizer of a network that was resized remembers, by parameter name; on the CPU.

    What the resize made anew, a weight of another shape, has no past.
    """
    carried = {}
    for name, parameter in network.named_parameters():
        if name in momenta:
            value = momenta[name].cpu()
            value = carried_momentum(value, {axis: gathers.get((name, axis)) for axis in range(value.dim())})
            if value.shape == parameter.shape:
                carried[name] = value
    return carried


def resized_anew(network: GraphModule, plain: GraphModule, how: ResizeChannels, spec: QuantSpec | None) -> GraphModule:
    """Return the float network of one in training resized, and quantized with what its quantizers had learned."""
    result = Pipeline((how, *quantizing(spec)))(plain).graph_module
    learned = of_kind(network, Quantizer)
    for path, quantizer in of_kind(result, Quantizer).items():
        state, mine = learned[path].state_dict() if path in learned else {}, quantizer.state_dict()
        if state and all(name in mine and mine[name].shape == value.shape for name, value in state.items()):
            quantizer.load_state_dict(state)
    return result
