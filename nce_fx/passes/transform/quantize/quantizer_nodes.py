"""Inserting quantizers as nodes of the graph.

    weight                  activation
      |                         |
    <layer>_weight_quant    <node>_activation_quant
      |                         |
      +-----> conv <------------+

A layer that was a module becomes the function on its parameters, which keep their names: ``layer1.0.conv1.weight`` is
read by the module ``layer1.0.conv1.weight_quant``, and the node between them and the convolution is called
``layer1_0_conv1_weight_quant``. Activation quantizers are modules of the root, named like their node.

A quantizer with an unsigned range clips at zero, so it *replaces* a ReLU before it where nobody else reads that ReLU's
output (as PACT was published: in the place of ReLU). It keeps the ReLU's name, ``<relu>_activation_quant``, says so in
its ``replaces``, and saves the memory of one activation. `RemoveQuantizers` puts the ReLU back.
"""

import copy
import warnings
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from nce_fx.by_mode import evaluating, is_by_mode
from nce_fx.errors import QuantizeError, where
from nce_fx.ops import table_of
from nce_fx.ops.additions import adds
from nce_fx.ops.liveness import memory_of, overwritten
from nce_fx.ops.sign import is_relu, never_negative
from nce_fx.ops.work import ancestors, source_parameters
from nce_fx.passes.transform.quantize.edited import called_layers, mark
from nce_fx.passes.transform.quantize.functional import as_function, module_weight
from nce_fx.passes.transform.quantize.hooked_weights import is_pruned, warn_of_zeros
from nce_fx.passes.transform.quantize.quantizable_layers import (
    QuantizableLayer,
    find_quantizable_layers,
    products_in_float,
    weight_argument,
    weight_layout,
)
from nce_fx.passes.transform.quantize.spec import QuantSpec
from nce_fx.passes.transform.quantize.stepwise import make_stepwise
from nce_fx.passes.transform.quantize.sums import SUM_BITS, add_apart, sum_operands
from nce_fx.paths import called, free_name, run_node, tensor_at
from nce_fx.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS, Quantizer
from nce_fx.quantizers.base import Replaced

_SHAPE_METHODS = ("size", "dim", "numel", "stride")
_SHAPE_ATTRIBUTES = ("shape", "ndim", "device", "dtype")


def insert_quantizers(gm: GraphModule, spec: QuantSpec) -> GraphModule:
    """Return a copy of the graph with quantizers where `spec` wants them.

    Raises:
        QuantizeError: a weight is not finite, or `spec` does not fit the model.
    """
    result = copy.deepcopy(gm)
    found = find_quantizable_layers(result, spec)
    for path, reason in products_in_float(result).items():
        warnings.warn(f"{path} is not quantized: {reason}", stacklevel=2)
    readers: dict[Node, dict[Node, int | None]] = {}
    for each in found:
        readers.setdefault(each.data, {})[each.node] = each.bits.activation
    memory = memory_of(result)
    if spec.sums == "int8" or (spec.shortcuts == "int8" and any(each.bits.activation for each in found)):
        _add_sums(result, spec, readers)
    # Signs are read off the float graph, before any ReLU is replaced.
    unsigned = {node: never_negative(result, node) for node in readers}
    for producer, layers in readers.items():
        # What is overwritten in between is another tensor for those who read it afterwards.
        by_writer: dict[Node | None, dict[Node, int | None]] = {}
        for node, bits in layers.items():
            by_writer.setdefault(memory.written(producer, node), {})[node] = bits
        asked = layers.keys() | by_writer.keys()
        free = [user for user in producer.users if user not in asked and _reads_quantized(user)]
        for writer, theirs in by_writer.items():
            # A quantizer that stands for a ReLU is new here.
            others = [user for user in free if memory.written(producer, user) is writer]
            _quantize_activation(result, spec, producer, theirs, others, unsigned[producer], writer)
    calls = called_layers(found)
    _quantize_weights(result, spec, found)
    mark(result, calls)
    if spec.exact:
        make_stepwise(result)
    result.graph.lint()
    result.recompile()
    return result


def in_float(gm: GraphModule) -> None:
    """Return if a graph has no quantizers.

    Raises:
        QuantizeError: it has.
    """
    if any(isinstance(module, Quantizer) for module in gm.modules()):
        raise QuantizeError("the graph is quantized already: take the quantizers out first, with RemoveQuantizers")


def _add_sums(gm: GraphModule, spec: QuantSpec, readers: dict[Node, dict[Node, int | None]]) -> None:
    """Let additions ask for quantized operands where no layer's quantizer serves them already."""
    for operand, additions in sum_operands(gm).items():
        layers = readers.get(operand, {})
        if spec.shortcuts != "quantized" or not any(layers.values()):
            readers.setdefault(operand, {}).update(dict.fromkeys(additions, SUM_BITS))
        for addition in additions:
            add_apart(addition)


def _quantize_activation(
    gm: GraphModule,
    spec: QuantSpec,
    producer: Node,
    layers: dict[Node, int | None],
    others: list[Node],
    unsigned: bool,
    writer: Node | None,
) -> None:
    """Quantize one tensor for those who read it, at the bits they ask for: one quantizer for each number of bits.

    Args:
        gm: the graph, which is changed.
        spec: which quantizers.
        producer: what makes the tensor.
        layers: the readers that ask for bits.
        others: the readers that take what the others read.
        unsigned: whether what the producer makes is never negative.
        writer: what has overwritten the tensor before these read it.
    """
    unsigned = unsigned and writer is None
    widths = sorted({bits for bits in layers.values() if bits is not None}, reverse=True)
    for index, bits in enumerate(widths):
        users = [node for node, asked in layers.items() if asked == bits]
        sums = all(adds(user) for user in users)
        if index == 0 and spec.shortcuts == "quantized" and not sums:
            users += others
        alone = len(widths) == 1 and set(users) == set(producer.users)
        replaced = _replaced(gm, producer) if unsigned and alone else None
        origin = "graph" if unsigned else "assumed"
        quantizer = ACTIVATION_QUANTIZERS[_kind(spec, bits, sums)](bits, not unsigned, origin, replaced)
        quantizer.exact, quantizer.ewgs = spec.exact, spec.ewgs
        if not _learns(gm, producer):
            quantizer.fix()
        made = f"{producer.name}_{writer.name}" if writer is not None else producer.name
        name = f"{made}_activation_quant" + (f"_{bits}" if index else "")
        node = _call_after(gm, producer, name, quantizer, writer)
        for user in users:
            user.replace_input_with(producer, node)
        if replaced is not None:
            node.replace_input_with(producer, producer.all_input_nodes[0])
            gm.graph.erase_node(producer)


def _kind(spec: QuantSpec, bits: int, sums: bool) -> str:
    """Return the name of the quantizer of a tensor.

    DoReFa's range ends at one, which is for what a layer reads: branches would be cut. Thresholds of 8 bits are many,
    and a sum of integers has even ones. A learned step of 8 bits wanders by factors in training, since every element
    pulls on it; on PACT's clip only what is clipped does.
    """
    if sums and spec.activation in ("dorefa", "n2uq"):
        return "pact"
    return "pact" if spec.activation == "lsq" and bits == SUM_BITS != spec.activation_bits else spec.activation


def _learns(gm: GraphModule, node: Node) -> bool:
    """Whether a value depends on a parameter; the model's input, and what is only moved or scaled of it, does not."""
    for current in ancestors([node]):
        if current.op == "call_module" and any(True for _ in gm.get_submodule(str(current.target)).parameters()):
            return True
        if current.op == "get_attr" and isinstance(computed_value(gm, current), nn.Parameter):
            return True
    return False


def _reads_quantized(user: Node) -> bool:
    """Whether a reader that is no layer takes the quantized tensor: all but the output and questions of shape."""
    if user.op == "call_method":
        return user.target not in _SHAPE_METHODS
    return user.op != "output" and not (user.target is getattr and user.args[1] in _SHAPE_ATTRIBUTES)


def _replaced(gm: GraphModule, relu: Node) -> Replaced | None:
    """Return how to bring back a ReLU that a quantizer can stand for, or ``None``."""
    if not is_relu(gm, relu) or len(relu.all_input_nodes) != 1 or not isinstance(relu.args[0], Node):
        return None
    module = gm.get_submodule(str(relu.target)) if relu.op == "call_module" else None
    in_place = bool(getattr(module, "inplace", False))
    if overwritten(gm, relu) and len(relu.all_input_nodes[0].users) > 1:
        return None  # whoever else reads its input reads what the ReLU made of it
    return Replaced(relu.name, relu.op, relu.target, tuple(relu.args[1:]), dict(relu.kwargs), in_place)


def _call_after(gm: GraphModule, source: Node, name: str, module: Quantizer, writer: Node | None) -> Node:
    """Register a quantizer of activations and call it on ``source``, directly after it or what has overwritten it."""
    gm.add_module(name, _alike(module, gm, next(gm.parameters(), None)))
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    with gm.graph.inserting_after(writer or (placeholders[-1] if source.op == "placeholder" else source)):
        node = gm.graph.create_node("call_module", name, (source,), name=name)
    return _described(node, source)


def _quantize_weights(gm: GraphModule, spec: QuantSpec, layers: tuple[QuantizableLayer, ...]) -> None:
    """Put quantizers between layers and their weights; the uses of one weight share one, at the most bits asked for."""
    bits: dict[Any, int] = {}
    for each in layers:
        if each.bits.weight is not None:
            key = _weight_key(gm, each)
            bits[key] = max(bits.get(key, 0), each.bits.weight)
    nodes: dict[Any, Node] = {}
    for each in layers:
        if each.bits.weight is None:
            continue
        key, node = _weight_key(gm, each), each.node
        if key not in nodes:
            nodes[key] = _weight_node(gm, spec, each, bits[key])
        if node.op == "call_module":
            as_function(gm, node, nodes[key])
        else:
            node.replace_input_with(weight_argument(node), nodes[key])


def _weight_key(gm: GraphModule, each: QuantizableLayer) -> Any:
    """What two uses of one weight have in common: the parameter's path, or the node that computes it."""
    if each.node.op == "call_module":
        op = table_of(gm).of(gm, each.node)
        return f"{each.path}.{op.weight if op else 'weight'}"
    weight = weight_argument(each.node)
    return str(weight.target) if weight.op == "get_attr" else weight


def _weight_node(gm: GraphModule, spec: QuantSpec, each: QuantizableLayer, bits: int) -> Node:
    """Read a weight and quantize it, directly before the layer that uses it first."""
    node = each.node
    layout = weight_layout(gm, each.layer)
    assert layout is not None
    if spec.exact and spec.weight == "minmax" and bits == 1:
        raise QuantizeError(
            f"the weight of {each.path} has no exact scale: minmax at 1 bit has its levels wherever the weights end; "
            "choose sawb, lsq or dorefa, or 2 bits"
        )
    quantizer = WEIGHT_QUANTIZERS[spec.weight](bits, layout.out_axis)
    quantizer.exact, quantizer.ewgs = spec.exact, spec.ewgs
    with gm.graph.inserting_before(node):
        pruned = node.op == "call_module" and is_pruned(gm.get_submodule(str(node.target)))
        if node.op == "call_module":
            weight, quantizer.layer = module_weight(gm, str(node.target))
        else:
            weight = weight_argument(node)
        value = computed_value(gm, weight)
        if not bool(value.isfinite().all()):
            raise QuantizeError(
                f"{each.path}: its weight has values that are not finite: quantize a model whose weights are numbers"
            )
        quantizer.start(value, _normalized(gm, node))
        if pruned:
            warn_of_zeros(each.path, value, quantizer.integers(value).dequantize())
        target = _free_target(gm, each)
        gm.add_submodule(target, _alike(quantizer, gm, value))
        created = gm.graph.create_node("call_module", target, (weight,), name=target.replace(".", "_"))
    return _described(created, weight, node)


def _normalized(gm: GraphModule, layer: Node) -> bool:
    """Whether whatever reads a layer's output is a normalization."""
    rows = [table_of(gm).nearest(gm, user) for user in layer.users]
    return bool(rows) and all(row is not None and row.kind == "norm" for row in rows)


def _free_target(gm: GraphModule, each: QuantizableLayer) -> str:
    """Where a weight quantizer lives: ``<layer>.weight_quant``, or ``<parameter>_quant`` of a raw parameter."""
    paths = each.layer.weights
    if not paths and each.node.op != "call_module":
        # A kernel that nobody trains: a buffer, or what the graph makes of nothing.
        paths = source_parameters(weight_argument(each.node))
    raw = each.node.op != "call_module" and not (paths and paths[0].endswith(".weight"))
    target = f"{each.path}_quant" if raw else f"{each.path}.weight_quant"
    owner, dot, name = target.rpartition(".")
    beside: nn.Module | None = gm
    for step in filter(None, owner.split(".")):
        beside = None if beside is None else beside._modules.get(step)
    return f"{owner}{dot}{free_name(name, () if beside is None else beside._modules)}"


def computed_value(gm: GraphModule, node: Node) -> Tensor:
    """Return the value in evaluation of a node that depends on no input: a weight, or what the graph makes of one.

    Raises:
        QuantizeError: the value depends on an input of the model.
    """
    if node.op == "get_attr":
        return tensor_at(gm, str(node.target))
    if node.op == "placeholder":
        raise QuantizeError(f"{where(node)} is an input of the model, not a weight")
    if is_by_mode(node):
        # What only training runs may write: the vectors of a spectral norm.
        return computed_value(gm, node.args[0])  # type: ignore[arg-type]
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda source: computed_value(gm, source))
    module = called(gm, node, nn.Module)
    with torch.no_grad(), nullcontext() if module is None else evaluating(module):
        return run_node(gm, node, args, kwargs)  # type: ignore[no-any-return]


def _alike(quantizer: Quantizer, gm: GraphModule, parameter: Tensor | None) -> Quantizer:
    """Bring a quantizer to the model's device and mode, and to its precision where that is double."""
    quantizer.train(gm.training)
    if parameter is None:
        return quantizer
    dtype = parameter.dtype if parameter.dtype == torch.float64 else torch.float32
    return quantizer.to(device=parameter.device, dtype=dtype)


def _described(node: Node, source: Node, layer: Node | None = None) -> Node:
    """Carry over what fx knows of a value that has the shape of its source."""
    if "tensor_meta" in source.meta:
        node.meta["tensor_meta"] = source.meta["tensor_meta"]
    node.stack_trace = (layer or source).stack_trace
    return node
