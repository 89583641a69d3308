"""The last analysis of a graph, kept with the graph for as long as everything that it depends on is the same."""

from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from nce_fx.ops import table_of
from nce_fx.ops.table import own_row
from nce_fx.paths import modules_of
from nce_fx.pipeline.contract import ANALYSIS, checksum

_OWN = frozenset({"_parameters", "_buffers", "_modules", "_graph", "_code", "training", "meta", ANALYSIS})
"""What is looked at by itself, or changes nothing: channels are followed in eval mode, whatever the mode."""
_TABLES = (dict, OrderedDict)
_ATOMS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, type)


class _Memo:
    """An analysis and the facts that it is of; copies and pickles of the graph go without it."""

    def __init__(self, facts: "Facts", analysis: Any) -> None:
        self.facts, self.analysis = facts, analysis

    def __deepcopy__(self, memo: Any) -> None:
        return None

    def __reduce__(self) -> Any:
        # No name of this package: a pickled graph can be read where it is not installed.
        return type(None), ()


class Facts:
    """All that an analysis of channels depends on: two that are equal give the same analysis.

    Nodes with their arguments and shapes, modules with their settings and hooks, which tensor is where, the values of
    integers and masks (an index moves channels), and the table of operations with the user's rules. Not the values of
    weights: no channel depends on them.
    """

    def __init__(self, gm: GraphModule) -> None:
        self._held: list[Any] = []
        """What is known by its identity, which must not pass on to something else."""
        self.ops = table_of(gm)
        self.nodes = [self._node(node) for node in gm.graph.nodes]
        self.modules = [(path, *self._module(module)) for path, module in modules_of(gm)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Facts) and self._key == other._key

    @property
    def _key(self) -> tuple[Any, ...]:
        return id(self.ops), self.nodes, self.modules

    __hash__ = None  # type: ignore[assignment]

    def _node(self, node: Node) -> tuple[Any, ...]:
        meta = node.meta.get("tensor_meta")
        value = repr(node.meta.get("val")) if meta is None else ""
        row = self._same(own_row(node.target)) if node.op == "call_function" else None
        return node, node.name, node.op, node.target, node.args, node.kwargs, node.stack_trace, meta, value, row

    def _module(self, module: nn.Module) -> tuple[Any, ...]:
        # Most of what a module has are tables of hooks without any.
        held = [(name, value) for name, value in vars(module).items() if type(value) not in _TABLES or value]
        settings = {name: self._frozen(value) for name, value in held if name not in _OWN}
        tensors = [
            [(name, self._tensor(tensor)) for name, tensor in group.items() if tensor is not None]
            for group in (module._parameters, module._buffers)
        ]
        kind = type(module)
        return self._same(module), self._same(kind), self._same(self.ops.derived(module)), tensors, settings

    def _tensor(self, tensor: torch.Tensor) -> tuple[Any, ...]:
        values = None if tensor.is_floating_point() else checksum(tensor)
        return self._same(tensor), tuple(tensor.shape), tensor.dtype, values

    def _frozen(self, value: Any) -> Any:
        """Return what a setting is now: it may be changed in place later."""
        if isinstance(value, _ATOMS):
            return value
        if isinstance(value, torch.Tensor):
            return (*self._tensor(value), checksum(value))
        if isinstance(value, dict):
            return type(value), [(self._frozen(key), self._frozen(item)) for key, item in value.items()]
        if isinstance(value, list | tuple):
            return type(value), [self._frozen(item) for item in value]
        return self._same(value)

    def _same(self, value: Any) -> int:
        self._held.append(value)
        return id(value)


def known_analysis(gm: GraphModule, facts: Facts) -> Any:
    """Return the analysis that is kept with a graph; ``None`` where there is none, or it is of other facts."""
    memo = vars(gm).get(ANALYSIS)
    return memo.analysis if isinstance(memo, _Memo) and memo.facts == facts else None


def keep_analysis(gm: GraphModule, facts: Facts, analysis: Any) -> None:
    """Keep the analysis of a graph with it."""
    vars(gm)[ANALYSIS] = _Memo(facts, analysis)
