"""From a plan to the nodes of the file."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from nce_fx.export.integer import addition, convolution, counted, linear
from nce_fx.export.integer.onnx_nodes import Array, Nodes, Writer, is_activation, is_marker, marked
from nce_fx.export.integer.partition import QUESTIONS, Partition, make_partition, moves
from nce_fx.export.integer.sources import MOVES, Added, Convolved, Joined, Moved, Plain, Source, chooses
from nce_fx.export.integer.tensors import IntegerTensor, dequantize, write_clip
from nce_fx.export.integer.weights import write_float
from nce_fx.export.levels import WEIGHT, ActivationLevels, Marked
from nce_fx.export.onnx_names import owner, reads, rename_in
from nce_fx.export.thresholds import count_below


@dataclass(frozen=True)
class Lowered:
    """What became of a network: ``Lowered(float_nodes={"fc": "its input is float"})``."""

    float_nodes: Mapping[str, str] = field(default_factory=dict)
    """Node that computes in float -> why, in words."""
    misses: Mapping[str, int] = field(default_factory=dict)
    """Quantizer -> rises of its levels that are at another sum than in PyTorch; those that have any."""
    activations: Mapping[str, ActivationLevels] = field(default_factory=dict)
    """Tensor of integers, named as its quantizer -> the levels."""
    computed: frozenset[str] = frozenset()
    """Those of them that are computed from integers alone, and all of whose levels rise where they do in PyTorch."""

    def floats(self, name: str, values: Array) -> Array:
        """Return a tensor of the file as PyTorch has it: ``(number + low + offset) * scale`` where it holds numbers."""
        if name not in self.activations:
            return values
        low, _, offset = self.activations[name].grid
        numbers = values.astype(np.float32) + np.float32(low) + np.float32(offset)
        return numbers * np.float32(self.activations[name].scale)


def lower(model: ModelProto, given: Marked) -> Lowered:
    """Replace nodes of a marked model by those that compute in integers, ``QLinearConv`` say, where that is exact."""
    nodes = Nodes(model)
    plan = make_partition(nodes, given)
    writer = Writer()
    names: dict[str, str] = {}
    for node in nodes.all:
        _write_node(writer, plan, node, names)
    read = {name for node in writer.nodes for name in reads(node)}
    kept = [tensor for name, tensor in nodes.constants.items() if name in read or name in nodes.outputs]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(writer.nodes)
    model.graph.initializer.extend([*kept, *(tensor for name, tensor in writer.constants.items() if name in read)])
    for output in model.graph.output:
        output.name = names.get(output.name, output.name)
    done = {marked(nodes.writer[t]) for t in plan.sources if t in plan.wanted or t in plan.wanted_integers}
    misses = {
        marked(nodes.writer[quantizer]): int(fitted.requantization.misses.sum())
        for (_, quantizer), fitted in plan.fitted.items()
    }
    return Lowered(
        float_nodes(plan),
        {name: count for name, count in misses.items() if count},
        {name: given.activations[name] for name in done},
        frozenset(
            name
            for tensor, source in plan.sources.items()
            if (name := marked(nodes.writer[tensor])) in done and not misses.get(name) and _in_integers(source)
        ),
    )


def _in_integers(source: Source) -> bool:
    if isinstance(source, Moved):
        return _in_integers(source.inner)
    return all(map(_in_integers, source.parts)) if isinstance(source, Joined) else not isinstance(source, Plain)


def _write_node(writer: Writer, plan: Partition, node: NodeProto, names: dict[str, str]) -> None:
    """Write what is wanted of a node; ``names``: the exporter's name of a tensor -> the file's, where it differs."""
    output = node.output[0] if node.output else ""
    as_is, in_numbers = output in plan.wanted, output in plan.wanted_integers
    if is_activation(node):
        if as_is or in_numbers:
            tensor = plan.integers[output]
            _write_source(writer, plan, plan.sources[output], node, tensor, names)
            if as_is:
                names[output] = dequantize(writer, tensor, f"{tensor.name}_float", plain=_read_by_a_layer(plan, output))
    elif is_marker(node, WEIGHT):
        if as_is:
            names[output] = write_float(writer, marked(node), plan.marked.weights[marked(node)])
    elif moves(plan, node):
        if as_is or in_numbers:
            tensor = plan.integers[output]
            _copy(writer, node, names, [plan.integers[node.input[0]].name], tensor.name)
            if node.op_type == "Pad" and not chooses(node):
                del writer.nodes[-1].input[2:]
                writer.nodes[-1].input.append(writer.number(np.uint8(tensor.zero)))
            if as_is:
                dequantize(writer, tensor, output, plain=_read_by_a_layer(plan, output))
    elif output in plan.linear:
        if as_is:
            linear.write(writer, plan.linear[output], plan.integers[plan.linear[output].node.input[0]])
    elif output in plan.counted:
        if as_is:
            counted.write(writer, plan.counted[output], plan.integers[node.input[0]])
    elif any(name in plan.wanted for name in node.output):
        asks = node.op_type in QUESTIONS and node.input[0] in plan.integers
        _copy(writer, node, names, [plan.integers[node.input[0]].name] if asks else [], "")
        added = node.op_type == "Add" and all(name in plan.integers for name in node.input)
        if added:
            # onnxruntime would make an addition of integers of it, which rounds otherwise.
            writer.nodes[-1].op_type = "Sum"
        if node.op_type == "Conv" and plan.marked.exact:
            _keep_apart(writer, output)


def _keep_apart(writer: Writer, output: str) -> None:
    """Write a clip that clips nothing behind a convolution of floats, which runs as one with it.

    onnxruntime would multiply its weight with the factor of a BatchNorm; sums of such products are not exact.
    """
    writer.nodes[-1].output[0] = f"{output}_sums"
    writer.node("Clip", [f"{output}_sums", writer.constant("least_float", np.finfo(np.float32).min)], output)


def _read_by_a_layer(plan: Partition, tensor: str) -> bool:
    """Whether a layer that computes in float reads a tensor."""
    readers = plan.nodes.readers.get(tensor, [])
    return any(node.op_type in LAYERS and node.output[0] in plan.wanted for node in readers)


def _copy(writer: Writer, node: NodeProto, names: Mapping[str, str], first: list[str], result: str) -> None:
    """Write a node of the exporter, with other names for what it reads first and what it writes."""
    made = NodeProto()
    made.CopyFrom(node)
    rename_in(made, names)
    made.input[: len(first)] = first
    if result:
        made.output[0] = result
    writer.add(made)


def _write_source(
    writer: Writer, plan: Partition, source: Source, marker: NodeProto, tensor: IntegerTensor, names: dict[str, str]
) -> None:
    """Write a quantizer of activations and what it reads, the numbers under the tensor's name."""
    levels, result = tensor.levels, tensor.name
    if isinstance(source, Plain):
        wanted = source.tensor or marker.input[0]
        _quantize(writer, names.get(wanted, wanted), tensor)
    elif isinstance(source, Convolved):
        fitted = plan.fitted[source.node.output[0], marker.output[0]]
        convolution.write(writer, fitted, plan.integers[source.node.input[0]], levels, result)
    elif isinstance(source, Added):
        first, second = (plan.integers[name] for name in source.node.input)
        how = plan.sums[source.node.output[0], marker.output[0]]
        addition.write(writer, source.node, (first, second), how, source.epilogue, levels, result)
    elif isinstance(source, Moved):
        inner = tensor.named(writer.free(f"{result}_before"))
        _write_source(writer, plan, source.inner, marker, inner, names)
        _copy(writer, source.node, names, [inner.name], result)
    else:
        parts = [tensor.named(f"{result}_{index}") for index in range(len(source.parts))]
        for part, inner in zip(source.parts, parts, strict=True):
            _write_source(writer, plan, part, marker, inner, names)
        _copy(writer, source.node, names, [part.name for part in parts], result)


def _quantize(writer: Writer, source: str, tensor: IntegerTensor) -> None:
    """Write a quantizer of floats, with PyTorch's arithmetic."""
    grid, name = tensor.levels.grid, tensor.name
    if tensor.levels.thresholds:
        nodes, constants = count_below(name, tensor.levels, source, name, TensorProto.UINT8)
        for node in nodes:
            writer.add(node)
        writer.constants |= {constant.name: constant for constant in constants}
        return
    scale = writer.constant(f"{name}_step", np.float32(tensor.levels.scale))
    if grid.offset:
        source = writer.node("Div", [source, scale], f"{name}_steps")
        source = writer.node(
            "Sub", [source, writer.constant(f"{name}_offset", np.float32(grid.offset))], f"{name}_centred"
        )
        scale = writer.constant("float_1", np.float32(1))
    point = writer.number(np.uint8(-grid.low))
    whole = tensor.most == 255
    made = writer.node("QuantizeLinear", [source, scale, point], name if whole else f"{name}_wide")
    if not whole:
        write_clip(writer, made, name, 0, tensor.most)


LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FREE = {*MOVES, *QUESTIONS, "Constant", "Cast", "Concat", "Split", "Gather", "Expand", "Range", "ConstantOfShape"}
"""Operators that compute nothing."""


def float_nodes(plan: Partition) -> dict[str, str]:
    """Return every node that computes in float -> why: ``{"fc": "its input is not quantized"}``."""
    found: dict[str, tuple[str, str]] = {}
    for node in plan.nodes.all:
        output = node.output[0] if node.output else ""
        if output not in plan.wanted or is_activation(node) or is_marker(node, WEIGHT) or node.op_type in _FREE:
            continue
        if output in plan.linear or output in plan.counted or moves(plan, node):
            continue
        reason = _layer(plan, node) if node.op_type in LAYERS else _other(plan, node)
        if reason:
            name = owner(node) or output
            operators = found[name][0] + ", " if name in found else ""
            found[name] = operators + node.op_type, reason
    return {name: f"{operators}: {reason}" for name, (operators, reason) in found.items()}


def _layer(plan: Partition, node: NodeProto) -> str:
    output = node.output[0]
    if output in plan.refused:
        return plan.refused[output]
    if plan.nodes.weight(node.input[1]) is None:
        return "its weight is not quantized, or it has none"
    if node.op_type == "ConvTranspose":
        return "onnxruntime has none of integers"
    if node.input[0] not in plan.integers:
        return "its input is not quantized"
    return _reader(plan, output)


def _reader(plan: Partition, tensor: str) -> str:
    """Say who wants a convolution's output in float."""
    while True:
        readers = plan.nodes.readers.get(tensor, [])
        if tensor in plan.nodes.outputs:
            return "its output is the network's"
        if len(readers) != 1 or is_activation(readers[0]):
            names = ", ".join(dict.fromkeys(owner(reader) or reader.op_type for reader in readers))
            return f"several read it: {names}" if len(readers) > 1 else "what lies behind it is no staircase"
        (node,) = readers
        if (
            node.op_type not in ("BatchNormalization", "Relu", "Clip", "Mul", "Add")
            or len([name for name in node.input if name and plan.nodes.array(name) is None]) > 1
        ):
            hint = ', which sums="int8" quantizes' if node.op_type == "Add" else ""
            return f"{owner(node) or node.op_type} ({node.op_type}) reads it in float{hint}"
        tensor = node.output[0]


def _other(plan: Partition, node: NodeProto) -> str:
    computed = [name for name in node.input if name and plan.nodes.array(name) is None]
    if not any(name in plan.wanted for name in computed):
        return ""
    if node.output[0] in plan.refused:
        return plan.refused[node.output[0]]
    if node.op_type != "Add" or len(computed) < 2:
        return "computed as in PyTorch"
    quantized = all(name in plan.integers for name in computed)
    return "its output is not quantized" if quantized else 'it reads a float, which sums="int8" quantizes'
