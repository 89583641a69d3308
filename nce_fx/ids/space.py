"""The ids that channels have: one for each position of each parameter axis, and the parameters that have them.

Under weight normalization a weight is computed from a direction and a length, and is treated as its parameter:

w = g * v / ||v||        and back: v = w, g = ||w||
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

from nce_fx.ids.labels import FIRST_ID, Ids
from nce_fx.paths import modules_of


@dataclass(frozen=True)
class WeightNormed:
    """A weight that normalization computes, and the two parameters it is computed from."""

    value: torch.Tensor
    length: torch.Tensor
    direction: torch.Tensor
    length_path: str
    direction_path: str
    dim: int
    """The axis that has a length for each entry; -1 for one length of the whole weight."""

    def parameters_for(self, weight: torch.Tensor) -> dict[int, torch.Tensor]:
        """Return what stands in for each of the old tensors (by ``id``) so that this weight is computed."""
        length = torch.norm_except_dim(weight, 2, self.dim)
        return {
            id(self.length): nn.Parameter(length, self.length.requires_grad),
            id(self.direction): nn.Parameter(weight.clone(), self.direction.requires_grad),
        }


def weight_normed(modules: Mapping[str, nn.Module]) -> dict[str, WeightNormed]:
    """Return the weights of a model that weight normalization computes in their layers, old style or new."""
    found: dict[str, WeightNormed] = {}
    for path, module in {id(module): (path, module) for path, module in reversed(list(modules.items()))}.values():
        chain = _chain(module)
        if chain is not None:
            behind = f"{path}.parametrizations.weight.original"
            value: Any = module.weight
            lengths, directions = chain.original0, chain.original1
            found[f"{path}.weight"] = WeightNormed(
                value.detach(), lengths, directions, f"{behind}0", f"{behind}1", chain[0].dim
            )
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm) and hook.name == "weight":
                length: Any = module.weight_g
                direction: Any = module.weight_v
                computed = torch._weight_norm(direction, length, hook.dim).detach()
                found[f"{path}.weight"] = WeightNormed(
                    computed, length, direction, f"{path}.weight_g", f"{path}.weight_v", hook.dim
                )
    return found


def weight_normed_in(
    gm: GraphModule, tensors: Mapping[str, torch.Tensor], normalizes: Callable[[Node], bool]
) -> dict[str, WeightNormed]:
    """Return the weights that a graph normalizes by its own nodes, by the path of the direction.

    Such a weight is treated as the direction's own value, where nothing else reads the direction or the length.
    """
    normalizing = [node for node in gm.graph.nodes if node.op == "call_function" and normalizes(node)]
    readers: dict[int, list[Node]] = {}
    for node in gm.graph.nodes if normalizing else ():
        if node.op == "get_attr" and str(node.target) in tensors:
            readers.setdefault(id(tensors[str(node.target)]), []).extend(node.users)
        elif node.op == "call_module":
            for parameter in gm.get_submodule(str(node.target)).parameters():
                readers.setdefault(id(parameter), []).append(node)
    found: dict[str, WeightNormed] = {}
    for node in normalizing:
        paths = [str(source.target) for source in node.args[:2] if isinstance(source, Node) and source.op == "get_attr"]
        known = [tensors.get(path) for path in paths]
        direction, length = known if len(known) == 2 else (None, None)
        if isinstance(direction, nn.Parameter) and isinstance(length, nn.Parameter):
            dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
            if readers[id(direction)] == [node] == readers[id(length)] and isinstance(dim, int):
                computed = torch._weight_norm(direction, length, dim).detach()
                found[paths[0]] = WeightNormed(computed, length, direction, paths[1], paths[0], dim)
    return found


def _chain(module: nn.Module) -> Any:
    """Return the parametrization of a module whose weight is normalized and nothing else."""
    if "parametrizations" not in module._modules or not parametrize.is_parametrized(module, "weight"):
        return None
    every: Any = module.parametrizations
    chain = every.weight
    plain = len(every) == 1 and len(chain) == 1 and isinstance(chain[0], _WeightNorm)
    return chain if plain else None


def plain_class(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module before weight normalization was put on it."""
    return type(module).__bases__[0] if _chain(module) is not None else type(module)


ParameterAxis = tuple[str, int]


@dataclass(frozen=True)
class Pin:
    """Ids whose number cannot change, and why."""

    ids: Ids
    node: str
    reason: str


class IdSpace:
    """Hands out ids, one for each position of each parameter axis, and says whose an id is."""

    def __init__(self) -> None:
        self.axes: list[ParameterAxis] = []
        self.starts: list[int] = []
        self.sizes: list[int] = []
        self.base: dict[ParameterAxis, int] = {}
        self.length: dict[ParameterAxis, int] = {}
        self.end = FIRST_ID
        self._lines: dict[tuple[ParameterAxis, int], torch.Tensor] = {}
        # Starts and sizes, after an axis of no ids that has what is nobody's; as many columns as may be needed soon.
        self._table = np.array([[np.iinfo(np.int64).min], [0]])
        self._known = 1

    def line(self, axis: ParameterAxis, size: int) -> torch.Tensor:
        """Return the ids of an axis, fresh ones at the first call."""
        if axis not in self.base:
            self.base[axis], self.length[axis] = self.end, size
            self.axes.append(axis)
            self.starts.append(self.end)
            self.sizes.append(size)
            self.end += size
        line = self._lines.get((axis, size))
        if line is None:
            start = self.base[axis]
            line = self._lines[axis, size] = torch.arange(start, start + size)
        return line

    def own(self, axis: ParameterAxis) -> Ids:
        """Return the ids of an axis; none where it has none."""
        if axis not in self.base:
            return np.empty(0, dtype=np.int64)
        start = self.base[axis]
        return np.arange(start, start + self.length[axis])

    def owners(self, ids: Ids) -> Ids:
        """Return the index of the axis each id belongs to; -1 for ids that belong to none."""
        owners: Ids = np.searchsorted(self._columns()[0], ids, side="right") - 2
        return owners

    def widths(self, owners: Ids) -> Ids:
        """Return the length of each owner's axis (0 for -1)."""
        widths: Ids = self._columns()[1][owners + 1]
        return widths

    def _columns(self) -> Ids:
        """Return starts and sizes with what was added since: what was there is not made again for each axis."""
        known, count = self._known, len(self.starts) + 1
        if count > self._table.shape[1]:
            grown = np.empty((2, 2 * count), dtype=np.int64)
            grown[:, :known] = self._table[:, :known]
            self._table = grown
        self._table[:, known:count] = self.starts[known - 1 :], self.sizes[known - 1 :]
        self._known = count
        return self._table[:, :count]


@dataclass
class Tensors:
    """The parameters and buffers of a graph by path, tied ones under one path."""

    tensors: dict[str, torch.Tensor]
    canonical: dict[str, str]
    normed: dict[str, WeightNormed]
    """Weights that weight normalization computes, by the path they would have as parameters: of what the graph
    normalizes, the direction's."""
    modules: dict[str, nn.Module]

    @staticmethod
    def of(gm: GraphModule, normalizes: Callable[[Node], bool]) -> "Tensors":
        """Collect the parameters and buffers of a graph module that hold real or complex numbers.

        Args:
            gm: the graph module.
            normalizes: whether a node is a weight normalization; `nce_fx.ops.tensors` asks the table.
        """
        tensors: dict[str, torch.Tensor] = {}
        canonical: dict[str, str] = {}
        first: dict[int, str] = {}
        modules = dict(modules_of(gm))
        for path, module in modules.items():
            for group in (module._parameters, module._buffers):
                for name, tensor in group.items():
                    if tensor is not None and (tensor.is_floating_point() or tensor.is_complex()):
                        full = f"{path}.{name}" if path else name
                        canonical[full] = first.setdefault(id(tensor), full)
                        tensors[full] = tensor
        normed = weight_normed(modules)
        normed |= weight_normed_in(gm, tensors, normalizes)
        for name, weight in normed.items():
            tensors[name], canonical[name] = weight.value, name
        return Tensors(tensors, canonical, normed, modules)

    def is_buffer(self, path: str) -> bool:
        """Whether a path names a buffer, which no training changes."""
        known = self.tensors.get(path)
        return known is not None and path not in self.normed and not isinstance(known, nn.Parameter)
