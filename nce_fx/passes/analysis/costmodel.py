"""The compiled form of a cost report: arrays over part widths, evaluated for one plan or for many at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from nce_fx.passes.analysis.channels.graph import AxisWidth, ChannelGraph
from nce_fx.passes.analysis.hardware import HardwareTable
from nce_fx.passes.analysis.polynomial import Floats, Integers, Term, Terms

QUANTITIES = ("macs", "params", "bit_ops", "weight_bytes", "activation_bytes", "custom")
"""Everything a budget can be set on, in the order of ``CostModel.totals_of_many``."""


class WorkTerm(NamedTuple):
    """MACs of one product of a layer, and what a MAC counts in bit operations."""

    path: str
    macs: Term
    bits: int


class Parameter(NamedTuple):
    """One distinct parameter: who owns it, its numel, and the bits it is stored in."""

    path: str
    owner: str
    numel: Term
    bits: int


class Tensor(NamedTuple):
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

    @property
    def sizes(self) -> tuple[AxisWidth, AxisWidth, AxisWidth, AxisWidth]:
        """What a price depends on."""
        return self.c_in, self.c_out, self.height, self.width


@dataclass(frozen=True)
class CostModel:
    """All terms of a graph's cost over the widths of its parts."""

    channels: ChannelGraph
    work: tuple[WorkTerm, ...]
    parameters: tuple[Parameter, ...]
    tensors: tuple[Tensor, ...]
    sites: tuple[LayerSite, ...]
    hardware: HardwareTable | None = None
    fingerprint: str = ""
    """Of the graph that was analysed, so that a plan made from this can say which model it is for."""

    @cached_property
    def _terms(self) -> tuple[Terms, Terms, Terms, Terms]:
        parts = len(self.channels.parts)
        sizes = [Term(1, (axis,)) for site in self.sites for axis in site.sizes]
        return (
            Terms(tuple(term.macs for term in self.work), parts),
            Terms(tuple(parameter.numel for parameter in self.parameters), parts),
            Terms(tuple(tensor.numel for tensor in self.tensors), parts),
            Terms(tuple(_padded(term) for term in sizes), parts),
        )

    @cached_property
    def _work_bits(self) -> Integers:
        return np.array([term.bits for term in self.work], np.int64)

    @cached_property
    def _parameter_bits(self) -> Integers:
        return np.array([parameter.bits for parameter in self.parameters], np.int64)

    @cached_property
    def _tensor_bits(self) -> Integers:
        return np.array([tensor.bits for tensor in self.tensors], np.int64)

    @cached_property
    def live(self) -> Floats:
        """Steps x tensors: 1 where a tensor is in memory; only steps whose set is in no other step's set."""
        sets = {frozenset(i for i, t in enumerate(self.tensors) if t.first <= s <= t.last) for s in self._steps}
        kept = sorted((s for s in sets if not any(s < other for other in sets)), key=sorted)
        matrix = np.zeros((len(kept), len(self.tensors)))
        for row, members in enumerate(kept):
            matrix[row, sorted(members)] = 1.0
        return matrix

    @property
    def _steps(self) -> list[int]:
        return sorted({tensor.first for tensor in self.tensors})

    def evaluate(self, part_widths: Sequence[int]) -> dict[str, Integers]:
        """Return every term's value at these widths: MACs, numels, bytes of tensors, prices of layers."""
        work, parameters, tensors, _ = self._terms
        widths = np.asarray(part_widths, np.int64)
        return {
            "work": work.at(widths),
            "parameters": parameters.at(widths),
            "bytes": -(-tensors.at(widths) * self._tensor_bits // 8),
            "custom": self._prices(widths[None].astype(np.float64))[0],
        }

    def totals(self, part_widths: Sequence[int]) -> Mapping[str, float]:
        """Return the total of every quantity at these widths; integers are exact."""
        values = self.evaluate(part_widths)
        numel = values["parameters"]
        in_memory = self.live.astype(np.int64) @ values["bytes"]
        return {
            "macs": int(values["work"].sum()),
            "params": int(numel.sum()),
            "bit_ops": int(values["work"] @ self._work_bits),
            "weight_bytes": int((-(-numel * self._parameter_bits // 8)).sum()),
            "activation_bytes": int(in_memory.max(initial=0)),
            "custom": float(values["custom"].sum()),
        }

    def totals_of_many(self, part_widths: Floats, quantities: Sequence[str] = QUANTITIES) -> Floats:
        """Return totals (batch x quantities) at a batch of part widths (batch x parts)."""
        work, parameters, tensors, _ = self._terms
        columns: dict[str, Floats] = {}
        if not {"macs", "bit_ops"}.isdisjoint(quantities):
            macs = work.at_many(part_widths)
            columns |= {"macs": macs.sum(axis=1), "bit_ops": macs @ self._work_bits.astype(np.float64)}
        if not {"params", "weight_bytes"}.isdisjoint(quantities):
            numel = parameters.at_many(part_widths)
            sizes = np.ceil(numel * (self._parameter_bits / 8))
            columns |= {"params": numel.sum(axis=1), "weight_bytes": sizes.sum(axis=1)}
        if "activation_bytes" in quantities:
            sizes = np.ceil(tensors.at_many(part_widths) * (self._tensor_bits / 8))
            columns["activation_bytes"] = (sizes @ self.live.T).max(axis=1, initial=0)
        if "custom" in quantities:
            columns["custom"] = self._prices(part_widths).sum(axis=1)
        return np.stack([columns[name] for name in quantities], axis=1)

    def _prices(self, part_widths: Floats) -> Floats:
        """Price of every site (batch x sites) in the user's table; zeros without one."""
        if self.hardware is None:
            return np.zeros((len(part_widths), len(self.sites)))
        sizes = self._terms[3].at_many(part_widths).reshape(len(part_widths), len(self.sites), 4)
        columns = [
            self.hardware.price(site.op, site.kernel, sizes[:, i], site.weight_bits, site.path)
            for i, site in enumerate(self.sites)
        ]
        return np.stack(columns, axis=1) if columns else np.zeros((len(part_widths), 0))


def _padded(term: Term) -> Term:
    """Fold a constant axis into the coefficient."""
    return Term.of(term.axes, term.coefficient)
