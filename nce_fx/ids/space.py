"""The ids that channels have: one for each position of each parameter axis, and the parameters that have them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule

from nce_fx.ids.labels import FIRST_ID, Ids
from nce_fx.ids.reparametrized import WeightNormed, weight_normed
from nce_fx.paths import modules_of

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
        self._frozen: tuple[Ids, Ids] | None = None

    def line(self, axis: ParameterAxis, size: int) -> torch.Tensor:
        """Return the ids of an axis, fresh ones at the first call."""
        if axis not in self.base:
            self.base[axis], self.length[axis] = self.end, size
            self.axes.append(axis)
            self.starts.append(self.end)
            self.sizes.append(size)
            self.end += size
            self._frozen = None
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
        if self._frozen is None:
            self._frozen = (np.array(self.starts, dtype=np.int64), np.array([*self.sizes, 0], dtype=np.int64))
        owners: Ids = np.searchsorted(self._frozen[0], ids, side="right") - 1
        return owners

    def widths(self, owners: Ids) -> Ids:
        """Return the length of each owner's axis (0 for -1)."""
        assert self._frozen is not None
        return self._frozen[1][owners]


@dataclass
class Tensors:
    """The parameters and buffers of a graph by path, tied ones under one path."""

    tensors: dict[str, torch.Tensor]
    canonical: dict[str, str]
    normed: dict[str, WeightNormed]
    """Weights that weight normalization computes, by the path they would have as parameters."""
    modules: dict[str, nn.Module]

    @staticmethod
    def of(gm: GraphModule) -> Tensors:
        """Collect the parameters and buffers of a graph module that hold real or complex numbers."""
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
        for name, weight in normed.items():
            tensors[name], canonical[name] = weight.value, name
        return Tensors(tensors, canonical, normed, modules)

    def is_buffer(self, path: str) -> bool:
        """Whether a path names a buffer, which no training changes."""
        known = self.tensors.get(path)
        return known is not None and path not in self.normed and not isinstance(known, nn.Parameter)
