"""What a quantizer of activations reads, as far as it can be computed in integers.

    Conv -> BatchNorm -> ReLU -> quantizer        one convolution of integers (`Convolved`), with SiLU as well
    quantizer, quantizer -> Add -> ReLU -> ...    one addition of integers (`Added`)
    ... -> MaxPool -> quantizer                   pooled after rounding, which is the same (`Moved`)
    ..., ... -> Concat -> quantizer               each branch by itself (`Joined`)
    all else                                      floats, then rounded (`Plain`)

What lies between must have no other reader who would want it in float. Where several quantizers read a tensor, as it is
or pooled, each has a convolution of its own: two of integers take less than one of floats and two roundings, unless the
weight needs nine bits.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from onnx import NodeProto

from nce_fx.export.integer.curves import curve_of
from nce_fx.export.integer.epilogue import AffineStep, Epilogue, Step, is_increasing, step_of
from nce_fx.export.integer.onnx_nodes import Nodes, attributes, is_activation

MOVES = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Slice", "DepthToSpace")
"""Operators that only choose among the values of their first input, with constants or shapes for the others."""


@dataclass(frozen=True)
class Plain:
    """A float tensor that a quantizer reads: ``Plain("input")``."""

    tensor: str


@dataclass(frozen=True)
class Convolved:
    """A convolution of integers with a quantized weight, and what follows: ``conv -> norm -> relu``."""

    node: NodeProto
    weight: str
    epilogue: Epilogue


@dataclass(frozen=True)
class Added:
    """A sum of two tensors of integers, and what follows: ``a + b -> relu``."""

    node: NodeProto
    epilogue: Epilogue


@dataclass(frozen=True)
class Moved:
    """A tensor that chooses among another's values: ``MaxPool`` of integers."""

    node: NodeProto
    inner: "Source"


@dataclass(frozen=True)
class Joined:
    """Several tensors of integers, side by side: ``Concat``."""

    node: NodeProto
    parts: "tuple[Source, ...]"
    bare: bool
    """Whether nothing lies between it and the quantizer, so that a part may come from a float tensor."""


Source = Plain | Convolved | Added | Moved | Joined


def convolutions(source: Source) -> Iterator[str]:
    """Yield the outputs of the convolutions that a source is computed from, such as ``"conv2d_3"``."""
    if isinstance(source, Convolved):
        yield source.node.output[0]
    for inner in source.parts if isinstance(source, Joined) else [source.inner] if isinstance(source, Moved) else []:
        yield from convolutions(inner)


def find_source(nodes: Nodes, tensor: str, integers: set[str], ranks: dict[str, int]) -> Source:
    """Return what a quantizer reads, such as a ``Convolved``; ``Plain`` where it is no sum of integers.

    Args:
        nodes: the model.
        tensor: what the quantizer reads.
        integers: the tensors before it that there are as integers.
        ranks: weight -> number of its axes.
    """
    if not _only_rounded(nodes, tensor):
        return Plain(tensor)
    return _follow(nodes, tensor, (), integers, ranks) or Plain(tensor)


def _follow(
    nodes: Nodes, tensor: str, chain: tuple[NodeProto, ...], integers: set[str], ranks: dict[str, int]
) -> Source | None:
    """Go up from a tensor that only ``chain`` and what follows it read; ``None``: in float."""
    node = nodes.writer.get(tensor)
    if node is None:
        return None
    source = _conv_or_sum(nodes, node, chain, integers, ranks)
    if source is not None:
        return source
    if chooses(node) and is_increasing(chain) and _private(nodes, node.input[0]):
        inner = _follow(nodes, node.input[0], chain, integers, ranks)
        return Moved(node, inner) if inner is not None else None
    if node.op_type == "Concat" and is_increasing(chain):
        parts = [_follow(nodes, name, chain, integers, ranks) if _private(nodes, name) else None for name in node.input]
        if not any(parts) or (chain and not all(parts)):
            return None
        settled = (part or Plain(name) for part, name in zip(parts, node.input, strict=True))
        return Joined(node, tuple(settled), bare=not chain)
    curve = curve_of(nodes, node)
    if curve is not None and curve[1] not in nodes.outputs and (node.op_type == "Mul" or _private(nodes, curve[1])):
        return _follow(nodes, curve[1], (node, *chain), integers, ranks)
    computed = [name for name in node.input if name and nodes.array(name) is None]
    if len(computed) == 1 and len(node.output) == 1 and _private(nodes, computed[0]):
        return _follow(nodes, computed[0], (node, *chain), integers, ranks)
    return None


def _conv_or_sum(
    nodes: Nodes, node: NodeProto, chain: tuple[NodeProto, ...], integers: set[str], ranks: dict[str, int]
) -> Source | None:
    if node.op_type == "Conv" and node.input[0] in integers:
        weight = nodes.weight(node.input[1])
        bias = nodes.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if weight is None or (bias is None and len(node.input) > 2 and node.input[2]):
            return None
        steps = _steps(nodes, node.output[0], chain, ranks[weight[0]])
        if steps is None:
            return None
        first = () if bias is None else (AffineStep(shift=bias.reshape(-1, 1)),)
        return Convolved(node, weight[0], Epilogue((*first, *steps)))
    if node.op_type == "Add" and all(name in integers for name in node.input) and is_increasing(chain):
        steps = _steps(nodes, node.output[0], chain, 4)
        return None if steps is None else Added(node, Epilogue(steps))
    return None


def _steps(nodes: Nodes, tensor: str, chain: tuple[NodeProto, ...], rank: int) -> tuple[Step, ...] | None:
    steps = []
    for node in chain:
        step = step_of(nodes, node, tensor, rank)
        if step is None:
            return None
        steps.append(step)
        tensor = node.output[0]
    return tuple(steps)


def chooses(node: NodeProto) -> bool:
    """Whether a node chooses among the values of its first input, as ``MaxPool`` does."""
    copies = node.op_type == "Pad" and attributes(node).get("mode", b"constant") != b"constant"
    return (node.op_type in MOVES or copies) and len(node.output) == 1


def _private(nodes: Nodes, tensor: str) -> bool:
    """Whether a tensor has one reader, which is how it was come by, or several of which none wants it in float."""
    return tensor not in nodes.outputs and (len(nodes.readers[tensor]) == 1 or _only_rounded(nodes, tensor))


def _only_rounded(nodes: Nodes, tensor: str) -> bool:
    """Whether quantizers are all that reads a tensor, as it is or what is chosen of it."""
    return tensor not in nodes.outputs and all(
        is_activation(reader)
        or (chooses(reader) and reader.input[0] == tensor and _only_rounded(nodes, reader.output[0]))
        for reader in nodes.readers.get(tensor, [])
    )
