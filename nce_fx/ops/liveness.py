"""Which values are in memory when: the intervals that peak activation memory is the maximum over.

Views and in-place operations give no new storage; they lengthen the life of the one they look into. Nothing is assumed
to be fused or computed in place by a backend.

What a node does beside the value that it returns is told here, too: it keeps statistics, or writes to what it is given.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from nce_fx.frozen import Frozen
from nce_fx.ops.spellings import in_place, sets_items
from nce_fx.ops.table import table_of
from nce_fx.paths import module_at


@dataclass(frozen=True)
class Storage:
    """The memory of one value: from the step that fills it to the last step that reads it (indices into the graph)."""

    node: Node
    first: int
    last: int


def storages(gm: GraphModule) -> tuple[Storage, ...]:
    """Return the storage of every value of a graph, parameters left out, in the order they are filled."""
    memory = memory_of(gm)
    first: dict[Node, int] = {}
    last: dict[Node, int] = {}
    for node, step in memory.steps.items():
        for read in node.all_input_nodes:
            if memory.owner[read] in last:
                last[memory.owner[read]] = step
        if memory.owner[node] is node and node.op not in ("get_attr", "output"):
            first[node] = last[node] = step
    return tuple(Storage(node, first[node], last[node]) for node in first)


@dataclass(frozen=True)
class Memory(Frozen):
    """Who shares memory in a graph, and when it is overwritten."""

    steps: Mapping[Node, int]
    """Index into the graph."""
    owner: Mapping[Node, Node]
    """Value -> the value whose memory it looks into; itself where it has its own."""
    writers: Mapping[Node, list[Node]]
    """Value that has memory of its own -> the nodes that overwrite some of it, in execution order."""

    def written(self, value: Node, before: Node) -> Node | None:
        """Return the last node that overwrote a value since it was made and before another node runs, if any did.

        None where that node is not in the graph that was looked at.
        """
        at, end = self.steps[value], self.steps.get(before, -1)
        writers = self.writers.get(self.owner[value], ())
        return next((each for each in reversed(writers) if at < self.steps[each] < end), None)

    def through(self, node: Node) -> set[Node]:
        """Return a node with all that looks into what it gives: ``y`` of ``y.add_(x)``, and ``relu_`` of that."""
        found = {node}
        for each in self.steps:
            if self.owner[each] is self.owner[node] and found.intersection(each.all_input_nodes[:1]):
                found.add(each)
        return found

    def overwritten_after(self, value: Node, node: Node) -> bool:
        """Return whether something overwrites a value when a node has run, otherwise than through that node."""
        later = [each for each in self.writers.get(self.owner[value], ()) if self.steps[each] > self.steps[node]]
        return bool(later) and not self.through(node).issuperset(later)

    def read_after(self, value: Node, node: Node) -> bool:
        """Return whether what a node has written into a value is read otherwise than through that node."""
        through = self.through(node)
        shared = (each for each in self.steps if self.owner[each] is self.owner[value] and each not in through)
        return any(self.steps[user] > self.steps[node] for each in shared for user in each.users)


def memory_of(gm: GraphModule) -> Memory:
    """Return who shares memory in a graph; in-place operations look into what they overwrite."""
    steps: dict[Node, int] = {}
    owner: dict[Node, Node] = {}
    writers: dict[Node, list[Node]] = {}
    for step, node in enumerate(gm.graph.nodes):
        steps[node], owner[node] = step, node
        written = overwritten(gm, node)
        for each in written:
            writers.setdefault(owner[each], []).append(node)
        if node.all_input_nodes and aliases(gm, node):
            owner[node] = owner[written[0] if written else node.all_input_nodes[0]]
    return Memory(steps, owner, writers)


def aliases(gm: GraphModule, node: Node) -> bool:
    """Return whether a node's value lives in the memory of an input: of what it overwrites, else of the first."""
    if isinstance(node.target, OpOverload):
        returns = node.target._schema.returns
        if returns and returns[0].alias_info is not None:
            return True
    op = table_of(gm).of(gm, node)
    return (op is not None and op.memory == "view") or bool(overwritten(gm, node))


def overwritten(gm: GraphModule, node: Node) -> tuple[Node, ...]:
    """Return the inputs that a node overwrites: ``x`` of ``x.add_(y)`` and ``x[0] = y``, ``z`` of ``exp(x, out=z)``.

    Those of a view lie in the memory of another value, see `memory_of`.
    """
    if node.op == "call_module":
        asked = bool(getattr(module_at(gm, str(node.target)), "inplace", False))
    elif node.op in ("call_function", "call_method"):
        if node.kwargs.get("out") is not None:
            out: Any = node.kwargs["out"]
            return tuple(each for each in (out if isinstance(out, list | tuple) else [out]) if isinstance(each, Node))
        asked = in_place(node.target) or sets_items(node.target) or _asked_in_place(node)
    else:
        asked = False
    return tuple(node.all_input_nodes[:1]) if asked else ()


def _asked_in_place(node: Node) -> bool:
    """Whether the argument ``inplace`` of a call says so, by its name or, as in ``F.relu(x, True)``, by its place."""
    code = getattr(node.target, "__code__", None)
    names = code.co_varnames[: code.co_argcount] if code is not None else ()
    return bool((dict(zip(names, node.args, strict=False)) | node.kwargs).get("inplace"))


def has_an_effect(node: Node) -> bool:
    """Whether a node does something though nobody reads its result, so that a graph without it is not the model."""
    gm = node.graph.owning_module
    assert gm is not None
    return node.is_impure() or bool(overwritten(gm, node)) or _acts_in_training(gm, node)


def _acts_in_training(gm: GraphModule, node: Node) -> bool:
    """Whether training a node changes buffers, as a BatchNorm does, or draws numbers, as a dropout does.

    The buffers may be read elsewhere; without the numbers whoever draws next is given others.
    """
    ops = table_of(gm)
    op = ops.of(gm, node)
    if op is not None and op.by_mode:
        return True
    if node.op == "call_module":
        return op is None or any(True for _ in gm.get_submodule(str(node.target)).buffers())
    known = node.op == "call_function" and node.target in ops.signatures
    held = ops.arguments(node.target, node.args, node.kwargs) if known else {}
    return isinstance(held.get("running_mean"), Node)
