"""Taking quantizers out again: the float graph, with every parameter as it is now."""

import copy

from torch import nn
from torch.fx import GraphModule, Node

from nce_fx.ops.given_weight import call_with_weight
from nce_fx.passes.transform.quantize.edited import unmark
from nce_fx.passes.transform.quantize.functional import as_module, take_weight
from nce_fx.passes.transform.quantize.stepwise import make_plain
from nce_fx.quantizers import ActivationQuantizer, WeightQuantizer


def remove_quantizers(gm: GraphModule) -> GraphModule:
    """Return a copy of the graph without quantizers.

    ReLUs that quantizers stood for are back, layers that were modules are modules again, other layers stay functions;
    all parameters keep their names and values. Applied to a graph that was just quantized, it computes what the graph
    computed before, bit for bit.
    """
    result = copy.deepcopy(gm)
    result.meta.pop("spec", None)
    unmark(result)
    for node in list(result.graph.nodes):
        if node.op != "call_module":
            continue
        module = result.get_submodule(str(node.target))
        if isinstance(module, WeightQuantizer):
            _remove_weight(result, node, module)
        elif isinstance(module, ActivationQuantizer):
            _remove_activation(result, node, module)
    for name, module in list(result.named_modules()):
        if isinstance(module, (WeightQuantizer, ActivationQuantizer)):
            result.delete_submodule(name)
    make_plain(result)
    result.graph.lint()
    result.recompile()
    return result


def _remove_weight(gm: GraphModule, node: Node, quantizer: WeightQuantizer) -> None:
    weight, layers = node.args[0], list(node.users)
    assert isinstance(weight, Node)
    node.replace_all_uses_with(weight)
    gm.graph.erase_node(node)
    for layer in layers:
        if layer.target is call_with_weight:
            take_weight(gm, layer)
        elif quantizer.layer.module:
            left = [
                source for source in layer.all_input_nodes if source.op == "get_attr" or source.name.startswith("pad")
            ]
            as_module(gm, layer, weight, quantizer)
            for source in left:
                if not source.users:
                    gm.graph.erase_node(source)


def _remove_activation(gm: GraphModule, node: Node, quantizer: ActivationQuantizer) -> None:
    source = node.args[0]
    assert isinstance(source, Node)
    replaced = quantizer.replaces
    if replaced is not None:
        if replaced.op == "call_module":
            # Where a copy of the graph has dropped its owner as unused, one is made.
            gm.add_submodule(str(replaced.target), nn.ReLU(inplace=replaced.in_place))
        with gm.graph.inserting_before(node):
            relu = gm.graph.create_node(
                replaced.op, replaced.target, (source, *replaced.args), dict(replaced.kwargs), name=replaced.name
            )
        if "tensor_meta" in node.meta:
            relu.meta["tensor_meta"] = node.meta["tensor_meta"]
        relu.stack_trace = node.stack_trace
        source = relu
    node.replace_all_uses_with(source)
    gm.graph.erase_node(node)
