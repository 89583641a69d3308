"""What takes the steps: stochastic gradient descent or AdamW, what it remembers, and which parameters decay."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nce_fx.errors import TrainingError
from nce_fx.quantizers.base import Quantizer
from nce_fx.training.recipe import Recipe
from nce_fx.training.shards import is_part, placed

LARGEST_CHANGE = 0.1
"""By how much of itself one step of the optimizer may change a learned range, see `positive_ranges`."""


_MOMENTUM, _ADAM = "momentum_buffer", ("step", "exp_avg", "exp_avg_sq")
"""What torch's optimizers call what they remember of a parameter: the one, and the other."""


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the optimizer over every parameter that requires a gradient, in three groups at most.

    - quantizers' own parameters (clip values, step sizes): ``clip_decay``, 0 by default, and ``clip_rate`` times the
      learning rate;
    - what has one axis or none (biases, the scales of normalization): no decay;
    - weights: ``weight_decay``.

    What is whole and what is in parts are never in one group.

    Raises:
        TrainingError: no parameter requires a gradient, or one has half precision already and the recipe asks for it.
    """
    quantizers = quantizer_parameters(model)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trained:
        raise TrainingError("the model has no parameter that requires a gradient: there is nothing to train")
    coarse = {"no": (), "bf16": (torch.float16,), "fp16": (torch.float16, torch.bfloat16)}[recipe.precision]
    for name, parameter in trained.items():
        if parameter.dtype in coarse:
            raise TrainingError(
                f"{name} is in {parameter.dtype}, and the recipe's precision is {recipe.precision}, in which a network"
                ' of float32 computes: give the network in float32, or precision "no"'
            )
    found: dict[tuple[float, float, bool], list[Tensor]] = {}
    for name, parameter in trained.items():
        if name in quantizers:
            kind = (recipe.clip_decay, recipe.clip_rate)
        else:
            kind = (recipe.weight_decay if parameter.ndim > 1 else 0.0, 1.0)
        found.setdefault((*kind, is_part(parameter)), []).append(parameter)
    groups = [{"params": own, "weight_decay": decay, "rate": rate} for (decay, rate, _), own in found.items()]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, recipe.learning_rate, betas=(recipe.momentum, 0.999))
    return torch.optim.SGD(groups, recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov)


def learned_ranges(model: nn.Module) -> list[Tensor]:
    """Return the clip values and step sizes of a model's quantizers that are lengths."""
    quantizers = [module for module in model.modules() if isinstance(module, Quantizer)]
    return [getattr(module, name) for module in quantizers for name in module.positive]


@contextmanager
def positive_ranges(ranges: Iterable[Tensor]) -> Iterator[None]:
    """Let no step of an optimizer change a clip value or a step size by more than a tenth.

    The gradients of learned ranges are large where rounding breaks a network (two dozen times those of its float
    network, on MobileNetV2 at 2 bits). A range that one such step takes below zero gives all weights one level, and
    gets no gradient from there on: it would stay so for good.

    Args:
        ranges: what `learned_ranges` returned; those that are not trained are left alone.
    """
    ranges = [each for each in ranges if each.requires_grad]
    if not ranges:
        yield
        return
    # In one tensor: a GPU would take longer to start something for each of so many numbers than to do it.
    old = _joined(ranges)
    yield
    new = _joined(ranges)
    held = torch.where(old > 0, new.clamp((1 - LARGEST_CHANGE) * old, (1 + LARGEST_CHANGE) * old), new)
    parts = torch.split(held, [each.numel() for each in ranges])
    with torch.no_grad():
        torch._foreach_copy_(ranges, [part.view_as(each) for part, each in zip(parts, ranges, strict=True)])


def _joined(parameters: list[Tensor]) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in parameters])


def quantizer_parameters(model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that belong to quantizers."""
    return frozenset(
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if isinstance(module, Quantizer)
        for name, _ in module.named_parameters(recurse=False)
    )


def momenta(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's whole state by parameter name; empty before the first step.

    ``{"conv1.weight": ...}`` holds the momenta of stochastic gradient descent, ``{"conv1.weight/exp_avg": ...,
    "conv1.weight/exp_avg_sq": ..., "conv1.weight/step": ...}`` what AdamW remembers.
    """
    remembered = {name: optimizer.state.get(parameter, {}) for name, parameter in model.named_parameters()}
    return {
        _stored(name, what): value
        for name, state in remembered.items()
        for what, value in state.items()
        if value is not None
    }


def restore_momenta(model: nn.Module, optimizer: torch.optim.Optimizer, values: dict[str, Tensor]) -> None:
    """Put back what ``momenta`` returned."""
    for name, parameter in model.named_parameters():
        for what in (_MOMENTUM, *_ADAM):
            if (value := values.get(_stored(name, what))) is not None:
                if what == "step":  # torch counts them where the processor is
                    optimizer.state[parameter][what] = value.to("cpu", copy=True)
                else:
                    optimizer.state[parameter][what] = placed(value.to(parameter.device, copy=True), parameter)


def _stored(name: str, what: str) -> str:
    return name if what == _MOMENTUM else f"{name}/{what}"
