"""What lies between a convolution and the quantizer of its output: BatchNorm, factors, shifts, ReLU, clips, curves.

Each is a function of one number, and but for curves none of them turns larger into smaller other than by a negative
factor. So the level that a quantizer gives is a staircase over the convolution's whole-number sum, up or down, another
one in each channel; with a curve it is asked whether it is one.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from nce_fx.export.integer.curves import Curve, curve_of
from nce_fx.export.integer.onnx_nodes import Array, Nodes, attributes

ENDS = ("Relu", "Clip")
"""Operators that grow with what they read, in every channel alike."""

_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "BatchNormalization")

_EVERYWHERE = np.concatenate([-np.geomspace(1e9, 16, 256), np.linspace(-16, 16, 2**15 + 1), np.geomspace(16, 1e9, 256)])
"""Numbers at which a curve is asked: it has no wave as short as 1/1024."""


@dataclass(frozen=True)
class AffineStep:
    """``y = x * factor + shift``, then ``min(max(y, low), high)``, in float32; shapes (channels, 1) or ()."""

    factor: Array | None = None
    shift: Array | None = None
    low: float = -np.inf
    high: float = np.inf

    def __call__(self, x: Array) -> Array:
        """Compute what PyTorch computes; a factor and a shift of one step are rounded once, as BatchNorm's are."""
        if self.factor is not None and self.shift is not None:
            x = (x.astype(np.float64) * self.factor + self.shift).astype(np.float32)
        elif self.factor is not None:
            x = x * self.factor
        elif self.shift is not None:
            x = x + self.shift
        return np.clip(x, np.float32(self.low), np.float32(self.high))

    @property
    def alike(self) -> bool:
        """Whether it is the same in all channels, as ``x * 2 + 1`` is."""
        return all(array is None or array.size == 1 for array in (self.factor, self.shift))


Step = AffineStep | Curve


@dataclass(frozen=True)
class Epilogue:
    """What follows a sum, such as ``Epilogue((bias, norm, relu))``: steps in the order they run, on (channels, any)."""

    steps: tuple[Step, ...]

    def __call__(self, x: Array) -> Array:
        """Run all steps."""
        for step in self.steps:
            x = step(x)
        return x

    @property
    def curved(self) -> bool:
        """Whether one of them is a curve, such as ``Curve(torch.sigmoid)``."""
        return any(isinstance(step, Curve) for step in self.steps)

    def rises(self, level: Callable[[Array], Array]) -> bool:
        """Whether ``level``, of what comes out, is one for all channels from the first curve on, and never falls."""
        if not self.curved:
            return True
        first = next(place for place, step in enumerate(self.steps) if isinstance(step, Curve))
        behind = self.steps[first:]
        if not all(isinstance(step, Curve) or step.alike for step in behind):
            return False
        return bool(np.all(np.diff(level(Epilogue(behind)(_EVERYWHERE[None].astype(np.float32)))) >= 0))

    def line(self, channels: int) -> tuple[Array, Array]:
        """Return all steps as ``x * factor + shift`` in double precision, as if nothing were clipped: (channels,).

        A curve counts as if it were straight: only the sign of the factor is right behind it.
        """
        factor, shift = np.ones((channels, 1)), np.zeros((channels, 1))
        for step in self.steps:
            if isinstance(step, Curve):
                continue
            by = 1.0 if step.factor is None else step.factor.astype(np.float64)
            factor, shift = factor * by, shift * by + (0.0 if step.shift is None else step.shift.astype(np.float64))
        return factor[:, 0], shift[:, 0]


def step_of(nodes: Nodes, node: NodeProto, source: str, rank: int) -> Step | None:
    """Return what a node does with one of the tensors it reads, ``None`` where it is no step.

    Args:
        nodes: the model.
        node: reads ``source`` and constants.
        source: a tensor of that rank, its channels on axis 1.
        rank: number of axes.
    """
    read: Callable[[int], Array | None] = lambda index: nodes.array(node.input[index])  # noqa: E731
    if node.op_type == "Relu":
        return AffineStep(low=0.0)
    if node.op_type == "Clip":
        ends = [read(index) if len(node.input) > index and node.input[index] else None for index in (1, 2)]
        if any(end is None and len(node.input) > i and node.input[i] for i, end in enumerate(ends, start=1)):
            return None
        return AffineStep(
            low=-np.inf if ends[0] is None else float(ends[0]), high=np.inf if ends[1] is None else float(ends[1])
        )
    if node.op_type == "BatchNormalization":
        arrays = [read(index) for index in range(1, 5)]
        if any(array is None for array in arrays):
            return None
        gamma, beta, mean, variance = (array.astype(np.float64) for array in arrays if array is not None)
        factor = (gamma / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))).astype(np.float32)
        return AffineStep(factor[:, None], (beta - mean * factor).astype(np.float32)[:, None])
    curve = curve_of(nodes, node)
    if curve is not None:
        return curve[0]
    if node.op_type not in _ARITHMETIC:
        return None
    other = 1 - list(node.input).index(source)
    value = read(other)
    if value is None or (node.op_type in ("Sub", "Div") and other == 0):
        return None
    value = _by_channel(value, rank)
    if value is None:
        return None
    if node.op_type == "Div":
        # By a power of two it is a multiplication; others round otherwise.
        inverse = (1 / value).astype(np.float32)
        return AffineStep(factor=inverse) if np.all(np.frexp(value)[0] == 0.5) else None
    return (
        AffineStep(factor=value)
        if node.op_type == "Mul"
        else AffineStep(shift=value if node.op_type == "Add" else -value)
    )


def _by_channel(value: Array, rank: int) -> Array | None:
    """Return a constant as (channels, 1) or (), where it is the same in all samples and places."""
    if value.dtype != np.float32:
        return None
    if value.size == 1:
        return value.reshape(())
    shape = (1,) * (rank - value.ndim) + value.shape
    alone = len(shape) == rank and all(size == 1 for axis, size in enumerate(shape) if axis != 1)
    return value.reshape(-1, 1) if alone else None


def is_increasing(nodes: Iterable[NodeProto]) -> bool:
    """Whether all nodes grow with what they read, as ``Relu`` and ``Clip`` do: they may change places with a pool."""
    return all(node.op_type in ENDS for node in nodes)
