"""Activation functions that bend: SiLU, hard swish, GELU, sigmoid and their like, by PyTorch's own kernels.

Where a quantizer follows, its level may still be a staircase over the sum before the function. SiLU falls to -0.28 and
rises again, but where that is not half a step below zero, no level shows it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from onnx import NodeProto
from torch import Tensor

from nce_fx.export.integer.onnx_nodes import Array, Nodes, attributes


def gelu(x: Tensor, approximate: bytes = b"none") -> Tensor:
    """Return ``x * Phi(x)``, by the error function or by ``approximate=b"tanh"``."""
    return F.gelu(x, approximate=approximate.decode())


def hard_sigmoid(x: Tensor, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """Return ``alpha * x + beta`` between 0 and 1; PyTorch's has 1/6 and 1/2."""
    return F.hardsigmoid(x) if (np.float32(alpha), beta) == (np.float32(1 / 6), 0.5) else (alpha * x + beta).clamp(0, 1)


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """Return ``x``, below zero ``alpha * (exp(x) - 1)``."""
    return F.elu(x, alpha)


def leaky_relu(x: Tensor, alpha: float = 0.01) -> Tensor:
    """Return ``x``, below zero ``alpha * x``."""
    return F.leaky_relu(x, alpha)


CURVES: Mapping[str, Callable[..., Tensor]] = {
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Gelu": gelu,
    "HardSwish": F.hardswish,
    "HardSigmoid": hard_sigmoid,
    "Mish": F.mish,
    "Elu": elu,
    "LeakyRelu": leaky_relu,
}
"""ONNX's name of a function of one number -> the same on tensors."""


@dataclass(frozen=True)
class Curve:
    """A function of one number, the same in all channels: ``Curve(torch.sigmoid)``."""

    function: Callable[[Tensor], Tensor]

    def __call__(self, x: Array) -> Array:
        """Compute what PyTorch computes: float32 in, float32 out."""
        result: Array = self.function(torch.from_numpy(np.ascontiguousarray(x, np.float32))).numpy()
        return result


def curve_of(nodes: Nodes, node: NodeProto) -> tuple[Curve, str] | None:
    """Return the function that a node computes and of which tensor: ``(Curve(silu), "conv")`` of ``conv * sigmoid``."""
    if node.op_type in CURVES:
        function, settings = CURVES[node.op_type], attributes(node)
        return Curve(lambda x: function(x, **settings)), node.input[0]
    if node.op_type != "Mul":
        return None
    for source, gate in (node.input, reversed(node.input)):
        writer = nodes.writer.get(gate)
        if writer is not None and writer.op_type == "Sigmoid" and writer.input[0] == source:
            alone = len(nodes.readers[source]) == 2 and len(nodes.readers[gate]) == 1 and gate not in nodes.outputs
            return (Curve(F.silu), source) if alone else None
    return None
