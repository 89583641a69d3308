"""What laws are tried on: a model traced once for each dtype, and random legal widths of its groups."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.fx import GraphModule

import nce_fx
from nce_fx.passes.analysis.channels import ChannelGraph, ChannelGroup
from tests.observing import counted, to_dtype
from tests.photograph import photograph
from tests.zoo import ZOO


@dataclass(frozen=True)
class Traced:
    """A model traced in one dtype, with its analysis."""

    gm: GraphModule
    inputs: tuple[Any, ...]
    channels: ChannelGraph
    _resized: dict[Any, GraphModule] = field(default_factory=dict, repr=False)

    def resized(self, widths: Mapping[str, int], seed: int = 0) -> GraphModule:
        """Return the graph at other widths, made once; laws change copies alone."""
        key = tuple(widths.items()), seed
        if key not in self._resized:
            self._resized[key] = nce_fx.resize(self.gm, widths, seed=seed)
        return self._resized[key]

    @cached_property
    def cost(self) -> nce_fx.CostReport:
        """What it costs in float, by the analysis."""
        return nce_fx.analyze_cost(self.gm, self.channels)

    @cached_property
    def counted(self) -> tuple[int, int]:
        """Its MACs and parameters, by PyTorch's counter."""
        return counted(self.gm, self.inputs)


_TRACED: WeakKeyDictionary[nn.Module, dict[torch.dtype, Traced]] = WeakKeyDictionary()


def traced(model: nn.Module, inputs: tuple[Any, ...], dtype: torch.dtype = torch.float64) -> Traced:
    """Trace and analyze a model once for each dtype."""
    known = _TRACED.setdefault(model, {})
    if dtype not in known:
        own, own_inputs = copy.deepcopy(model).to(dtype).eval(), to_dtype(inputs, dtype)
        gm = nce_fx.trace(own, own_inputs)
        known[dtype] = Traced(gm, own_inputs, nce_fx.analyze_channels(gm))
    return known[dtype]


def keep(model: nn.Module, dtype: torch.dtype, known: Traced) -> None:
    """Let the laws take this trace of a model, where another one would take long or much memory."""
    _TRACED.setdefault(model, {})[dtype] = known


_PATTERNS: dict[str, tuple[GraphModule, Any]] = {}


def pattern(name: str) -> GraphModule:
    """Return a pattern of the zoo as it is traced in evaluation mode: once for all tests of a process that leave it so.

    Where one has changed anything of it, as running a model does that counts its calls, it is traced anew.
    """
    if name not in _PATTERNS or photograph(_PATTERNS[name][0]) != _PATTERNS[name][1]:
        gm = nce_fx.trace(ZOO[name].make(), ZOO[name].inputs)
        _PATTERNS[name] = gm, photograph(gm)
    return _PATTERNS[name][0]


def one_of(count: int, names: Iterable[str]) -> list[str]:
    """Return about one of so many names: those that it returns whatever other names there are."""
    return sorted(name for name in names if sha256(name.encode()).digest()[0] % count == 0)


def wider(channels: ChannelGraph, seed: int) -> dict[str, int]:
    """Return random legal wider widths, up to twice the width, for about half of the unpinned groups."""
    return _drawn(channels, seed, lambda group: range(1, max(1, group.width // group.step) + 1))


def narrower(channels: ChannelGraph, seed: int) -> dict[str, int]:
    """Return random legal narrower widths for about half of the unpinned groups that can be narrower."""
    return _drawn(channels, seed, lambda group: range(-((group.width - group.min_width) // group.step), 0))


def _drawn(channels: ChannelGraph, seed: int, steps: Callable[[ChannelGroup], range]) -> dict[str, int]:
    rng = random.Random(seed)
    choices = {g.id: (g.width, g.step, steps(g)) for g in channels.groups if g.pinned is None and len(steps(g))}
    chosen = [name for name in choices if rng.random() < 0.5] or list(choices)[:1]
    return {name: choices[name][0] + rng.choice(choices[name][2]) * choices[name][1] for name in chosen}
