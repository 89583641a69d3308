"""What of a network runs in integers, decided before anything is written.

Forward: which tensors there are as integers, and what each quantizer reads. Backward, from the outputs: which of them
are wanted, as integers or as the exporter has them. A convolution whose quantizer is computed in integers is wanted by
nobody else, so its float form falls away, and with it the BatchNorm behind it.
"""

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import NodeProto

from nce_fx.export.integer import addition, convolution, few_rows, linear
from nce_fx.export.integer.counted import Counted, find_counted
from nce_fx.export.integer.linear import Linear
from nce_fx.export.integer.onnx_nodes import Nodes, is_activation, is_marker, marked
from nce_fx.export.integer.sources import (
    Added,
    Convolved,
    Joined,
    Moved,
    Plain,
    Source,
    chooses,
    convolutions,
    find_source,
)
from nce_fx.export.integer.tensors import IntegerTensor
from nce_fx.export.levels import WEIGHT, Marked
from nce_fx.export.onnx_names import reads

QUESTIONS = ("Shape", "Size")
"""Operators whose answer is the same for integers."""


@dataclass
class Partition:
    """Who computes in what; tensors by the exporter's names, such as ``"relu_activation_quant"``."""

    nodes: Nodes
    marked: Marked
    integers: dict[str, IntegerTensor] = field(default_factory=dict)
    """Tensors that there are as integers, or could be."""
    sources: dict[str, Source] = field(default_factory=dict)
    """Result of a quantizer -> what it reads."""
    fitted: dict[tuple[str, str], convolution.Fitted] = field(default_factory=dict)
    """(result of a convolution, result of a quantizer) -> the two in numbers."""
    sums: dict[tuple[str, str], addition.Sum] = field(default_factory=dict)
    """(result of an addition, result of a quantizer) -> how it is computed."""
    linear: dict[str, Linear] = field(default_factory=dict)
    """Result of a linear layer -> its numbers."""
    counted: dict[str, Counted] = field(default_factory=dict)
    """Result of a convolution of few products, wanted in float -> its numbers."""
    refused: dict[str, str] = field(default_factory=dict)
    """Result of a layer -> why it stays in float."""
    wanted: set[str] = field(default_factory=set)
    """Tensors wanted as the exporter has them."""
    wanted_integers: set[str] = field(default_factory=set)


def make_partition(nodes: Nodes, given: Marked) -> Partition:
    """Decide for every node of a model whether it is written in integers, and as what: a ``Partition``."""
    plan = Partition(nodes, given)
    ranks = {name: weight.integers.dim() for name, weight in given.weights.items()}
    read: list[tuple[NodeProto, Source]] = []
    for node in nodes.all:
        if is_activation(node):
            levels = given.activations[marked(node)]
            source = find_source(nodes, node.input[0], set(plan.integers), ranks)
            read.append((node, source))
            plan.sources[node.output[0]] = _settled(plan, source, node)
            plan.integers[node.output[0]] = IntegerTensor(marked(node), levels)
        elif moves(plan, node):
            plan.integers[node.output[0]] = plan.integers[node.input[0]].named(f"{node.output[0]}_integers")
        elif (few := find_counted(nodes, node, plan.integers, given.weights)) is not None:
            plan.counted[node.output[0]] = few
        else:
            found = linear.find_linear(nodes, node, plan.integers, given.weights)
            biased = linear.with_bias(nodes, node, plan.linear)
            if biased is not None:
                del plan.linear[biased.node.output[0]]
                plan.linear[node.output[0]] = biased
            elif isinstance(found, Linear):
                plan.linear[node.output[0]] = found
            elif found is not None:
                plan.refused[node.output[0]] = found
    _refuse_what_costs_more(plan)
    for node, source in read:
        # What one quantizer needs in float the others read, too: rounding is less work than another convolution.
        if any(output in plan.refused for output in convolutions(source)):
            plan.sources[node.output[0]] = _settled(plan, source, node)
    packed = {
        output: replace(layer, packed=True)
        for output, layer in plan.linear.items()
        if few_rows.suits(layer.shape, layer.weight, plan.integers[layer.node.input[0]])
    }
    if few_rows.come_from_memory(layer.weight for layer in packed.values()):
        plan.linear |= packed
    _want(plan)
    return plan


def _refuse_what_costs_more(plan: Partition) -> None:
    """Refuse convolutions of nine bits that several quantizers read: twice two of eight take longer than floats."""
    times = Counter(output for output, _ in plan.fitted)
    for (output, _), fitted in plan.fitted.items():
        if times[output] > 1 and not fitted.times:
            plan.refused[output] = "its weight needs nine bits as integers, and several quantizers read it"


def moves(plan: Partition, node: NodeProto) -> bool:
    """Whether a node only chooses among values of a tensor of integers, or pads with zeros: ``MaxPool``, ``Pad``."""
    if not node.input or node.input[0] not in plan.integers:
        return False
    if node.op_type == "Pad" and not chooses(node):
        value = plan.nodes.array(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(())
        return len(node.input) < 4 and value is not None and not value.any() and plan.integers[node.input[0]].whole == 1
    return chooses(node)


def _settled(plan: Partition, source: Source, quantizer: NodeProto) -> Source:
    """Return what a quantizer reads, with floats where integers would not be exact, or not possible."""
    levels, result = plan.marked.activations[marked(quantizer)], quantizer.output[0]
    if isinstance(source, Convolved):
        output = source.node.output[0]
        if output in plan.refused:
            plan.fitted.pop((output, result), None)
            return Plain("")
        weight, tensor = plan.marked.weights[source.weight], plan.integers[source.node.input[0]]
        fitted = convolution.fit_convolution(source, weight, tensor, levels, exact=plan.marked.exact)
        if isinstance(fitted, str):
            plan.refused[output] = fitted
            return Plain("")
        plan.fitted[output, result] = fitted
    if isinstance(source, Added):
        first, second = (plan.integers[name] for name in source.node.input)
        if levels.thresholds:
            plan.refused[source.node.output[0]] = convolution.THRESHOLDS
            return Plain("")
        how = addition.fit_sum(first, second, source.epilogue, levels, exact=plan.marked.exact)
        if how is None:
            plan.refused[source.node.output[0]] = "some pairs of integers would be rounded otherwise than in PyTorch"
            return Plain("")
        plan.sums[source.node.output[0], result] = how
    if isinstance(source, Moved):
        inner = _settled(plan, source.inner, quantizer)
        source = replace(source, inner=inner) if inner != Plain("") else Plain("")
    if isinstance(source, Joined):
        parts = tuple(_settled(plan, part, quantizer) for part in source.parts)
        if not source.bare and Plain("") in parts:
            return Plain("")
        kept = (part if part != Plain("") else Plain(n) for part, n in zip(parts, source.node.input, strict=True))
        source = replace(source, parts=tuple(kept))
    return source


def _want(plan: Partition) -> None:
    """Go up from the outputs."""
    plan.wanted |= plan.nodes.outputs
    for node in reversed(plan.nodes.all):
        if not any(name in plan.wanted or name in plan.wanted_integers for name in node.output):
            continue
        first = node.input[0] if node.input else ""
        if is_activation(node):
            _want_source(plan, plan.sources[node.output[0]], first)
        elif is_marker(node, WEIGHT):
            continue
        elif node.output[0] in plan.linear or node.output[0] in plan.counted:
            layer = plan.linear.get(node.output[0]) or plan.counted[node.output[0]]
            plan.wanted_integers.add(layer.node.input[0])
            plan.wanted.update(filter(None, [layer.bias]))
        elif moves(plan, node) or (node.op_type in QUESTIONS and first in plan.integers):
            plan.wanted_integers.add(first)
            plan.wanted.update(name for name in node.input[1:] if name)
        else:
            plan.wanted.update(reads(node))


def _want_source(plan: Partition, source: Source, tensor: str) -> None:
    if isinstance(source, Plain):
        plan.wanted.add(source.tensor or tensor)
    elif isinstance(source, (Convolved, Added)):
        plan.wanted_integers.update(source.node.input[: 1 if isinstance(source, Convolved) else 2])
    elif isinstance(source, Moved):
        plan.wanted.update(name for name in source.node.input[1:] if name)
        _want_source(plan, source.inner, "")
    else:
        for part in source.parts:
            _want_source(plan, part, "")
