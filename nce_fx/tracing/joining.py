"""Join the graphs of one model in its two modes: what they share is there once, what differs is chosen by the mode.

The two are read side by side. Where both do the same thing to other values, the values are chosen; what only one does
is kept, and runs in its mode alone.
"""

import difflib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from nce_fx.by_mode import ModeCode, place_by_mode
from nce_fx.ops import Ops
from nce_fx.ops.liveness import has_an_effect
from nce_fx.traced import TracedModule
from nce_fx.tracing.gradients import MARK
from nce_fx.tracing.modes import Flag, place_flags

_CONTAINERS = (dict, list, tuple)


def join(evaluated: GraphModule, trained: GraphModule, *, name: str, ops: Ops) -> GraphModule:
    """Return one graph that is the first in evaluation and the second in training; it shares their modules."""
    gm = TracedModule(nn.Module(), Graph(tracer_cls=evaluated.graph._tracer_cls), name)
    gm.graph.set_codegen(ModeCode())
    _rename(evaluated, trained)
    _take_targets(gm, evaluated, trained)
    _Join(gm, evaluated, trained).build()
    place_flags(gm, ops)
    gm.graph.eliminate_dead_code(has_an_effect)
    gm.recompile()
    return gm


def _rename(evaluated: GraphModule, trained: GraphModule) -> None:
    """Give constants that tracing made, and that are others in training, names of their own."""
    for node in trained.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        a, b = getattr(evaluated, name, None), getattr(trained, name, None)
        if a is None or a is b or not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
            continue
        if a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b):
            setattr(trained, name, a)
        else:
            node.target = f"{name}_trained"
            trained.register_buffer(str(node.target), b, persistent=False)


def _take_targets(gm: GraphModule, *sources: GraphModule) -> None:
    """Give a graph module what the nodes of others refer to, where it has nothing of that name.

    A module that one of them leaves whole comes before what another reads inside of it.
    """
    pairs = ((node, source) for source in sources for node in source.graph.nodes)
    named = [pair for pair in pairs if pair[0].op in ("call_module", "get_attr")]
    for node, there in sorted(named, key=lambda pair: str(pair[0].target).count(".")):
        owner: Any = gm
        *parents, leaf = str(node.target).split(".")
        for atom in parents:
            there = getattr(there, atom)
            if atom not in owner._modules:
                owner.add_module(atom, nn.Module())
            owner = owner._modules[atom]
        value = getattr(there, leaf)
        if not hasattr(owner, leaf):
            if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
                owner.register_buffer(leaf, value, persistent=leaf not in there._non_persistent_buffers_set)
            else:
                setattr(owner, leaf, value)


class _Join:
    def __init__(self, gm: GraphModule, evaluated: GraphModule, trained: GraphModule) -> None:
        self.gm = gm
        self.nodes = [list(evaluated.graph.nodes), list(trained.graph.nodes)]
        self.modules = (evaluated, trained)
        self.new: tuple[dict[Node, Node], dict[Node, Node]] = ({}, {})
        self.effects: tuple[list[Node], list[Node]] = ([], [])

    def build(self) -> None:
        for first, second in self._aligned():
            if first is not None and second is not None:
                self._both(first, second)
            elif first is not None:
                self._one(first, 0)
            elif second is not None:
                self._one(second, 1)

    def _one(self, node: Node, mode: int) -> None:
        self.new[mode][node] = self.gm.graph.node_copy(node, self.new[mode].__getitem__)
        if has_an_effect(node) and not node.users:
            self.effects[mode].append(self.new[mode][node])

    def _aligned(self) -> Iterator[tuple[Node | None, Node | None]]:
        first, second = self.nodes
        keys = [[self._key(node, mode) for node in nodes] for mode, nodes in enumerate(self.nodes)]
        matcher: Any = difflib.SequenceMatcher(None, keys[0], keys[1], autojunk=False)
        for tag, i1, i2, j1, j2 in matcher.get_opcodes():
            if tag == "equal":
                yield from zip(first[i1:i2], second[j1:j2], strict=True)
            else:
                yield from ((node, None) for node in first[i1:i2])
                yield from ((None, node) for node in second[j1:j2])

    def _key(self, node: Node, mode: int) -> Any:
        if node.op in ("placeholder", "output"):
            return node.op, node.target if node.op == "placeholder" else ""
        value: Any = None
        if node.op == "get_attr":
            value = self.modules[mode]
            for atom in str(node.target).split("."):
                value = getattr(value, atom)
        return node.op, str(node.target), id(value), node.stack_trace, len(node.args), tuple(node.kwargs)

    def _both(self, a: Node, b: Node) -> None:
        args, kwargs = (
            (map_arg(a.args, self.new[0].__getitem__), map_arg(b.args, self.new[1].__getitem__)),
            (map_arg(a.kwargs, self.new[0].__getitem__), map_arg(b.kwargs, self.new[1].__getitem__)),
        )
        if a.op == "output" and any(self.effects):
            chosen: Any = (place_by_mode(self.gm, args[0][0], args[1][0], *map(tuple, self.effects)),)
        else:
            chosen = self._choice(*args)
        node = self.gm.graph.create_node(a.op, a.target, chosen, self._choice(*kwargs), a.name, a.type)
        # Where gradients go is asked of training alone.
        node.meta = {**a.meta, MARK: b.meta.get(MARK, False)}
        self.new[0][a] = self.new[1][b] = node

    def _choice(self, a: Any, b: Any) -> Any:
        """Return a value for both modes: itself where they are the same, else what chooses."""
        if isinstance(a, bool) and isinstance(b, bool) and (a, b) == (False, True):
            return Flag(False, [])
        if a is b or (type(a) is type(b) and not isinstance(a, _CONTAINERS) and a == b):
            return a
        if isinstance(a, dict) and isinstance(b, dict) and list(a) == list(b):
            return {key: self._choice(a[key], b[key]) for key in a}
        if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
            items = [self._choice(x, y) for x, y in zip(a, b, strict=True)]
            return tuple(items) if isinstance(a, tuple) else items
        return place_by_mode(self.gm, a, b)
