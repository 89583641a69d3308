"""The noise of quantizers: of those that a network will have, or of the package's default ones at so many bits."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from nce_fx.passes.transform.quantize import QuantSpec, quantize
from nce_fx.passes.transform.quantize.calibrate import quantized_value
from nce_fx.passes.transform.quantize.functional import repeats_values
from nce_fx.passes.transform.quantize.read import weight_quantizers
from nce_fx.paths import called
from nce_fx.quantizers import ActivationQuantizer
from nce_fx.quantizers.base import WeightQuantizer
from nce_fx.quantizers.pact import Pact
from nce_fx.quantizers.sawb import Sawb

Rounding = Callable[[Tensor], Tensor]
Bits = int | Mapping[str, int]
"""For every layer, or per layer path; layers that a mapping leaves out stay in float."""


class Point(NamedTuple):
    """Where a value is rounded on its way to some of its readers, such as those that are layers."""

    name: str
    value: str
    readers: tuple[str, ...]
    """Names of nodes."""


@dataclass(frozen=True)
class Noise:
    """What low precision does to a tensor of weights and to a tensor of activations."""

    weight: Callable[[str, Tensor], Tensor]
    """(layer path, weight) -> the rounded weight."""
    activation: Callable[[str, tuple[str, ...], Tensor], Rounding]
    """(name of the value or of the point, paths of the layers that read it, a sample of it) -> what rounds it, with the
    range that suits the sample."""
    points: tuple[Point, ...] | None = None
    """Where values are rounded; by default whatever a layer reads is, for all its readers."""


def real_noise(bits: Bits) -> Noise:
    """Return what SAWB and PACT do at so many bits, wherever a layer reads: their ranges need no training."""

    def round_weight(path: str, value: Tensor) -> Tensor:
        own = bits_of(bits, (path,))
        return value if own is None or not value.numel() else _rounded(Sawb(own).to(value.device), value)

    def round_activation(name: str, readers: tuple[str, ...], sample: Tensor) -> Rounding:
        own = bits_of(bits, readers)
        return _kept if own is None or not sample.numel() else _settled(Pact(own).to(sample.device), sample)

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
    """Return the noise that ``quantize(gm, spec)`` will add.

    Raises:
        QuantizeError: the spec does not fit the graph.
    """
    return noise_in(quantize(gm, spec))


def noise_in(quantized: GraphModule) -> Noise:
    """Return the noise of the quantizers that a network has: each rounds its own weight or value, none any other.

    Where levels lie at a scale of their own, which the normalization after the layer undoes, the scale is no noise:
    they are taken at the one that is nearest to the weights.
    """
    of_weights = weight_quantizers(quantized)
    of_values: dict[str, ActivationQuantizer] = {}
    points = []
    for node in quantized.graph.nodes:
        module = called(quantized, node, ActivationQuantizer)
        if module is not None:
            of_values[node.name] = module
            points.append(Point(node.name, quantized_value(module, node), tuple(_readers(node))))

    def round_weight(path: str, value: Tensor) -> Tensor:
        quantizer = of_weights.get(path)
        if quantizer is None:
            return value
        if value.shape == quantizer.weight.shape and torch.equal(value, quantizer.weight):
            return _rounded(quantizer.module, value, start=False)
        # A parameter that the layer's weight is computed from.
        return _rounded(copy.deepcopy(quantizer.module), value)

    def round_activation(name: str, readers: tuple[str, ...], sample: Tensor) -> Rounding:
        return _settled(copy.deepcopy(of_values[name]), sample) if name in of_values else _kept

    return Noise(round_weight, round_activation, tuple(points))


def _readers(node: Node) -> Iterator[str]:
    """Yield the names of the readers of a quantizer as the float graph has them, which pads inside of its layers."""
    for user in node.users:
        if repeats_values(user):
            yield from _readers(user)
        yield user.name


@torch.no_grad()
def _rounded(quantizer: WeightQuantizer, weight: Tensor, start: bool = True) -> Tensor:
    if start:
        quantizer.start(weight)
    rounded: Tensor = quantizer(weight)
    if not quantizer.scale_free:
        return rounded
    return rounded * ((rounded * weight).sum() / rounded.square().sum())


def _settled(quantizer: ActivationQuantizer, sample: Tensor) -> Rounding:
    quantizer.observe(sample)
    quantizer.settle()

    @torch.no_grad()
    def rounding(value: Tensor) -> Tensor:
        rounded: Tensor = quantizer(value)
        return rounded

    return rounding


def _kept(value: Tensor) -> Tensor:
    return value
