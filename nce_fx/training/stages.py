"""Progressive bits: quantizers that start with more bits and lose them stage by stage (8, then 4, then 2).

When a quantizer changes its bits its range stays: a learned step is stretched as the steps become fewer, a learned clip
is a range already, and what is computed from the weights follows by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from nce_fx.errors import InputError
from nce_fx.quantizers.base import ActivationQuantizer, Quantizer
from nce_fx.quantizers.n2uq import N2uq
from nce_fx.training.recipe import Recipe, bits_at


@dataclass(frozen=True)
class Stages:
    """The quantizers of a model by path, and the bits that each ends with."""

    quantizers: Mapping[str, Quantizer]
    final_bits: Mapping[str, int]

    def enter(self, recipe: Recipe, epoch: int) -> None:
        """Give every quantizer the bits of an epoch's stage, or its own where those are more."""
        bits = bits_at(recipe, epoch)
        if bits is not None:
            for path, quantizer in self.quantizers.items():
                set_bits(quantizer, max(bits, self.final_bits[path]))


def stages_of(model: nn.Module, recipe: Recipe) -> Stages:
    """Return a model's stages under a recipe.

    Raises:
        InputError: the recipe has progressive bits and the model no quantizers, or one that would end with more bits
            than it has.
    """
    quantizers = {path: module for path, module in model.named_modules() if isinstance(module, Quantizer)}
    if recipe.bits and not quantizers:
        raise InputError("recipe: bits are given and the model has no quantizers: quantize it first, or leave them out")
    for path, quantizer in quantizers.items():
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
    fewer = (2**quantizer.bits - 1) / (2**bits - 1)
    state = {name: value.clone() for name, value in quantizer.state_dict().items()}
    if "step" in state:
        state["step"] *= fewer
    if "zero" in state:
        state["zero"] = (state["zero"] / fewer).round().to(state["zero"].dtype)
    # What follows from the bits (the grid) is taken from a new one; loading then settles what follows from the state.
    for name, value in vars(_another(quantizer, bits)).items():
        if not name.startswith("_") and name not in ("training", "exact", "ewgs"):
            setattr(quantizer, name, value)
    quantizer.load_state_dict(state)


def _another(quantizer: Quantizer, bits: int) -> Quantizer:
    kind = type(quantizer)
    if isinstance(quantizer, ActivationQuantizer):
        return kind(bits, quantizer.signed, quantizer.origin, quantizer.replaces)  # type: ignore[call-arg]
    return kind(bits, getattr(quantizer, "channel_axis", 0))  # type: ignore[call-arg]
