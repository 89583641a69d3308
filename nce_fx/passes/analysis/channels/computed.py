"""Weights that the graph computes from parameters, and when one can be kept as a parameter instead.

A standardized weight depends on all its inputs at once: no change to what it is computed from divides one channel among
copies. But its value can be divided, so a resize puts the value in the place of the parameter it is computed from. A
gain that the graph multiplies it by (one for each filter, as in NF-nets) goes on multiplying it.

Others are moved or cut out of a parameter, and grow as the parameter does, or not: ``weight.view(10, -1)`` and
``weight[:, :x.shape[1]]`` do; ``weight.view(10, 8)`` and ``weight[:, :8]`` have the width written down. The graph says
which: it is run again, without values, on a parameter that is one longer.
"""

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg
from torch.fx.passes.shape_prop import _extract_tensor_metadata

from nce_fx.by_mode import evaluating, is_by_mode, runs_in
from nce_fx.ids.space import ParameterAxis, Tensors
from nce_fx.ids.value import ChannelTensor
from nce_fx.ops.work import ancestors, source_parameters


@dataclass(frozen=True)
class Computed:
    """A weight that the graph computes, and the gain that it is in proportion to, where it has one."""

    weight: Node
    gain: Node | None


def computed(gm: nn.Module, weight: Node, read: ParameterAxis, tensors: Tensors) -> Computed | None:
    """Return a weight that can be kept in the place of the parameter whose axis is read; ``None`` where it cannot.

    One layer alone reads the weight, nothing else needs the parameter, and of other trained parameters there is at most
    a gain.
    """
    path, axis = read
    parameter = {alias for alias, first in tensors.canonical.items() if first == path}
    if len(weight.users) != 1 or not parameter.intersection(source_parameters(weight)):
        return None
    inside = frozenset(_chain(weight))

    def apart(node: Node) -> bool:
        if node.op == "call_module":
            return node not in inside and not any(alias.startswith(f"{node.target}.") for alias in parameter)
        return node.target not in parameter or all(user in inside for user in (node, *node.users))

    if not all(map(apart, weight.graph.nodes)):
        return None
    trained = [n for n in inside if n.op == "get_attr" and not tensors.is_buffer(str(n.target))]
    others = [node for node in trained if node.target not in parameter and node.target in tensors.canonical]
    if not others:
        return Computed(weight, None)
    found = Computed(weight, others[0])
    return found if len(others) == 1 and _is_in_proportion(gm, found, axis) else None


def _chain(weight: Node) -> tuple[Node, ...]:
    """Return the nodes that a weight is computed from, in order, itself last."""
    found: dict[Node, None] = {}

    def visit(node: Node) -> None:
        if node not in found:
            for source in node.all_input_nodes:
                visit(source)
            found[node] = None

    visit(weight)
    return tuple(found)


def no_longer_needed(found: Computed) -> tuple[Node, ...]:
    """Return the nodes that go where a weight is kept: the weight itself, unless its gain goes on multiplying it."""
    gone: dict[Node, None] = {} if found.gain is not None else {found.weight: None}
    for node in reversed(_chain(found.weight)[:-1]):
        if node is not found.gain and all(user in gone or user is found.weight for user in node.users):
            gone[node] = None
    return tuple(gone)


def _is_in_proportion(gm: nn.Module, found: Computed, axis: int) -> bool:
    assert found.gain is not None
    gain, whole = (_evaluated(gm, node, ()) for node in (found.gain, found.weight))
    without = value_of(gm, found)
    beside = [k for k, size in enumerate(gain.shape) if size > 1]
    if gain.dim() != whole.dim() or len(beside) > 1 or axis in beside or gain.device.type == "meta":
        return False
    return bool((without * gain - whole).abs().max() <= 64 * torch.finfo(whole.dtype).eps * whole.abs().max())


def _evaluated(gm: nn.Module, node: Node, ones: Iterable[Node | None]) -> torch.Tensor:
    """Compute a node from parameters alone, as in evaluation mode, with ones in the place of some of them."""
    run = Interpreter(gm, garbage_collect_values=False)
    evaluated = runs_in(node.graph.nodes, training=False)
    with evaluating(gm), torch.no_grad():
        for source in (source for source in _chain(node) if source in evaluated):
            value = run.env[source.args[0]] if is_by_mode(source) else run.run_node(source)  # type: ignore[index]
            run.env[source] = torch.ones_like(value) if source in ones else value
    result: torch.Tensor = run.env[node]
    return result.detach()


def value_of(gm: nn.Module, found: Computed) -> torch.Tensor:
    """Compute a weight from its parameters, but for its gain."""
    return _evaluated(gm, found.weight, (found.gain,))


def keep(gm: GraphModule, found: Computed, parameter: str) -> None:
    """Read a parameter where a weight was computed, times its gain, and drop what computed it."""
    chain = _chain(found.weight)
    meta = _extract_tensor_metadata(gm.get_parameter(parameter))
    with gm.graph.inserting_before(found.weight):
        kept = gm.graph.get_attr(parameter)
        kept.meta["tensor_meta"] = meta
        if found.gain is not None:
            kept = gm.graph.call_function(operator.mul, (kept, found.gain))
            kept.meta["tensor_meta"] = meta
    found.weight.replace_all_uses_with(kept)
    for node in reversed(chain):
        if not node.users:
            gm.graph.erase_node(node)


class _UnknownError(Exception):
    """A value that is needed is not of the parameter, nor a number."""


def grows_with_parameter(
    node: Node, axis: int, read: ParameterAxis, tensors: Tensors, values: Mapping[Node, Any]
) -> bool:
    """Whether an axis of a weight is one longer where the axis of the parameter that it comes from is."""
    path, position = read
    length = tensors.tensors[path].shape[position]
    known: dict[Node, Any] = {}

    def value(n: Node) -> Any:
        if n not in known:
            known[n] = _again(n)
        return known[n]

    def _again(n: Node) -> Any:
        if n.op == "get_attr" and str(n.target) in tensors.canonical:
            shape = list(tensors.tensors[str(n.target)].shape)
            shape[position] += tensors.canonical[str(n.target)] == path
            return torch.empty(shape, device="meta")
        if _comes_from(n, path, tensors) and n.op in ("call_function", "call_method"):
            args, kwargs = map_arg((n.args, n.kwargs), value)
            if n.op == "call_function":
                return n.target(*args, **kwargs)  # type: ignore[operator]
            return getattr(args[0], str(n.target))(*args[1:], **kwargs)
        recorded = values.get(n)
        if type(recorded) is int:
            # A slice up to no number goes to the end; what takes sizes takes no such, and its size stays as it was.
            return None if recorded == length else recorded
        if isinstance(recorded, ChannelTensor) or n.op == "call_module":
            raise _UnknownError
        return recorded

    try:
        longer = value(node)
    except _UnknownError:
        return True
    except Exception:
        # The numbers that are written down do not fit the longer parameter.
        return False
    return isinstance(longer, torch.Tensor) and longer.shape[axis] == length + 1


def _comes_from(node: Node, path: str, tensors: Tensors) -> bool:
    """Whether a parameter is among what a node is computed from."""
    return any(n.op == "get_attr" and tensors.canonical.get(str(n.target)) == path for n in ancestors([node]))
