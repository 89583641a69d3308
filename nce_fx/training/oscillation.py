"""How restless the weights are, and what calms them (Nagel et al. 2022, "Overcoming oscillations in quantization-aware
training", arXiv 2203.11086).

At few bits a weight near the border between two levels is pushed over it and back. The share of weights that are on
another level than when the epoch began falls with the learning rate; what is left at the end is noise in the result.

Dampening adds to the loss what draws every weight to its level, but for those beyond the outermost levels:

    lambda sum (clip(w) - Q(w))^2,   so to the gradient   2 lambda (w - Q(w))

Freezing holds weights that oscillate: whose level, in a step, moves back against its last move. How often that is, is a
moving average:

    f <- m o + (1 - m) f,   q_mean <- m q + (1 - m) q_mean,   m = 0.01

Where f is above a threshold the weight is set on the level that it was on most, round(q_mean), and stays there for the
rest of the run, whatever becomes of the scale. The threshold falls as a cosine from four times its end, as published.
A frozen weight keeps its value while that is on its level: where scales follow from the weights (SAWB), weights that
followed their scale in turn would shrink or grow at every step, to nothing or to infinity.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from nce_fx.errors import InputError
from nce_fx.passes.transform.quantize import integer_weights
from nce_fx.paths import called
from nce_fx.quantizers import WeightQuantizer
from nce_fx.quantizers.base import Integers
from nce_fx.quantizers.dorefa import DorefaWeight
from nce_fx.training.checkpoint import by_kind, flat
from nce_fx.training.shards import local, placed, whole


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
            value = whole(weight)
            away = value - quantizer(value)
            inside = away.abs() <= quantizer.step_size(value) / 2
            weight.grad.add_(placed(away * inside, weight.grad), alpha=2 * strength)


MOMENTUM = 0.01
START = 4.0
"""The threshold at the start, as a multiple of the one at the end."""


@dataclass
class _Weight:
    """A weight and its record; all tensors of its shape, and in parts as it is."""

    parameter: nn.Parameter
    quantizer: WeightQuantizer
    level: Tensor
    """Whole numbers, as is ``move``, the sign of the last change."""
    move: Tensor
    frequency: Tensor
    mean: Tensor
    frozen: Tensor
    held: Tensor
    """The values of those that are frozen."""


class Freezing:
    """Watches every quantized weight of a graph and freezes those that oscillate."""

    def __init__(self, model: nn.Module, threshold: float) -> None:
        self.threshold = threshold
        self._weights: dict[str, _Weight] = {}
        for name, parameter, quantizer in quantized_parameters(model):
            if isinstance(quantizer, DorefaWeight) and quantizer.bits > 1:
                raise InputError(f"recipe: freeze sets a weight on its level, and {name} goes through dorefa's tanh")
            level = placed(_integers(parameter, quantizer).values.to(torch.int16), parameter)
            nothing = torch.zeros_like(parameter.detach())
            still = torch.zeros_like(level)
            mean, held = level.to(nothing.dtype), parameter.detach().clone()
            self._weights[name] = _Weight(parameter, quantizer, level, still, nothing, mean, still.bool(), held)
        if not self._weights:
            raise InputError("recipe: freeze is given and the model has no quantized weights: leave it out")

    @property
    def share(self) -> float:
        """The share of the weights that are frozen, in [0, 1]; called by every process."""
        frozen = sum(int(whole(weight.frozen).sum()) for weight in self._weights.values())
        return frozen / sum(weight.frozen.numel() for weight in self._weights.values())

    @torch.no_grad()
    def after_step(self, done: float) -> None:
        """Look at every weight; hold those that are frozen."""
        limit = self.threshold * (1 + (START - 1) * 0.5 * (1 + math.cos(math.pi * done)))
        for weight in self._weights.values():
            parts = (weight.level, weight.move, weight.frequency, weight.mean, weight.frozen, weight.held)
            level, move, frequency, mean, frozen, held = map(local, parts)
            own = local(weight.parameter)
            own.copy_(torch.where(frozen, held, own))
            integers = _integers(weight.parameter, weight.quantizer)
            now = local(placed(integers.values.to(level.dtype), weight.parameter))
            found = torch.where(frozen, level, now)
            moved = torch.sign(found - level)
            back = (moved != 0) & (moved == -move)
            frequency.lerp_(back.to(frequency.dtype), MOMENTUM)
            mean.lerp_(found.to(mean.dtype), MOMENTUM)
            fresh = (frequency > limit) & ~frozen
            level.copy_(torch.where(fresh, mean.round().to(level.dtype), found))
            move.copy_(torch.where(moved != 0, moved, move))
            away = fresh | (frozen & (level != now))
            frozen |= fresh
            if bool(away.any()):
                of_each = (
                    local(placed(value.expand(integers.values.shape), weight.parameter)) for value in integers[1:]
                )
                held.copy_(torch.where(away, Integers(level, *of_each).dequantize().to(held.dtype), held))
                own.copy_(torch.where(away, held, own))

    def tensors(self) -> dict[str, Tensor]:
        """Return the records by weight."""
        kinds = ("level", "move", "frequency", "mean", "frozen", "held")
        return flat({kind: {name: getattr(own, kind) for name, own in self._weights.items()} for kind in kinds})

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what ``tensors`` returned."""
        for kind, own in by_kind(tensors).items():
            for path, tensor in own.items():
                parameter = self._weights[path].parameter
                setattr(self._weights[path], kind, placed(tensor.to(parameter.device, copy=True), parameter))


def _integers(parameter: Tensor, quantizer: WeightQuantizer) -> Integers:
    """A weight on its levels, whole in every process: the levels follow from all of it."""
    return quantizer.integers(whole(parameter.detach()))
