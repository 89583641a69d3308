"""torch.export's graph, its ops put back into the user's modules where they came from one.

Export writes the mode and the batch size into the graph. Here the batch is made free again, and BatchNorm, dropout and
their like become the user's modules again, so that training and eval mode both work.
"""

import operator
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export._unlift import _StatefulGraphModule
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen
from torch.utils._pytree import tree_leaves, tree_map, tree_unflatten
from torch.utils._sympy.numbers import int_oo

from nce_fx.batches import FIXED_SIZE
from nce_fx.ops import Op, Ops
from nce_fx.ops.liveness import has_an_effect
from nce_fx.ops.spellings import in_place
from nce_fx.ops.table import default
from nce_fx.traced import TracedModule
from nce_fx.tracing.checks import CHECKS
from nce_fx.tracing.equivalence import agrees
from nce_fx.tracing.exporting import Exported, is_of_ids
from nce_fx.tracing.gradients import mark
from nce_fx.tracing.inputs import Inputs
from nce_fx.tracing.modes import module_by_mode
from nce_fx.tracing.symbolic import UntraceableError

_LONGEST = 4096
"""Sequences are tried up to this length."""


def export_graph(
    model: nn.Module,
    inputs: Inputs,
    exported: Exported,
    ops: Ops | None = None,
    *,
    one_of_two: bool = False,
    lengths: bool = False,
) -> GraphModule:
    """Return the graph of what `export` made of a model in its mode, on the model's own parameters.

    Dropout functions become modules that follow the mode; where the graph is ``one_of_two``, of both modes, they stay
    as they are in this one. With ``lengths`` ids and masks are of any length.

    Raises:
        UntraceableError: with ``lengths``, what the model does depends on the length.
    """
    gm = exported.program.module(check_guards=False)
    assert isinstance(gm, GraphModule)
    _share(gm, model)
    _inline_contexts(gm)
    ops = ops or default()
    _drop_guards(gm, ops)
    _raise_modules(gm, model, ops, orphans=not one_of_two)
    _restore_structure(gm, inputs.named)
    gm.graph.eliminate_dead_code(has_an_effect)
    gm.recompile()
    result = _plain(gm, type(model).__name__)
    result.meta[CHECKS] = exported.checks
    if exported.size is not None:
        result.meta[FIXED_SIZE] = exported.size
    if lengths and not one_of_two:
        _check_lengths(exported.program, result, model, inputs)
    return result


def _check_lengths(program: ExportedProgram, gm: GraphModule, model: nn.Module, inputs: Inputs) -> None:
    """Compare a graph with its model at lengths beside the traced one, and beyond those that export allows."""
    given = {value.shape[1] for value in tree_leaves(inputs.values) if is_of_ids(value)}
    tried = {length + more for length in given for more in (-1, 1)}
    for each in program.range_constraints.values():
        tried |= {int(each.upper) + 1} if each.upper is not int_oo else set()
        tried |= {int(each.lower) - 1}
    for length in sorted(each for each in tried if each > 0):
        longer = tree_map(
            lambda v, n=length: v.repeat(1, -(-n // v.shape[1]))[:, :n] if is_of_ids(v) else v, dict(inputs.named)
        )
        if length > _LONGEST or not agrees(model, gm, inputs, longer):
            raise UntraceableError("what it does depends on the length of its inputs")


def graph_of_program(program: ExportedProgram, name: str) -> GraphModule:
    """Return the graph of a program that somebody exported, with its inputs in a row, in evaluation mode."""
    gm = program.module(check_guards=False)
    assert isinstance(gm, GraphModule)
    result = graph_of_module(gm, {str(node.target): None for node in gm.graph.find_nodes(op="placeholder")}, name)
    for module in result.modules():
        module.training = False
    return result


def is_of_program(gm: GraphModule) -> bool:
    """Whether a graph module is what ``program.module()`` makes: it checks sizes, and nothing pickles it."""
    return isinstance(gm, _StatefulGraphModule)


def graph_of_module(gm: GraphModule, named: Mapping[str, Any], name: str) -> GraphModule:
    """Return the graph of a program's module, which is taken apart, with these inputs by their names."""
    _inline_contexts(gm)
    _drop_guards(gm, default())
    _restore_structure(gm, named)
    gm.graph.eliminate_dead_code(has_an_effect)
    gm.recompile()
    return _plain(gm, name)


def _share(gm: GraphModule, model: nn.Module) -> None:
    """Let the graph hold the model's own parameters and buffers, not copies."""
    own = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in own:
        owner, _, leaf = name.rpartition(".")
        try:
            holder = gm.get_submodule(owner)
        except AttributeError:
            continue
        for group in (holder._parameters, holder._buffers):
            if leaf in group:
                group[leaf] = tensor  # type: ignore[assignment]


def _inline_contexts(gm: GraphModule) -> None:
    """Put what runs under a context that changes nothing into the graph itself.

    A disabled autocast changes nothing where none is enabled; where gradients are kept off, the nodes are marked.
    """
    for node in list(gm.graph.nodes):
        kind = type(node.target).__name__
        first = {"WrapWithAutocast": 4, "WrapWithSetGradEnabled": 1}.get(kind)
        if first is None or node.args[first - 1 if kind == "WrapWithSetGradEnabled" else 2] is not False:
            continue
        inner, given = getattr(gm, node.args[first].target), node.args[first + 1 :]
        _inline_contexts(inner)
        inner.graph.eliminate_dead_code()
        if any(n.op == "get_attr" for n in inner.graph.nodes):
            continue
        places = (n for n in inner.graph.nodes if n.op == "placeholder")
        with gm.graph.inserting_before(node):
            copies = dict(zip(places, given, strict=True))
            result = gm.graph.graph_copy(inner.graph, copies)
        if kind == "WrapWithSetGradEnabled":
            for original, new in copies.items():
                if original.op != "placeholder":
                    mark(new)
        for user in list(node.users):
            if user.target is operator.getitem and isinstance(result, list | tuple):
                user.replace_all_uses_with(result[user.args[1]])
                gm.graph.erase_node(user)
        if not isinstance(result, list | tuple):
            node.replace_all_uses_with(result)
        if not node.users:
            gm.graph.erase_node(node)


def _drop_guards(gm: GraphModule, ops: Ops) -> None:
    for node in list(gm.graph.nodes):
        guard = node.op == "call_module" and "_guards" in str(node.target)
        if guard or ops.of_call(node.target) is ops["_assert_tensor_metadata"]:
            node.replace_all_uses_with(None)
            gm.graph.erase_node(node)


def _module_path(node: Node) -> str:
    """Return the path of the innermost module that the node was made in."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in stack.values()]
    return paths[-1] if paths else ""


def _raise_modules(gm: GraphModule, model: nn.Module, ops: Ops, *, orphans: bool) -> None:
    modules = dict(model.named_modules())
    for node in list(gm.graph.nodes):
        op = ops.of_call(node.target) if node.op == "call_function" else None
        if op is None or not op.by_mode:
            continue
        path = _module_path(node)
        module = _itself(modules.get(path), op)
        if module is None and orphans:
            module, path = module_by_mode(ops, node), f"{node.name}_module"
        if module is None:
            continue
        gm.add_submodule(path, module)
        with gm.graph.inserting_before(node):
            raised = gm.graph.call_module(path, (node.args[0],))
        raised.meta = dict(node.meta)
        node.replace_all_uses_with(raised)
        gm.graph.erase_node(node)
    _drop_counts(gm)
    _drop_copies_of_itself(gm)


def _drop_copies_of_itself(gm: GraphModule) -> None:
    """Take out what export adds at the end for a buffer that is written to, where it was written to in place: a copy of
    the buffer to itself, after which no gradient could be computed of what read it."""
    for node in gm.graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default):
        source: Any = node.args[1]
        while isinstance(source, Node) and source.op == "call_function" and in_place(source.target):
            source = source.args[0]
        if source is node.args[0] and not node.users:
            gm.graph.erase_node(node)


def _drop_counts(gm: GraphModule) -> None:
    """Take out the counting of batches, which modules that were put back do themselves."""
    norms = {node.target for node in gm.graph.find_nodes(op="call_module")}
    for node in gm.graph.find_nodes(op="get_attr"):
        owner, _, leaf = str(node.target).rpartition(".")
        if leaf == "num_batches_tracked" and owner in norms:
            # A module that runs several times counts on from its own count: the last one is read by nobody.
            counts = list(node.users)
            for count in counts:
                counts.extend(user for user in count.users if in_place(user.target))
            for count in reversed(counts):
                if not count.users:
                    gm.graph.erase_node(count)


def _itself(module: nn.Module | None, op: Op) -> nn.Module | None:
    """Return the module where it does what its op does and no more.

    A BatchNorm with an activation inside gives a plain one on the same parameters and statistics: the activation is a
    node of its own already.
    """
    kind = next((kind for kind in op.modules if isinstance(module, kind)), None)
    if module is None or kind is None or type(module).forward is kind.forward:
        return module if kind is not None else None
    plain: Any = next(
        (each for each in op.modules if isinstance(module, each) and "_check_input_dim" in vars(each)), None
    )
    if plain is None:
        return None
    result: nn.Module = plain.__new__(plain)
    result.__dict__ = dict(module.__dict__)
    result._modules = {}
    return result


def _restore_structure(gm: GraphModule, inputs: Mapping[str, Any]) -> None:
    """Give the graph the inputs and outputs that the model has, in the place of export's flat ones."""
    graph, spec = gm.graph, gm.graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined]
    flat = iter(graph.find_nodes(op="placeholder"))
    graph.set_codegen(CodeGen())
    taken_apart: list[tuple[Node, Any, list[Node]]] = []
    last: Node | None = None
    for name, value in inputs.items():
        leaves = [next(flat) for _ in tree_leaves(value)]
        if len(leaves) == 1 and not isinstance(value, dict | list | tuple):
            last, last.target = leaves[0], name
        else:
            with graph.inserting_after(last) if last is not None else graph.inserting_before(next(iter(graph.nodes))):
                last = graph.placeholder(name)
            taken_apart.append((last, value, leaves))
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for node, value, leaves in taken_apart:
        with graph.inserting_before(first):
            items = tree_leaves(_items(graph, node, value))
        for old, new in zip(leaves, items, strict=True):
            new.meta = dict(old.meta)
            old.replace_all_uses_with(new)
            graph.erase_node(old)
    output = graph.output_node()
    if spec is not None:
        with graph.inserting_before(output):
            output.args = (_structure(graph, tree_unflatten(list(output.args[0]), spec)),)  # type: ignore[arg-type]


def _items(graph: Graph, node: Node, value: Any) -> Any:
    """Return the structure of an input, with nodes that take its items out in their place."""
    if isinstance(value, dict):
        pairs = ((key, graph.call_function(operator.getitem, (node, key)), item) for key, item in value.items())
        return type(value)((key, _items(graph, inner, item)) for key, inner, item in pairs)
    if type(value) in (list, tuple):
        inner = [graph.call_function(operator.getitem, (node, index)) for index in range(len(value))]
        return type(value)(_items(graph, node, item) for node, item in zip(inner, value, strict=True))
    return node


def _structure(graph: Graph, value: Any) -> Any:
    """Return an output as a graph can hold it: objects of other classes are made by nodes."""
    if is_dataclass(value) and not isinstance(value, type):
        known = {each.name: getattr(value, each.name) for each in fields(value)}
        given = {name: _structure(graph, item) for name, item in known.items() if item is not None}
        return graph.call_function(type(value), (), given)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return graph.call_function(type(value), tuple(_structure(graph, item) for item in value))
    if isinstance(value, dict):
        return {key: _structure(graph, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_structure(graph, item) for item in value)
    return value


def _plain(gm: GraphModule, name: str) -> GraphModule:
    """Return the same graph as a graph module of our own."""
    result = TracedModule(gm, gm.graph, name)
    result.meta.clear()
    return result
