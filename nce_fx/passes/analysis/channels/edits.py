"""What a resize changes, and how the copies of channels are laid out along the axis that makes them."""

import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.fx import Node

from nce_fx.ids.labels import Ids, bare
from nce_fx.ids.space import ParameterAxis
from nce_fx.ops import OPS

Shares = npt.NDArray[np.float64]

PRODUCTS = OPS.where(lambda op: op.kind == "product")
"""What multiplies its arguments and sums over channels that both have."""


def product_shares(index: Ids, name: str) -> Shares:
    """Return for each new channel its share of the products of the old one: unequal, and one in sum, so copies part.

    The products are of data that are summed over channels, such as queries and keys of one head.
    """
    drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(len(index))
    counts = np.bincount(index)
    mean = np.bincount(index, drawn) / np.maximum(counts, 1)
    result: Shares = (1 + 0.25 * (drawn - mean[index])) / counts[index]
    return result


@dataclass(frozen=True)
class Gather:
    """The old entry of each new entry of an axis, such as ``[0, 0, 1]``, and the number of copies it is divided by."""

    index: Ids
    copies: Ids
    divisor: Ids | None

    def equals(self, other: "Gather") -> bool:
        """Whether two uses of one parameter want the same."""
        pairs = ((self.index, other.index), (self.copies, other.copies), (self.divisor, other.divisor))
        return all(np.array_equal(a, b) if a is not None and b is not None else a is b for a, b in pairs)


@dataclass
class Edits:
    """What a resize changes: parameters, attributes of modules, and the graph."""

    gathers: dict[ParameterAxis, Gather] = field(default_factory=dict)
    attributes: dict[tuple[Node, str, str], Any] = field(default_factory=dict)
    """(node, owner path, name) -> value: a module's attribute, or an argument of a function node."""
    arguments: dict[Node, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    targets: dict[Node, Any] = field(default_factory=dict)
    selects: dict[Node, tuple[Node, int, Ids]] = field(default_factory=dict)
    """A node that becomes ``index_select(source, axis, index)``."""
    inputs: dict[Node, tuple[int | str, int, Ids]] = field(default_factory=dict)
    """A node whose argument at a position, or of a name, is gathered along an axis first."""
    repeats: dict[Node, list[tuple[int | str, int | str, int]]] = field(default_factory=dict)
    """A node whose argument, one entry that is repeated along an axis, is repeated as often as another one is long."""
    products: dict[Node, tuple[int, int, Shares]] = field(default_factory=dict)
    """A node that sums products of channels: one of its arguments, counted through lists, is multiplied first."""

    results: dict[Node, float] = field(default_factory=dict)
    """A node whose result is multiplied by a number."""

    @property
    def change_the_graph(self) -> bool:
        """Whether nodes change, not modules and parameters alone."""
        arguments = any(node.op == "call_function" for node, _, _ in self.attributes)
        edits = (self.arguments, self.selects, self.inputs, self.repeats, self.products, self.results)
        return arguments or any(map(bool, edits))


def lay_out(line: torch.Tensor, classes: Ids, counts: Ids, mode: int, cuts: frozenset[int]) -> tuple[Ids, Ids]:
    """Return (old position, copy) for each new position of a producer's axis.

    A copy stands right after what it copies, so that whatever is cut, joined or padded later stays in order. What is
    copied at once is a run of neighbours of one class (mode 0), such a run cut where the graph cuts it (mode 1), or
    each channel by itself (mode 2).
    """
    ids = bare(line.numpy())
    begins = np.ones(len(ids), dtype=bool)
    if mode < 2:
        own = classes[ids]
        begins[1:] = (own[1:] != own[:-1]) | (ids[1:] != ids[:-1] + 1)
    if mode == 1 and cuts:
        begins |= np.isin(ids, np.fromiter(cuts, dtype=np.int64))
    if begins.all():
        repeat = counts[ids]
        return np.arange(len(ids)).repeat(repeat), _within(repeat)
    starts = np.flatnonzero(begins)
    lengths = np.diff(np.r_[starts, len(ids)])
    repeat = counts[ids[starts]]
    runs = np.repeat(np.arange(len(starts)), repeat)
    sizes = lengths[runs]
    return np.repeat(starts[runs], sizes) + _within(sizes), np.repeat(_within(repeat), sizes)


def _within(sizes: Ids) -> Ids:
    """Return for rows of these sizes laid end to end the place of each entry in its row."""
    first = (sizes.cumsum() - sizes).repeat(sizes)
    places: Ids = np.arange(len(first)) - first
    return places
