"""How restless the weights are, and what calms them (Nagel et al. 2022, "Overcoming oscillations in quantization-aware
training", arXiv 2203.11086).

At few bits a weight near the border between two levels is pushed over it and back. The share of weights that are on
another level than when the epoch began falls with the learning rate; what is left at the end is noise in the result.

Dampening adds to the loss what draws every weight to its level, but for those beyond the outermost levels:

    lambda sum (clip(w) - Q(w))^2,   so to the gradient   2 lambda (w - Q(w))
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from nce_fx.passes.transform.quantize import integer_weights
from nce_fx.paths import called
from nce_fx.quantizers import WeightQuantizer


@torch.no_grad()
def weight_levels(model: nn.Module) -> dict[str, Tensor]:
    """Return the level of every quantized weight by layer, as one byte each; none for a model that is no graph."""
    if not isinstance(model, GraphModule):
        return {}
    return {path: weight.integers for path, weight in integer_weights(model).items()}


def share_moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float | None:
    """Return which share of the weights is on another level, in [0, 1]; ``None`` where there are none to compare."""
    pairs = [(before[path], levels) for path, levels in after.items() if path in before]
    pairs = [(old, new) for old, new in pairs if old.shape == new.shape]
    count = sum(new.numel() for _, new in pairs)
    return sum(int((old != new).sum()) for old, new in pairs) / count if count else None


def quantized_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, WeightQuantizer]]:
    """Yield the parameters that a graph quantizes as they are, by name, with what quantizes them."""
    for node in model.graph.find_nodes(op="call_module") if isinstance(model, GraphModule) else ():
        quantizer, source = called(model, node, WeightQuantizer), node.args[0]
        if quantizer is not None and isinstance(source, Node) and source.op == "get_attr":
            yield str(source.target), model.get_parameter(str(source.target)), quantizer


@torch.no_grad()
def dampen(model: nn.Module, strength: float) -> None:
    """Add the gradient of dampening to the gradients of all weights that a graph quantizes as they are.

    Args:
        model: a graph after the backward pass.
        strength: lambda.
    """
    for _, weight, quantizer in quantized_parameters(model):
        if weight.grad is not None:
            away = weight - quantizer(weight)
            inside = away.abs() <= quantizer.step_size(weight) / 2
            weight.grad.add_(away * inside, alpha=2 * strength)
