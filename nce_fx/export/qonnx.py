"""QONNX as FPGA flows take it: what FINN's conversion and hls4ml's reader ask of a graph beside its Quant nodes.

    unsigned Quant       behind a Relu of its own, which is what both make of the pair; the quantizer had replaced it,
                         or a shortcut's reads it, too, and FINN takes it away with the first of them
    Clip(0, 6) -> Quant  a Relu, where the quantizer ends before the clip does
    Clip                 that no quantizer replaces: sums, products and a Relu for each end, all of one number
    ReduceMean           over the last two axes: GlobalAveragePool
    Gemm                 with a bias, of zeros where the layer has none

None of these changes a value, but for what float32 rounds from sums of a Clip's size. That a weight's Quant has no zero
point, and its consumer for the only reader, is seen to in `nce_fx.export.formats`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from nce_fx.export.levels import ActivationLevels
from nce_fx.export.onnx_names import drop_unread, reads


def suit_flows(model: ModelProto, activations: Mapping[str, ActivationLevels]) -> None:
    """Change a graph with Quant nodes, in place.

    Args:
        model: the graph; a quantizer of activations is a Quant node named as it is.
        activations: by those names.
    """
    writer = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    readers = Counter(name for node in model.graph.node for name in reads(node))
    readers.update(value.name for value in model.graph.output)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "Quant" and node.name in activations and activations[node.name].grid.low == 0:
            alone = readers[node.input[0]] == 1
            nodes.extend(_behind_relu(node, writer, constants, activations[node.name], alone=alone))
        elif node.op_type == "ReduceMean":
            nodes.extend(_pooled(node, constants))
        elif node.op_type == "Gemm" and len(node.input) < 3 and (bias := _no_bias(node, constants)) is not None:
            model.graph.initializer.append(bias)
            node.input.append(bias.name)
            nodes.append(node)
        else:
            nodes.append(node)
    read = {name for node in nodes for name in reads(node)} | {value.name for value in model.graph.output}
    del model.graph.node[:]
    for node in nodes:
        if node.op_type not in ("Clip", "Relu") or node.output[0] in read:
            model.graph.node.extend(_of_relus(node, constants, model.graph.initializer))
    drop_unread(model)


def _behind_relu(
    node: NodeProto,
    writer: Mapping[str, NodeProto],
    constants: Mapping[str, TensorProto],
    levels: ActivationLevels,
    *,
    alone: bool,
) -> Iterator[NodeProto]:
    """Yield an unsigned Quant, and a Relu before it where there is none that it alone reads."""
    before = writer.get(node.input[0])
    if before is None or before.op_type != "Relu" or not alone:
        source = node.input[0]
        if before is not None and (before.op_type == "Relu" or _ends_later(before, constants, levels)):
            source = before.input[0]
        relu = f"{node.name}_relu"
        yield helper.make_node("Relu", [source], [relu], name=relu)
        node.input[0] = relu
    yield node


def _ends_later(node: NodeProto, constants: Mapping[str, TensorProto], levels: ActivationLevels) -> bool:
    """Whether a node clips from zero to where the highest level is, or beyond it."""
    if node.op_type != "Clip" or len(node.input) < 3 or not all(name in constants for name in node.input[1:]):
        return False
    low, high = (float(numpy_helper.to_array(constants[name])) for name in node.input[1:])
    return low == 0 and high > (levels.grid.high - 0.5) * levels.scale


def _of_relus(node: NodeProto, constants: Mapping[str, TensorProto], more: Any) -> Iterator[NodeProto]:
    """Yield what a Clip computes as Relu and as sums and products with one number, constants added to ``more``."""
    named = list(filter(None, node.input[1:])) if node.op_type == "Clip" else []
    ends = {name: numpy_helper.to_array(constants[name]) for name in named if name in constants}
    if not named or len(ends) < len(named) or not all(e.dtype == np.float32 and np.isfinite(e) for e in ends.values()):
        yield node
        return
    low, high = (ends.get(name) for name in (*node.input, "")[1:3])
    steps: list[tuple[str, Any]] = []
    if low is not None:
        steps += [("Add", -low), ("Relu", None)]
    if high is not None:
        steps += [("Mul", -1), ("Add", high if low is None else high - low), ("Relu", None), ("Mul", -1), ("Add", high)]
    else:
        steps.append(("Add", low))
    steps = [(op, value) for op, value in steps if op != "Add" or value != 0]
    last = node.input[0]
    for index, (op, value) in enumerate(steps):
        result = node.output[0] if index == len(steps) - 1 else f"{node.output[0]}_step_{index}"
        if value is None:
            made = helper.make_node(op, [last], [result], name=result)
        else:
            more.append(numpy_helper.from_array(np.array(value, np.float32), f"{node.output[0]}_number_{index}"))
            made = helper.make_node(op, [last, more[-1].name], [result], name=result)
        made.metadata_props.extend(node.metadata_props)
        yield made
        last = result


def _pooled(node: NodeProto, constants: Mapping[str, TensorProto]) -> Iterator[NodeProto]:
    """Yield a mean over an image as a pool."""
    settings = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    axes = (
        numpy_helper.to_array(constants[node.input[1]]).tolist()
        if node.input[1:2] and node.input[1] in constants
        else []
    )
    if sorted(axes) not in ([2, 3], [-2, -1]):
        yield node
        return
    keeps = settings.get("keepdims", 1)
    pooled = node.output[0] if keeps else f"{node.output[0]}_pooled"
    pool = helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name if keeps else pooled)
    pool.metadata_props.extend(node.metadata_props)
    yield pool
    if not keeps:
        flat = helper.make_node("Flatten", [pooled], [node.output[0]], name=node.name, axis=1)
        flat.metadata_props.extend(node.metadata_props)
        yield flat


def _no_bias(node: NodeProto, constants: Mapping[str, TensorProto]) -> TensorProto | None:
    weight = next((constants[name] for name in (f"{node.input[1].removesuffix('_quant')}",) if name in constants), None)
    if weight is None:
        return None
    turned = any(entry.name == "transB" and entry.i for entry in node.attribute)
    return numpy_helper.from_array(np.zeros(weight.dims[0 if turned else 1], np.float32), f"{weight.name}_no_bias")
