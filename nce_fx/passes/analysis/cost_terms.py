"""What there is to sum in a graph: its work, what it stores, and what is in memory, as terms over part widths."""

import sys
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from nce_fx.frozen import Frozen
from nce_fx.passes.analysis.channels.graph import AxisWidth, ChannelGraph
from nce_fx.passes.analysis.hardware import HardwareTable
from nce_fx.passes.analysis.polynomial import Term, Terms


class WorkTerm(NamedTuple):
    """MACs of one product of a layer, and what a MAC counts in bit operations."""

    path: str
    macs: Term
    bits: int


class StoredParameter(NamedTuple):
    """One distinct parameter: who owns it, its numel, and the bits it is stored in."""

    path: str
    owner: str
    numel: Term
    bits: int


class StoredTensor(NamedTuple):
    """One stored value: its numel, its bits, and the first and last step it is in memory."""

    node: str
    numel: Term
    bits: int
    first: int
    last: int


class LayerSite(NamedTuple):
    """One use of a layer, as hardware tables ask for it."""

    path: str
    node: str
    op: str
    kernel: str
    c_in: AxisWidth
    c_out: AxisWidth
    height: AxisWidth
    """Of what the layer gives; tokens for sequences, heads for the products of an attention."""
    width: AxisWidth
    weight_bits: int
    activation_bits: int
    free: bool = False
    """Whether it costs nothing where a table does not have it: a lookup, a product of activations."""

    @property
    def sizes(self) -> tuple[AxisWidth, AxisWidth, AxisWidth, AxisWidth]:
        """What a price depends on."""
        return self.c_in, self.c_out, self.height, self.width


@dataclass(frozen=True)
class CostTerms(Frozen):
    """All terms of a graph's cost over the widths of its parts, of which a quantity chooses."""

    channels: ChannelGraph
    work: tuple[WorkTerm, ...]
    parameters: tuple[StoredParameter, ...]
    tensors: tuple[StoredTensor, ...]
    sites: tuple[LayerSite, ...]
    hardware: HardwareTable | None = None
    """The user's own table of prices."""

    @cached_property
    def work_macs(self) -> Terms:
        """The MACs of every product of ``work``."""
        return Terms(tuple(term.macs for term in self.work), len(self.channels.parts))

    @cached_property
    def numels(self) -> Terms:
        """The numel of every one of ``parameters``."""
        return Terms(tuple(parameter.numel for parameter in self.parameters), len(self.channels.parts))

    @cached_property
    def values(self) -> Terms:
        """The numel of every one of ``tensors``."""
        return Terms(tuple(tensor.numel for tensor in self.tensors), len(self.channels.parts))

    @cached_property
    def live(self) -> tuple[tuple[int, ...], ...]:
        """Which of ``tensors`` are in memory at once; only sets that are in no other."""
        starts: dict[int, list[int]] = {}
        for index, tensor in enumerate(self.tensors):
            starts.setdefault(tensor.first, []).append(index)
        steps, found = sorted(starts), []
        alive: list[int] = []
        for step, after in pairwise([*steps, sys.maxsize]):
            alive = [index for index in alive if self.tensors[index].last >= step] + starts[step]
            # Where nothing ends before the next one starts, all are in memory then as well.
            if any(self.tensors[index].last < after for index in alive):
                found.append(tuple(sorted(alive)))
        return tuple(sorted(found))
