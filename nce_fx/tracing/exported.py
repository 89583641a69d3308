"""torch.export's graph, its ops put back into the user's modules where they came from one.

Export writes the mode and the batch size into the graph. Here the batch is made free again, and BatchNorm, dropout and
their like become the user's modules again, so that training and eval mode both work.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from torch.fx import GraphModule, Node

aten = torch.ops.aten

_RAISED: dict[Any, tuple[type[nn.Module], ...]] = {
    aten.batch_norm.default: (nn.modules.batchnorm._BatchNorm,),
    aten.dropout.default: (nn.Dropout,),
    aten.feature_dropout.default: (nn.Dropout2d,),
}


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def export_graph(model: nn.Module, example_inputs: tuple[Any, ...]) -> GraphModule:
    """Return the exported graph of a model in eval mode, on the model's own parameters.

    Raises:
        Exception: whatever torch.export raises.
    """
    with evaluating(model):
        program = _export(model, example_inputs)
    gm = program.module(check_guards=False)
    assert isinstance(gm, GraphModule)
    _share(gm, model)
    _inline_contexts(gm)
    _drop_guards(gm)
    _raise_modules(gm, model)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return _plain(gm, type(model).__name__)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and every module of it back into its own afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _export(model: nn.Module, example_inputs: tuple[Any, ...]) -> Any:
    """Export with a free batch where the model allows it."""
    batched = tuple(
        torch.cat([v, v]) if isinstance(v, torch.Tensor) and v.dim() and v.shape[0] == 1 else v for v in example_inputs
    )
    free = tuple({0: Dim.AUTO} if isinstance(v, torch.Tensor) and v.dim() else None for v in batched)
    # With gradients on, torch's transformer layers take their plain path, not the one that is fused for inference.
    with torch.enable_grad(), _quietly():
        try:
            return torch.export.export(model, batched, dynamic_shapes=free, strict=False)
        except Exception:
            return torch.export.export(model, example_inputs, strict=False)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep back what torch.export prints of a model that it does not take; the error says it in one line."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        logging.disable(before)


def _share(gm: GraphModule, model: nn.Module) -> None:
    """Let the graph hold the model's own parameters and buffers, not copies."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner, _, leaf = name.rpartition(".")
        try:
            holder = gm.get_submodule(owner)
        except AttributeError:
            continue
        if leaf in holder._parameters:
            holder._parameters[leaf] = parameter


def _inline_contexts(gm: GraphModule) -> None:
    """Put what runs under a context that changes nothing into the graph itself.

    A disabled autocast changes nothing where none is enabled; gradients kept off change nothing where no parameter
    takes part.
    """
    for node in list(gm.graph.nodes):
        kind = type(node.target).__name__
        first = {"WrapWithAutocast": 4, "WrapWithSetGradEnabled": 1}.get(kind)
        if first is None or node.args[first - 1 if kind == "WrapWithSetGradEnabled" else 2] is not False:
            continue
        inner, given = getattr(gm, node.args[first].target), node.args[first + 1 :]
        if kind == "WrapWithSetGradEnabled" and _from_parameters(gm, given):
            continue
        _inline_contexts(inner)
        inner.graph.eliminate_dead_code()
        if any(n.op == "get_attr" for n in inner.graph.nodes):
            continue
        places = (n for n in inner.graph.nodes if n.op == "placeholder")
        with gm.graph.inserting_before(node):
            result = gm.graph.graph_copy(inner.graph, dict(zip(places, given, strict=True)))
        for user in list(node.users):
            if user.target is operator.getitem and isinstance(result, list | tuple):
                user.replace_all_uses_with(result[user.args[1]])
                gm.graph.erase_node(user)
        if not isinstance(result, list | tuple):
            node.replace_all_uses_with(result)
        if not node.users:
            gm.graph.erase_node(node)


def _from_parameters(gm: GraphModule, values: Iterable[Any]) -> bool:
    """Whether any of these values is computed from a parameter."""
    ahead, seen = [v for v in values if isinstance(v, Node)], set()
    parameters = {name for name, _ in gm.named_parameters(remove_duplicate=False)}
    while ahead:
        node = ahead.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "call_module" or (node.op == "get_attr" and str(node.target) in parameters):
            return True
        ahead.extend(node.all_input_nodes)
    return False


def _drop_guards(gm: GraphModule) -> None:
    for node in list(gm.graph.nodes):
        guard = node.op == "call_module" and "_guards" in str(node.target)
        if guard or node.target in (aten._assert_scalar.default, aten._assert_tensor_metadata.default):
            node.replace_all_uses_with(None)
            gm.graph.erase_node(node)


def _module_path(node: Node) -> str:
    """Return the path of the innermost module that the node was made in."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in stack.values()]
    return paths[-1] if paths else ""


def _raise_modules(gm: GraphModule, model: nn.Module) -> None:
    modules = dict(model.named_modules())
    for node in list(gm.graph.nodes):
        kinds = _RAISED.get(node.target)
        if kinds is None:
            continue
        path = _module_path(node)
        module = _itself(modules.get(path), kinds)
        if module is None:
            if node.target is aten.dropout.default:
                module, path = nn.Dropout(node.args[1]), f"{node.name}_module"
            else:
                continue
        _place(gm, path, module)
        with gm.graph.inserting_before(node):
            raised = gm.graph.call_module(path, (node.args[0],))
        raised.meta = dict(node.meta)
        node.replace_all_uses_with(raised)
        gm.graph.erase_node(node)


def _itself(module: nn.Module | None, kinds: tuple[type[nn.Module], ...]) -> nn.Module | None:
    """Return the module where it does what its op does and no more.

    A BatchNorm with an activation inside gives a plain one on the same parameters and statistics: the activation is a
    node of its own already.
    """
    kind = next((kind for kind in kinds if isinstance(module, kind)), None)
    if module is None or kind is None or type(module).forward is kind.forward:
        return module if kind is not None else None
    plain = next((each for each in type(module).__mro__ if each in _BATCH_NORMS), None)
    if plain is None:
        return None
    result = plain.__new__(plain)
    result.__dict__ = dict(module.__dict__)
    result._modules = {}
    return result


def _place(gm: GraphModule, path: str, module: nn.Module) -> None:
    """Put a module where it was in the model."""
    owner: nn.Module = gm
    *parents, leaf = path.split(".")
    for name in parents:
        if not isinstance(getattr(owner, name, None), nn.Module):
            owner.add_module(name, nn.Module())
        owner = getattr(owner, name)
    owner._modules[leaf] = module


def _plain(gm: GraphModule, name: str) -> GraphModule:
    """Return the same graph as a plain GraphModule: structured inputs and outputs stay with the graph's code."""
    result = GraphModule(gm, gm.graph, name)
    result.meta.clear()
    return result
