"""Layers of a quantized graph that their user has changed since: the graph follows, or says what to do.

A quantized layer is a function of its weight, and its module is there for its parameters alone: nothing calls it. So

    q.fc = nn.Linear(64, 7)             another layer in its place is called as any module is, in float
    prune.l1_unstructured(q.fc, ...)    a weight that a hook computes is computed in the graph
    q.fc.register_forward_hook(f)       any other hook would never run, which is said
    del q.fc                            is said when the graph runs
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn
from torch.fx import GraphModule, Node

from nce_fx.errors import QuantizeError
from nce_fx.ops.given_weight import call_with_weight
from nce_fx.ops.work import ancestors
from nce_fx.passes.transform.quantize.hooked_weights import computed_by_hook, weight_hook
from nce_fx.passes.transform.quantize.quantizable_layers import QuantizableLayer
from nce_fx.quantizers import WeightQuantizer
from nce_fx.tracing.shape_propagation import propagate_again
from nce_fx.up_to_date import BEFORE_CALL


class Layer(NamedTuple):
    """A layer that is a function now: its path, and the node that it read as a module: ``("fc", "flatten")``."""

    path: str
    data: str


FUNCTIONS = "functions"
"""In ``meta``: the name of each node that was the call of a layer -> the `Layer`."""
_MARK = "is_function"
"""The attribute of a module that is not called: its layer is a function of its parameters."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def called_layers(layers: Iterable[QuantizableLayer]) -> dict[Node, Layer]:
    """Return the layers that are calls of modules, by their nodes."""
    calls = [(each.node, each.node.all_input_nodes[0].name) for each in layers if each.node.op == "call_module"]
    return {node: Layer(str(node.target), data) for node, data in calls}


def mark(gm: GraphModule, called: Mapping[Node, Layer]) -> None:
    """Note which layers that were calls are functions now, so that `follow` sees another one in a place.

    A hook that is there already is said: it runs no more.
    """
    gm.meta[FUNCTIONS] = {node.name: layer for node, layer in called.items() if node.op == "call_function"}
    for layer in gm.meta[FUNCTIONS].values():
        module = gm.get_submodule(layer.path)
        vars(module)[_MARK] = True
        _warn_of_hooks(layer.path, module)
    gm.meta[BEFORE_CALL] = follow


def unmark(gm: GraphModule) -> None:
    """Forget what `mark` noted: the layers are modules again."""
    gm.meta.pop(BEFORE_CALL, None)
    for layer in gm.meta.pop(FUNCTIONS, {}).values():
        vars(gm.get_submodule(layer.path)).pop(_MARK, None)


def follow(gm: GraphModule) -> None:
    """Bring a quantized graph up to what its user has changed of its layers since; nothing to do where that is nothing.

    Raises:
        QuantizeError: a layer is gone.
    """
    layers: dict[str, Layer] = gm.meta[FUNCTIONS]
    changed = {name: layer for name, layer in layers.items() if _is_changed(gm, layer.path)}
    if not changed:
        return
    for node in [each for each in gm.graph.nodes if each.name in changed]:
        layer = changed[node.name]
        module = _module_at(gm, layer.path)
        if module is None:
            raise QuantizeError(
                f"{layer.path} is gone, and the graph still runs it: put another layer in its place, such as "
                f"gm.{layer.path} = torch.nn.Identity()"
            )
        if _MARK not in vars(module):
            _call(gm, node, layer)
        elif weight_hook(module) is not None:
            _compute(gm, layer.path)
            continue
        else:
            _warn_of_hooks(layer.path, module)
        del layers[node.name]
    gm.graph.lint()
    gm.recompile()
    propagate_again(gm)


def _module_at(gm: nn.Module, path: str) -> nn.Module | None:
    module: nn.Module | None = gm
    for name in path.split("."):
        module = None if module is None else module._modules.get(name)
    return module


def _is_changed(gm: GraphModule, path: str) -> bool:
    module = _module_at(gm, path)
    return module is None or _MARK not in module.__dict__ or any(module.__dict__[hooks] for hooks in _HOOKS)


def _call(gm: GraphModule, node: Node, layer: Layer) -> None:
    """Call the module in the place of a layer, in float, on what the layer has read."""
    more = node.args[4:] if node.target is call_with_weight else ()
    before = node.all_input_nodes
    data = next((source for source in ancestors(before) if source.name == layer.data), node.args[0])
    node.op, node.target, node.args, node.kwargs = "call_module", layer.path, (data, *more), {}
    for source in before:
        _erase(gm, source)


def _erase(gm: GraphModule, node: Node) -> None:
    """Take out a node that nobody reads any more, and what only it has read."""
    if node.users or node.op == "placeholder":
        return
    sources = node.all_input_nodes
    if node.op == "call_module" and isinstance(_module_at(gm, str(node.target)), WeightQuantizer):
        gm.delete_submodule(str(node.target))
    gm.graph.erase_node(node)
    for source in sources:
        _erase(gm, source)


def _compute(gm: GraphModule, path: str) -> None:
    """Compute the weight of a layer in the graph, as its hook would."""
    for node in [each for each in gm.graph.nodes if each.op == "get_attr" and each.target == f"{path}.weight"]:
        with gm.graph.inserting_before(node):
            weight = computed_by_hook(gm, path)
        node.replace_all_uses_with(weight)
        gm.graph.erase_node(node)


def _warn_of_hooks(path: str, module: nn.Module) -> None:
    hooks: Iterator[Any] = (hook for kind in _HOOKS for hook in vars(module)[kind].values())
    for hook in hooks:
        name = getattr(hook, "__qualname__", type(hook).__name__)
        warnings.warn(
            f"the hook {name} of {path} does not run: a quantized layer is a function of its weight, not the call of a "
            f"module; put it on {path}.weight_quant, on an activation quantizer, or on the graph in float",
            stacklevel=2,
        )
