"""Stages of a run: in float first, and progressive bits, which quantizers lose stage by stage (8, then 4, then 2).

In float every quantizer lets everything pass; those that stand for a ReLU act as one. What they learned of a range is
of another network when that stage ends, so they take a first look at weights and activations again.

When a quantizer changes its bits its range stays: a learned step is stretched as the steps become fewer, a learned clip
is a range already, and what is computed from the weights follows by itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nce_fx.errors import InputError, QuantizeError
from nce_fx.quantizers.base import ActivationQuantizer, Quantizer, WeightQuantizer
from nce_fx.quantizers.lsq import LsqActivation, LsqWeight
from nce_fx.quantizers.n2uq import N2uq
from nce_fx.training.recipe import Recipe, bits_at


@dataclass(frozen=True)
class Stages:
    """The quantizers of a model by path, and the bits that each ends with."""

    quantizers: Mapping[str, Quantizer]
    final_bits: Mapping[str, int]

    def enter(self, recipe: Recipe, epoch: int) -> None:
        """Give every quantizer the bits of an epoch's stage, or its own where those are more; in float, none."""
        in_float, bits = epoch < recipe.float_epochs, bits_at(recipe, epoch)
        for path, quantizer in self.quantizers.items():
            quantizer.bypassed = in_float
            if bits is not None and not in_float:
                set_bits(quantizer, max(bits, self.final_bits[path]))

    @torch.no_grad()
    def start_again(self, run: Callable[[], None]) -> None:
        """Start every quantizer anew, on what it sees while ``run`` runs the network in float on some batches.

        Raises:
            QuantizeError: a value is not finite.
        """
        weights: dict[WeightQuantizer, Tensor] = {}

        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            (value,) = inputs
            if not bool(value.isfinite().all()):
                place = next(path for path, quantizer in self.quantizers.items() if quantizer is module)
                raise QuantizeError(f"{place}: what it would quantize is not finite after the epochs in float")
            if isinstance(module, WeightQuantizer):
                weights[module] = value
            elif isinstance(module, ActivationQuantizer):
                module.observe(module.in_float(value))

        hooks = [quantizer.register_forward_pre_hook(look) for quantizer in self.quantizers.values()]
        for quantizer in self.quantizers.values():
            quantizer.bypassed = True
        try:
            run()
        finally:
            for hook, quantizer in zip(hooks, self.quantizers.values(), strict=True):
                hook.remove()
                quantizer.bypassed = False
        for quantizer in self.quantizers.values():
            if isinstance(quantizer, ActivationQuantizer):
                quantizer.settle()
            elif quantizer in weights and isinstance(quantizer, WeightQuantizer):
                quantizer.start_again(weights[quantizer])


def stages_of(model: nn.Module, recipe: Recipe) -> Stages:
    """Return a model's stages under a recipe.

    Raises:
        InputError: the recipe has progressive bits or epochs in float and the model no quantizers, or one that cannot
            be let pass, or that would end with more bits than it has.
    """
    quantizers = {path: module for path, module in model.named_modules() if isinstance(module, Quantizer)}
    if recipe.bits and not quantizers:
        raise InputError("recipe: bits are given and the model has no quantizers: quantize it first, or leave them out")
    if recipe.float_epochs and not quantizers:
        raise InputError("recipe: float_epochs is given and the model has no quantizers: all its epochs are in float")
    for path, quantizer in quantizers.items():
        if recipe.float_epochs and type(quantizer).forward is not Quantizer.forward:
            raise InputError(
                f"recipe: float_epochs is given and {path} ({type(quantizer).__name__}) has a forward of its own, which"
                " lets nothing pass: override rounded instead"
            )
        if recipe.bits and isinstance(quantizer, N2uq):
            raise InputError(
                f"recipe: bits are given and {path} has a learned threshold for each level (n2uq), which does not go"
                " with other bits: leave them out, or quantize activations with lsq or pact"
            )
        if recipe.bits and recipe.bits[-1] > quantizer.bits:
            raise InputError(
                f"recipe: bits end with {recipe.bits[-1]}, {path} has {quantizer.bits}; "
                f"let them end with {quantizer.bits} or fewer"
            )
    return Stages(quantizers, {path: quantizer.bits for path, quantizer in quantizers.items()})


@torch.no_grad()
def set_bits(quantizer: Quantizer, bits: int) -> None:
    """Change a quantizer's bits in place; its parameters stay the same objects, its range stays where it is."""
    if quantizer.bits == bits:
        return
    fewer, new = (2**quantizer.bits - 1) / (2**bits - 1), _another(quantizer, bits)
    if isinstance(quantizer, LsqWeight | LsqActivation):
        # Signed levels reach further down than up, the further the fewer they are.
        assert isinstance(new, LsqWeight | LsqActivation)
        fewer = quantizer.grid.reach / new.grid.reach
    state = {name: value.clone() for name, value in quantizer.state_dict().items()}
    if "step" in state:
        state["step"] *= fewer
    if "zero" in state:
        state["zero"] = (state["zero"] / fewer).round().to(state["zero"].dtype)
    # What follows from the bits (the grid) is taken from a new one; loading then settles what follows from the state.
    for name, value in vars(new).items():
        if not name.startswith("_") and name not in ("training", "exact", "ewgs", "layer"):
            setattr(quantizer, name, value)
    quantizer.load_state_dict(state)


def _another(quantizer: Quantizer, bits: int) -> Quantizer:
    kind: Any = type(quantizer)
    if isinstance(quantizer, ActivationQuantizer):
        return kind(bits, quantizer.signed, quantizer.origin, quantizer.replaces)  # type: ignore[no-any-return]
    assert isinstance(quantizer, WeightQuantizer)
    return kind(bits, quantizer.channel_axis)  # type: ignore[no-any-return]
