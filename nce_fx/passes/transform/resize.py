"""Resize: a graph at other channel widths, wider ones keeping the function, narrower ones dropping channels.

A new channel is a copy of an old one. What reads it is divided among the copies, plus noise that sums to zero over
them: the function stays, and copies receive different gradients, so they part at the first step.
"""

import copy
import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.passes.shape_prop import TensorMetadata, _extract_tensor_metadata
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from nce_fx.arguments import checked
from nce_fx.copying import copy_graph
from nce_fx.errors import ChannelError, where
from nce_fx.frozen import Frozen
from nce_fx.ids.labels import Ids
from nce_fx.ids.space import ParameterAxis
from nce_fx.ids.value import ChannelTensor
from nce_fx.ops import OPS, table_of
from nce_fx.ops.table import argument_defaults, argument_names, followed_arguments
from nce_fx.ops.tensors import tensors_of
from nce_fx.passes.analysis.channels import ChannelGraph, analysis_of
from nce_fx.passes.analysis.channels.computed import Computed, keep, value_of
from nce_fx.passes.analysis.channels.edits import Gather
from nce_fx.passes.analysis.channels.groups import Part
from nce_fx.passes.analysis.channels.plan_check import check_plan
from nce_fx.passes.analysis.channels.projection import Mismatch
from nce_fx.passes.analysis.channels.resizing import Broken, Resizing
from nce_fx.passes.analysis.channels.structure import Structure, settle, spread_copies
from nce_fx.passes.transform.inserted_nodes import argument, give, multiply, repeat, select
from nce_fx.passes.transform.resized_weights import Weights, check_memory
from nce_fx.paths import module_at, tensor_at
from nce_fx.pipeline import Given, Pass
from nce_fx.plan import WidthPlan, model_fingerprint
from nce_fx.tracing.shape_propagation import first_misfit, without_devices

Kept = Mapping[str, tuple[tuple[int, ...], ...]]
"""Group -> for each of its parts the channels that stay, in order; empty for a part that is not narrowed."""


@dataclass(frozen=True)
class ResizeChannels(Frozen, Pass):
    """Give channel groups the widths of a plan."""

    name: ClassVar[str] = "resize"
    plan: WidthPlan | Mapping[str, int]
    seed: int = 0
    keep: Kept | None = None
    """Which channels narrower groups keep; those that carry most by default."""

    def decide(self, gm: GraphModule) -> Self:
        """Write down which channels stay: the weights choose them, and indices in the graph may follow from them."""
        if self.keep is not None:
            return self
        analysis = analysis_of(gm)
        changed = self._changed(gm, analysis.channels)
        copies = _copies(analysis.structure, analysis.channels, changed, None)
        return replace(self, keep=_kept(analysis.channels, copies))

    def apply(self, gm: GraphModule, given: Given) -> GraphModule:
        """Return the resized graph; the given one where no width changes."""
        analysis = analysis_of(gm)
        changed = self._changed(gm, analysis.channels)
        if not changed:
            return gm
        result = _resized(analysis.structure, analysis.channels, changed, self.keep, self.seed)
        _check_runs(gm, result)
        # What `nce_fx.save` writes as plan.json.
        result.meta["plan"] = _plan_of(self.plan, analysis.channels, gm)
        return result

    def _changed(self, gm: GraphModule, channels: ChannelGraph) -> dict[str, int]:
        """Return the widths that are not the graph's own."""
        if isinstance(self.plan, WidthPlan):
            check_plan(self.plan, gm)
        widths = self.plan.widths if isinstance(self.plan, WidthPlan) else self.plan
        return {name: width for name, width in widths.items() if channels[name].width != width}


def _check_runs(gm: GraphModule, resized: GraphModule) -> None:
    """Check that a resized graph runs, and that every value has the shape that the analysis says.

    Raises:
        ChannelError: it does not; where the graph at its own widths cannot be run without values, nothing is checked.
    """
    problem = first_misfit(resized)
    if problem is not None and first_misfit(gm) is None:
        raise ChannelError(
            f"at these widths the graph does not fit at {problem}; leave the groups that it reads at their widths, "
            "and please report it"
        )


@checked
def resize(gm: GraphModule, plan: WidthPlan | Mapping[str, int], *, seed: int = 0) -> GraphModule:
    """Return a new graph at the given widths (a plan, or ``{group id: width}``); groups not named keep theirs.

    Wider keeps the function in eval mode; narrower equals the original with the dropped channels' contributions zeroed.

    Raises:
        ChannelError: an unknown or pinned group, or a width that is not legal.
        PlanError: the plan is for another model.
    """
    result = ResizeChannels(plan, seed)(gm)
    return result.graph_module if result.modified else copy.deepcopy(gm)


def _plan_of(plan: WidthPlan | Mapping[str, int], channels: ChannelGraph, gm: GraphModule) -> WidthPlan:
    """Return the plan from the traced model to what is resized now."""
    widths = plan.widths if isinstance(plan, WidthPlan) else {**channels.widths, **plan}
    before = gm.meta.get("plan")
    if isinstance(before, WidthPlan) and before.model:
        return WidthPlan(widths, before.original or channels.widths, before.model)
    return plan if isinstance(plan, WidthPlan) else WidthPlan(widths, channels.widths, model_fingerprint(gm))


def gathers_of(gm: GraphModule, widths: Mapping[str, int], keep: Kept | None = None) -> dict[ParameterAxis, Gather]:
    """Return for each parameter axis that `resize` to these widths changes the old position of every new one."""
    analysis = analysis_of(gm)
    return dict(_run(analysis.structure, analysis.channels, widths, keep).edits.gathers)


def _copies(
    structure: Structure, channels: ChannelGraph, widths: Mapping[str, int], keep: Kept | None
) -> dict[int, Ids]:
    """Return how often each channel of a part appears, for every part that changes, by its index."""
    check_memory(structure.gm, channels, widths)
    part_widths = channels.part_widths(widths)
    copies: dict[int, Ids] = {}
    narrower = any(width < part.width for width, part in zip(part_widths, channels.parts, strict=True))
    scores = importance(structure) if narrower and keep is None else np.empty(0)
    for group, known in zip(structure.groups, channels.groups, strict=True):
        for place, (index, part) in enumerate(zip(known.parts, group.parts, strict=True)):
            count, wanted = len(part.classes), part_widths[index] // group.positions(part)
            if wanted > count:
                copies[index] = spread_copies(count, wanted)
            elif wanted < count and keep is None:
                copies[index] = _most_important(part, wanted, scores)
            elif wanted < count:
                copies[index] = _chosen(known.id, place, keep or {}, count, wanted)
    return copies


def _kept(channels: ChannelGraph, copies: Mapping[int, Ids]) -> Kept:
    """Return for each group that gets narrower which channels of its parts stay."""
    kept: dict[str, tuple[tuple[int, ...], ...]] = {}
    for group in channels.groups:
        narrowed = [copies[index] if index in copies and not copies[index].all() else None for index in group.parts]
        if any(numbers is not None for numbers in narrowed):
            kept[group.id] = tuple(() if n is None else tuple(np.flatnonzero(n).tolist()) for n in narrowed)
    return kept


def _chosen(group: str, place: int, keep: Kept, count: int, wanted: int) -> Ids:
    """Return the copies of a part whose channels that stay are given."""
    parts = keep.get(group, ())
    stay = parts[place] if place < len(parts) else ()
    result: Ids = np.zeros(count, dtype=np.int64)
    if len(set(stay)) != len(stay) or len(stay) != wanted or not all(0 <= channel < count for channel in stay):
        raise ChannelError(
            f"group {group} cannot keep channels {list(stay)[:8]}: {wanted} different ones from 0 to {count - 1} stay "
            "at this width; leave keep out, and those that carry most do"
        )
    result[list(stay)] = 1
    return result


def _run(structure: Structure, channels: ChannelGraph, widths: Mapping[str, int], keep: Kept | None) -> Resizing:
    copies = _copies(structure, channels, widths, keep)
    try:
        _, run = settle(structure, lambda known: known.counts(copies))
        return run
    except Mismatch as mismatch:
        at = f" at {where(mismatch.node)}" if mismatch.node is not None else ""
        names = ", ".join(f"{name}={width}" for name, width in list(widths.items())[:4])
        raise ChannelError(f"the model cannot take the widths {names}: {mismatch.reason}{at}") from mismatch.alone()


def importance(structure: Structure) -> npt.NDArray[np.float64]:
    """Return by class number how much a channel carries: its power times the squared weights of all that read it.

    Its power is the squared scales of the norms that it goes through. They undo any scale of the weights before them,
    so only where no norm module follows are the squared weights that produce it taken instead.
    """
    count = int(structure.classes.max(initial=0)) + 1
    tie, tensors, modules = structure.tie, tensors_of(structure.gm).tensors, dict(structure.gm.named_modules())
    found = {kind: (np.zeros(count), np.zeros(count, np.bool_)) for kind in ("made", "scaled", "read")}
    for (path, axis), line in tie.axis_lines.items():
        tensor, roles = tensors.get(path), tie.roles.get((path, axis), set())
        if tensor is None or axis < 0:
            continue
        owner, _, name = path.rpartition(".")
        normal = "follow" in roles and name == "weight" and tie.ops.is_norm(modules.get(owner))
        kinds = {"made": "out" in roles, "scaled": normal, "read": "in" in roles}
        squares, others = tensor.detach().square(), [other for other in range(tensor.dim()) if other != axis]
        rows = (squares.sum(others, dtype=torch.float64) if others else squares.double()).cpu().numpy()
        numbers = structure.classes[line.numpy()]
        for kind in (kind for kind, is_one in kinds.items() if is_one):
            total, known = found[kind]
            np.add.at(total, numbers, rows)
            known[numbers] = True
    power = np.where(found["scaled"][1], found["scaled"][0], found["made"][0])
    result: npt.NDArray[np.float64] = power * np.where(found["read"][1], found["read"][0], 1.0)
    return result


def _most_important(part: Part, wanted: int, scores: npt.NDArray[np.float64]) -> Ids:
    """Keep the channels that carry most; ties go to the first."""
    keep = np.argsort(-scores[part.classes], kind="stable")[:wanted]
    result: Ids = np.zeros(len(part.classes), dtype=np.int64)
    result[keep] = 1
    return result


def _resized(
    structure: Structure, channels: ChannelGraph, widths: Mapping[str, int], keep: Kept | None, seed: int
) -> GraphModule:
    run = _run(structure, channels, widths, keep)
    gm, tensors = structure.gm, tensors_of(structure.gm)
    memo: dict[int, Any] = {}
    by_path: dict[str, list[tuple[int, Gather]]] = {}
    for (path, axis), gather in run.edits.gathers.items():
        if axis >= 0:
            by_path.setdefault(path, []).append((axis, gather))
    weights = Weights(run.edits.gathers.values(), seed, dict(gm.named_buffers()).keys() - gm.state_dict().keys())
    kept: dict[str, Computed] = {}
    for path, gathers in by_path.items():
        old = value = tensors.tensors[path]
        moved = [(axis, g) for axis, g in gathers if weights.changes(g, old.shape[axis])]
        reads = any("in" in structure.tie.roles.get((path, axis), ()) for axis, _ in moved)
        if reads and path in structure.tie.computed:
            kept[path] = structure.tie.computed[path]
            value = value_of(gm, kept[path])
        new = weights.gathered(path, value, moved) if moved else None
        if new is not None and path in tensors.normed:
            memo.update(tensors.normed[path].parameters_for(new))
        elif new is not None:
            memo[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    result = copy_graph(gm, memo)
    _edit(result, gm, run, kept)
    return result


def _edit(result: GraphModule, gm: GraphModule, run: Resizing, kept: Mapping[str, Computed]) -> None:
    edits, ops = run.edits, table_of(gm)
    nodes = dict(zip(gm.graph.nodes, result.graph.nodes, strict=True))
    old_nodes = dict(nodes)
    for (node, path, name), value in edits.attributes.items():
        if node.op == "call_module":
            owner = module_at(result, path.rpartition(".")[0] if path else str(node.target))
            if name in owner.__dict__:
                owner.__dict__[name] = value
            elif getattr(owner, name, value) != value:
                setattr(owner, name, value)
        elif (op := ops.of(gm, node)) is not None and name in followed_arguments(op):
            _set_argument(ops.signatures[node.target], nodes[node], name, value)
    for node, (args, kwargs) in edits.arguments.items():
        new = nodes[node]
        new.target = edits.targets[node]
        new.args = torch.fx.node.map_arg(args, lambda n: nodes[n])
        new.kwargs = torch.fx.node.map_arg(kwargs, lambda n: nodes[n])
    for node, (position, axis, order) in edits.inputs.items():
        new = nodes[node]
        give(new, position, select(result, new, argument(new, position), axis, order))
    for node, (source, axis, order) in edits.selects.items():
        old = nodes[node]
        selected = select(result, old, nodes[source], axis, order)
        selected.meta = dict(old.meta)
        old.replace_all_uses_with(selected)
        nodes[node] = selected
    for node, new in nodes.items():
        value = run.env.get(node)
        meta = new.meta.get("tensor_meta")
        if isinstance(value, ChannelTensor) and isinstance(meta, TensorMetadata) and value.shape != meta.shape:
            stride = torch.empty(value.shape, device="meta").stride()
            new.meta["tensor_meta"] = meta._replace(shape=value.shape, stride=stride)
    for node, repeats in edits.repeats.items():
        for position, like, axis in repeats:
            repeat(result, nodes[node], position, like, axis)
    for node, (position, axis, shares) in edits.products.items():
        new, dtype = nodes[node], run.env[tree_leaves(node.args)[position]].dtype
        operands, places = tree_flatten(new.args)
        operands[position] = multiply(result, new, operands[position], axis, torch.from_numpy(shares).to(dtype))
        new.args = tree_unflatten(operands, places)
    for node, factor in edits.results.items():
        new = nodes[node]
        with result.graph.inserting_after(new):
            scaled = result.graph.call_function(operator.mul, (new, factor))
        scaled.meta = dict(new.meta)
        new.replace_all_uses_with(scaled, delete_user_cb=lambda user, own=scaled: user is not own)
    for path, found in kept.items():
        keep(result, Computed(nodes[found.weight], found.gain and nodes[found.gain]), path)
    left = {node.args[0] for node in edits.arguments if node.target in (operator.getitem, getattr)}
    for node in reversed(list(gm.graph.nodes)):
        # What a gather or another maximum replaced: nobody reads it any more.
        if isinstance(run.env.get(node), Broken) or node in edits.selects or node in left:
            for new in (old_nodes[node], nodes[node]):
                if not new.users and new.graph is result.graph and not new._erased:
                    result.graph.erase_node(new)
    _describe_rest(result)
    if edits.change_the_graph or kept:
        result.recompile()


@torch.no_grad()  # Operations that write into an argument refuse parameters that learn.
def _describe_rest(gm: GraphModule) -> None:
    """Say the shapes that the run on ids does not: of gathers that were put in, of parameters (which it saw before they
    were gathered), and of what is computed from parameters alone."""
    values: dict[Node, Any] = {}
    interpreter = Interpreter(gm)
    for node in gm.graph.nodes:
        sources = node.all_input_nodes
        if OPS.of_call(node.target) is OPS["item"]:
            continue  # a number, which has no shape, and which tensors without values do not have
        if node.op == "get_attr":
            held: Any = tensor_at(gm, str(node.target))
            if isinstance(held, torch.Tensor):  # and no module that is called with a weight from outside
                values[node] = held.to("meta")
        elif _can_be_asked(gm, node) and sources and all(source in values for source in sources):
            args, kwargs = torch.fx.node.map_arg(without_devices((node.args, node.kwargs)), values.__getitem__)
            made = getattr(interpreter, node.op)(node.target, args, kwargs)
            # What makes a tensor of a type that it reads makes it with values.
            values[node] = tree_map_only(torch.Tensor, lambda x: x.to("meta"), made)
        elif OPS.of_call(node.target) is OPS["index_select"] and "tensor_meta" not in node.meta:
            meta = sources[0].meta["tensor_meta"]
            shape = list(meta.shape)
            shape[node.args[1]] = len(values[sources[1]])
            gathered = torch.empty(shape, dtype=meta.dtype, device="meta")
            node.meta["tensor_meta"] = _extract_tensor_metadata(gathered)
        elif node.op in ("call_function", "call_method") and "tensor_meta" not in node.meta and sources:
            asked = _asked(node, values, interpreter)
            if asked is not None:
                values[node] = asked
        if "tensor_meta" in node.meta and isinstance(values.get(node), torch.Tensor):
            node.meta["tensor_meta"] = _extract_tensor_metadata(values[node])


def _can_be_asked(gm: GraphModule, node: Node) -> bool:
    """Whether a node is a function, or a module that holds nothing and hands on what it is given."""
    op = OPS.of_module(module_at(gm, str(node.target))) if node.op == "call_module" else None
    return node.op in ("call_function", "call_method") or (op is not None and op.memory == "view")


def _asked(node: Node, values: Mapping[Node, Any], interpreter: Interpreter) -> Any:
    """Return the size or type that a node reads off tensors; ``None`` where it makes a tensor, or cannot be asked."""

    def stand_in(source: Node) -> Any:
        meta = source.meta.get("tensor_meta")
        known = values.get(source)
        if known is None and isinstance(meta, TensorMetadata):
            return torch.empty(meta.shape, dtype=meta.dtype, device="meta")
        return known

    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), stand_in)
    try:
        found = getattr(interpreter, node.op)(node.target, args, kwargs)
    except Exception:
        return None
    return None if isinstance(found, torch.Tensor) else found


def _set_argument(signature: str, node: Node, name: str, value: Any) -> None:
    position = argument_names(signature).index(name)
    if name in node.kwargs or len(node.args) <= position:
        if name in node.kwargs or value != argument_defaults(signature).get(name):
            node.update_kwarg(name, value)
    else:
        node.update_arg(position, value)
