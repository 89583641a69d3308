"""Weights that the graph merges of several parameters by products of them, as branches that become one kernel do.

    weight = conv(first, second) + skip         weight = base + up @ down

No rule of an operation says what these do to channels: along an axis that is summed, copies of one parameter meet the
shares of another. So it is asked of the computation as a whole. Which axis of a value goes with which axis of a
parameter shows where some entries of the parameter change; that a resize keeps the weight is computed, on random
numbers, from the parameters as the resize would make them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from nce_fx.ids.space import ParameterAxis, Tensors
from nce_fx.ops import Ops
from nce_fx.ops.work import ancestors, descendants, source_parameters
from nce_fx.passes.analysis.channels.edits import Gather

_KINDS = ("weighted", "product")
_SAME = 1e-9
"""Allowed difference in float64, as a share of the largest value."""


@dataclass(frozen=True, eq=False)
class Merged:
    """The nodes that compute the weight and the bias of a layer from parameters alone."""

    nodes: tuple[Node, ...]
    """In the order of the graph, those that read parameters among them."""
    made: tuple[Node, ...]
    """What the layer reads."""
    tensors: Tensors

    @cached_property
    def sources(self) -> Mapping[str, torch.Tensor]:
        """Random numbers for each parameter, by its path: what holds of them holds however the network is trained."""
        drawn: dict[str, torch.Tensor] = {}
        random = torch.Generator().manual_seed(len(self.nodes))
        for path in (str(node.target) for node in self.nodes if node.op == "get_attr"):
            first, known = self.tensors.canonical[path], self.tensors.tensors[path]
            if self.tensors.is_buffer(path):
                drawn[path] = known.double()
            elif path not in drawn:
                own = drawn.get(first, torch.randn(known.shape, dtype=torch.float64, generator=random))
                drawn[path] = drawn[first] = own
        return drawn

    @cached_property
    def values(self) -> Mapping[Node, Any]:
        """What the nodes compute from the sources."""
        return self._computed(self.sources)

    @cached_property
    def follows(self) -> Mapping[Node, tuple[tuple[ParameterAxis, ...], ...]]:
        """For each axis of each tensor that is computed: the axes of parameters that go with it, entry by entry."""
        found: dict[Node, list[list[ParameterAxis]]] = {
            node: [[] for _ in value.shape] for node, value in self.values.items() if isinstance(value, torch.Tensor)
        }
        for axis, size in self._axes():
            chosen = _first_ones(size)
            values = self._computed({path: _changed(*item, axis, chosen) for path, item in self._by_path()})
            for node, axes in found.items():
                differs = (values[node] - self.values[node]).abs() > _SAME * self.values[node].abs().max()
                for k, others in enumerate(axes):
                    along = differs.movedim(k, 0).reshape(size, -1).any(1) if differs.shape[k] == size else None
                    if along is not None and torch.equal(along, chosen):
                        others.append(axis)
        return {node: tuple(map(tuple, axes)) for node, axes in found.items()}

    def is_in_proportion(self, node: Node, axis: int) -> bool:
        """Whether entries along an axis are as much larger as those of all parameters that go with it together."""
        own, chosen = self.follows[node][axis], _first_ones(self.values[node].shape[axis])
        sources = {}
        for path, (first, value) in self._by_path():
            for each in own:
                value = _changed(first, value, each, chosen)
            sources[path] = value
        wanted = _changed("", self.values[node], ("", axis), chosen)
        return _is_same(self._computed(sources)[node], wanted)

    def _by_path(self) -> Iterator[tuple[str, tuple[str, torch.Tensor]]]:
        return ((path, (self.tensors.canonical[path], value)) for path, value in self.sources.items())

    def _axes(self) -> Iterator[tuple[ParameterAxis, int]]:
        """Yield the axes that can have channels: the first two of a kernel, which its places come after."""
        for path in dict.fromkeys(self.tensors.canonical[path] for path in self.sources):
            if not self.tensors.is_buffer(path):
                sizes = self.tensors.tensors[path].shape[:2]
                yield from (((path, axis), size) for axis, size in enumerate(sizes) if size > 1)

    def _computed(self, sources: Mapping[str, torch.Tensor]) -> dict[Node, Any]:
        known: dict[Node, Any] = {}
        for node in self.nodes:
            if node.op == "get_attr":
                known[node] = sources[str(node.target)].clone()
                continue
            args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
            if node.op == "call_method":
                known[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return known

    def difference(self, gathers: Mapping[ParameterAxis, Gather]) -> str | None:
        """Return in words why what a resize gathers does not give the weight that it should; ``None`` where it does."""
        sources = {}
        for path, (first, value) in self._by_path():
            for axis in range(value.dim()):
                if (gather := gathers.get((first, axis))) is not None:
                    value = _gathered(value, axis, gather)
            sources[path] = value
        try:
            values = self._computed(sources)
        except Exception as error:
            return str(error).splitlines()[0]
        narrower = False
        for node, axes in self.follows.items():
            found = [gathers.get(own[0]) if own else None for own in axes]
            pairs = list(zip(found, self.values[node].shape, strict=True))
            sizes = tuple(size if gather is None else len(gather.index) for gather, size in pairs)
            if values[node].shape != sizes:
                return f"a weight that the graph computes is {tuple(values[node].shape)}, not {sizes}"
            narrower |= any(gather is not None and len(np.unique(gather.index)) < size for gather, size in pairs)
        for node in () if narrower else self.made:
            wanted, got = self.values[node], values[node]
            for axis, own in enumerate(self.follows[node]):
                gather = gathers.get(own[0]) if own else None
                if gather is not None and gather.divisor is not None:
                    got = _summed(got, axis, gather, wanted.shape[axis])
                elif gather is not None:
                    wanted = _select(wanted, axis, gather)
            if not _is_same(got, wanted):
                return "a weight that the graph computes from them is another"
        return None


def _first_ones(size: int) -> torch.Tensor:
    """Choose the first third of so many entries: no order but their own has those in their places."""
    return torch.arange(size) < (size + 2) // 3


def _is_same(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    return torch.allclose(got, wanted, rtol=0, atol=_SAME * float(wanted.abs().max()))


def _changed(path: str, value: torch.Tensor, axis: ParameterAxis, chosen: torch.Tensor) -> torch.Tensor:
    """Return a parameter whose chosen entries along an axis are others, if it is the one of that axis."""
    if path != axis[0]:
        return value
    return value * (1 + 0.7 * chosen).reshape([-1 if k == axis[1] else 1 for k in range(value.dim())])


def _gathered(value: torch.Tensor, axis: int, gather: Gather) -> torch.Tensor:
    """Return a parameter as a resize makes it: rows copied, or what reads them divided and parted at random."""
    new = _select(value, axis, gather)
    if gather.divisor is None:
        return new
    divisor = torch.from_numpy(gather.divisor).reshape([-1 if k == axis else 1 for k in range(value.dim())])
    noise = torch.randn(new.shape, dtype=new.dtype, generator=torch.Generator().manual_seed(axis))
    mean = _select(_summed(noise, axis, gather, value.shape[axis]), axis, gather) / divisor
    result: torch.Tensor = new / divisor + noise - mean
    return result


def _select(value: torch.Tensor, axis: int, gather: Gather) -> torch.Tensor:
    return value.index_select(axis, torch.from_numpy(gather.index))


def _summed(value: torch.Tensor, axis: int, gather: Gather, size: int) -> torch.Tensor:
    """Return the sum over the copies of each entry along an axis."""
    shape = [size if k == axis else length for k, length in enumerate(value.shape)]
    return value.new_zeros(shape).index_add(axis, torch.from_numpy(gather.index), value)


def merged_weights(gm: GraphModule, ops: Ops, tensors: Tensors) -> dict[Node, Merged]:
    """Return what is known of each node that computes a merged weight, or the bias beside it."""
    nodes = list(gm.graph.nodes)
    data = descendants(nodes, (node for node in nodes if node.op in ("placeholder", "call_module")))
    found: dict[Node, Merged] = {}
    for layer in nodes:
        made = [a for a in layer.all_input_nodes if a not in data and a.op != "get_attr"]
        if layer not in data or not made or not _multiplies(ops, layer):
            continue
        inside = set(ancestors(made))
        own = tuple(node for node in nodes if node in inside)
        merged = Merged(own, tuple(made), tensors)
        if _is_apart(merged, inside, ops) and _of_several(merged, ops) and _is_followed(merged):
            found.update(dict.fromkeys((node for node in own if node.op != "get_attr"), merged))
    return found


def _multiplies(ops: Ops, node: Node) -> bool:
    op = ops.of_call(node.target) if node.op in ("call_function", "call_method") else None
    return op is not None and op.kind in _KINDS


def _of_several(merged: Merged, ops: Ops) -> bool:
    """Whether a parameter is multiplied by another on the way, or two or more are as large as what is computed."""

    def multiplied(node: Node) -> bool:
        return _multiplies(ops, node) and sum(bool(source_parameters(source)) for source in node.all_input_nodes) > 1

    several = [path for path, value in merged.sources.items() if value.dim() > 1 and value.shape[1] > 1]
    return any(map(multiplied, merged.nodes)) or len(several) > 1


def _is_apart(merged: Merged, inside: set[Node], ops: Ops) -> bool:
    """Whether nothing but layers reads what is computed, and parameters alone are read."""
    for node in merged.nodes:
        if node.op == "get_attr":
            if str(node.target) not in merged.tensors.tensors:
                return False
        elif not all(user in inside or (node in merged.made and _multiplies(ops, user)) for user in node.users):
            return False
    return True


def _is_followed(merged: Merged) -> bool:
    """Whether the channels of what is computed go with those of parameters, and a weight is in proportion to them."""
    try:
        weights = [node for node in merged.made if merged.values[node].dim() > 1]
        return all(all(merged.follows[node][:2]) for node in merged.made) and all(
            merged.is_in_proportion(node, axis) for node in weights for axis in (0, 1)
        )
    except Exception:
        return False
