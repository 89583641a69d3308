"""The noise of the package's own quantizers, each calibrated as `quantize` would calibrate it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from nce_fx.passes.transform.quantize.places import find_places
from nce_fx.passes.transform.quantize.spec import QuantSpec
from nce_fx.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS

Rounding = Callable[[Tensor], Tensor]
Bits = int | Mapping[str, int]
"""For every layer, or per layer path; layers that a mapping leaves out stay in float."""


@dataclass(frozen=True)
class Noise:
    """What low precision does to a tensor of weights and to a tensor of activations."""

    weight: Callable[[str, Tensor], Tensor]
    """(layer path, weight) -> the rounded weight."""
    activation: Callable[[tuple[str, ...], Tensor], Rounding]
    """(paths of the layers that read it, a sample of it) -> what rounds it, with the range that suits the sample."""


def real_noise(bits: Bits, weight: str = "sawb", activation: str = "pact", exact: bool = False) -> Noise:
    """Return what two quantizers of the package's tables do at so many bits; ``exact`` is as in `QuantSpec`."""

    def round_weight(path: str, value: Tensor) -> Tensor:
        own = bits_of(bits, (path,))
        if own is None:
            return value
        quantizer = WEIGHT_QUANTIZERS[weight](own, 0).to(value.device)
        quantizer.exact = exact
        quantizer.start(value)
        rounded: Tensor = quantizer(value)
        return rounded.detach()

    def round_activation(readers: tuple[str, ...], sample: Tensor) -> Rounding:
        own = bits_of(bits, readers)
        if own is None:
            return lambda value: value
        quantizer = ACTIVATION_QUANTIZERS[activation](own).to(sample.device)
        quantizer.exact = exact
        quantizer.observe(sample)
        quantizer.settle()

        @torch.no_grad()
        def rounding(value: Tensor) -> Tensor:
            rounded: Tensor = quantizer(value)
            return rounded

        return rounding

    return Noise(round_weight, round_activation)


def bits_of(bits: Bits, layers: tuple[str, ...]) -> int | None:
    """Return the bits of a tensor that these layers read: the most that one of them asks for; ``None`` is float.

    Where layers ask for different bits each has a quantizer of its own; the tensor as such is as good as the best.
    """
    if isinstance(bits, int):
        return bits
    asked = [bits[layer] for layer in layers if layer in bits]
    return max(asked) if asked else None


def noise_of(gm: GraphModule, spec: QuantSpec) -> Noise:
    """Return the noise that ``quantize(gm, spec)`` will add: its quantizers, at its bits for every layer.

    Raises:
        QuantizeError: the spec does not fit the graph.
    """
    places = find_places(gm, spec)
    weights = {place.path: place.bits.weight for place in places if place.bits.weight is not None}
    activations = {place.path: place.bits.activation for place in places if place.bits.activation is not None}
    of_weights = real_noise(weights, spec.weight, spec.activation, spec.exact)
    return Noise(of_weights.weight, real_noise(activations, spec.weight, spec.activation, spec.exact).activation)
