"""Layers as functions on their parameters, and back as modules.

call_module conv(x)  <->  conv2d(x, <weight>, conv.bias, stride, padding, dilation, groups)
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.passes.shape_prop import _extract_tensor_metadata
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from nce_fx.errors import QuantizeError, where
from nce_fx.ops import OPS, WeightLayout, table_of
from nce_fx.ops.given_weight import call_with_weight
from nce_fx.ops.table import argument_names
from nce_fx.passes.transform.quantize.hooked_weights import computed_by_hook, weight_hook
from nce_fx.passes.transform.quantize.quantizable_layers import is_of_torch
from nce_fx.paths import read_at, tensor_of
from nce_fx.quantizers import WeightQuantizer
from nce_fx.quantizers.base import LayerKind

FUNCTIONS: dict[str, Callable[..., Any]] = {
    kind.__name__: getattr(F, row.name) for row in OPS if isinstance(row.quantize, WeightLayout) for kind in row.modules
}
"""Name of a module type in `torch.nn` -> the function it calls."""


def module_name(module: nn.Module) -> str:
    """Return which of the types in the table a module is."""
    return next(name for name in FUNCTIONS if isinstance(module, getattr(nn, name)))


def module_weight(gm: GraphModule, path: str) -> tuple[Node, LayerKind]:
    """Read the weight of a module in front of the insertion point, and tell what it takes to make the module again.

    A weight under `torch.nn.utils.parametrize` (weight_norm and the like), or one that an older hook computes, is
    computed in the graph from the parameters behind it; such a module stays a function for good.
    """
    module, graph = gm.get_submodule(path), gm.graph
    op = table_of(gm).of_module(module)
    if op is not None and not is_of_torch(op):
        return read_at(gm, f"{path}.{op.weight}"), LayerKind()
    if weight_hook(module) is not None:
        return computed_by_hook(gm, path), LayerKind()
    if not is_parametrized(module, "weight"):
        weight = read_at(gm, f"{path}.weight")
        kind = (module_name(module), getattr(module, "padding_mode", "zeros"), getattr(module, "padding", 0))
        return weight, LayerKind(*kind)
    behind = f"{path}.parametrizations.weight"
    listed = gm.get_submodule(behind)
    assert isinstance(listed, ParametrizationList)
    names = ["original"] if listed.is_tensor else [f"original{index}" for index in range(listed.ntensors)]
    values: tuple[Node, ...] = tuple(read_at(gm, f"{behind}.{name}") for name in names)
    for index in range(len(listed)):
        values = (graph.create_node("call_module", f"{behind}.{index}", values),)
    values[0].meta["tensor_meta"] = _extract_tensor_metadata(tensor_of(module, "weight").detach())
    return values[0], LayerKind()


def as_function(gm: GraphModule, node: Node, weight: Node) -> None:
    """Turn the call of a module into a call of its function, with ``weight`` in the place of its weight."""
    path = str(node.target)
    module = gm.get_submodule(path)
    op = table_of(gm).of_module(module)
    if op is not None and not is_of_torch(op):
        _give_weight(gm, node, weight, op.weight)
        return
    data = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(data, Node)
    with gm.graph.inserting_before(node):
        bias = None
        if module.bias is not None:
            bias = read_at(gm, f"{path}.bias")
        function = FUNCTIONS[module_name(module)]
        settings = {name: getattr(module, name) for name in _settings(function)}
        if "output_padding" in settings:
            settings["output_padding"] = _output_padding(node, data, module)
        elif getattr(module, "padding_mode", "zeros") != "zeros":
            sides = tuple(module._reversed_padding_repeated_twice)  # type: ignore[arg-type]
            data = _padded(gm, data, sides, str(module.padding_mode))
            settings["padding"] = (0,) * len(sides[::2])
    node.op, node.target = "call_function", function
    node.args, node.kwargs = (data, weight, bias, *settings.values()), {}


def _give_weight(gm: GraphModule, node: Node, weight: Node, name: str) -> None:
    """Call a module of the user's own with a weight from outside."""
    path = str(node.target)
    with gm.graph.inserting_before(node):
        module = gm.graph.create_node("get_attr", path, name=path.replace(".", "_"))
    data, *more = node.args
    node.op, node.target = "call_function", call_with_weight
    node.args = (data, weight, module, name, *more)


def take_weight(gm: GraphModule, node: Node) -> None:
    """Let a module of the user's own read the weight that it holds again."""
    data, weight, module, _, *more = node.args
    assert isinstance(module, Node)
    node.op, node.target, node.args = "call_module", str(module.target), (data, *more)
    for source in (weight, module):
        if isinstance(source, Node) and not source.users:
            gm.graph.erase_node(source)


def _settings(function: Any) -> tuple[str, ...]:
    """Return the names of the arguments of a layer's function after its bias."""
    return argument_names(OPS.spellings[function].signature)[3:]


def _padded(gm: GraphModule, data: Node, sides: tuple[int, ...], mode: str) -> Node:
    """Pad what a convolution reads as its module would by itself."""
    node = gm.graph.call_function(F.pad, (data, sides), {"mode": mode})
    meta = data.meta.get("tensor_meta")
    if meta is not None:
        value = torch.empty(tuple(meta.shape), dtype=meta.dtype, device="meta")
        node.meta["tensor_meta"] = _extract_tensor_metadata(F.pad(value, sides, mode=mode))
    return node


def repeats_values(node: Node) -> bool:
    """Whether a node pads with values that are there already, as `as_function` pads what a convolution reads."""
    return OPS.of_call(node.target) is OPS["pad"] and node.kwargs.get("mode", "constant") != "constant"


def as_module(gm: GraphModule, node: Node, weight: Node, quantizer: WeightQuantizer) -> None:
    """Turn a call made by `as_function` back into the call of a module that owns the same parameters."""
    path = str(weight.target).rpartition(".")[0]
    parameter, bias = gm.get_parameter(str(weight.target)), node.args[2]
    data = node.args[0]
    settings: dict[str, Any] = dict(zip(_settings(node.target), node.args[3:], strict=True))
    layout = OPS.spellings[node.target].quantize
    assert isinstance(data, Node)
    assert isinstance(layout, WeightLayout)
    options: dict[str, Any] = {"bias": bias is not None, "device": "meta", "dtype": parameter.dtype}
    if quantizer.layer.padding_mode != "zeros":
        data = data.all_input_nodes[0]
        settings |= {"padding": quantizer.layer.padding, "padding_mode": quantizer.layer.padding_mode}
    first, second, *kernel = parameter.shape
    ends = (first, second * settings.get("groups", 1))
    build = getattr(nn, quantizer.layer.module)
    sizes = (*(ends if layout.out_axis else reversed(ends)), *([tuple(kernel)] if kernel else []))
    module: nn.Module = build(*sizes, **options, **settings)
    module.weight = parameter
    if isinstance(bias, Node):
        module.bias = gm.get_parameter(str(bias.target))
    module.train(gm.training)
    for name, child in gm.get_submodule(path).named_children():
        module.add_module(name, child)
    gm.add_submodule(path, module)
    node.op, node.target = "call_module", path
    node.args, node.kwargs = (data,), {}


def _output_padding(node: Node, data: Node, module: Any) -> tuple[int, ...]:
    """What a transposed convolution adds on one side; from the traced shapes where it was asked for a size."""
    if len(node.args) < 2 and "output_size" not in node.kwargs:
        return tuple(module.output_padding)
    metas = [value.meta.get("tensor_meta") for value in (node, data)]
    if None in metas:
        raise QuantizeError(f"{where(node)} is asked for an output size: trace the model with example inputs")
    out, inputs = (tuple(meta.shape)[2:] for meta in metas)  # type: ignore[union-attr]
    least = (
        (inputs[i] - 1) * module.stride[i]
        - 2 * module.padding[i]
        + module.dilation[i] * (module.kernel_size[i] - 1)
        + 1
        for i in range(len(out))
    )
    return tuple(size - low for size, low in zip(out, least, strict=True))
