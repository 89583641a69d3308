"""The weights of a resize: rows copied, what reads them divided among the copies and parted by noise.

Whether there is memory for them is looked at first: anybody may write a plan, and any width is a number.
"""

import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from math import prod

import numpy as np
import torch
from torch.fx import GraphModule

from nce_fx.devices import FREE_MEMORY, free_memory
from nce_fx.errors import ChannelError
from nce_fx.ids.labels import Ids
from nce_fx.ops.tensors import tensors_of
from nce_fx.passes.analysis.channels import ChannelGraph
from nce_fx.passes.analysis.channels.edits import Gather

NOISE = 0.25
"""Deviation of what parts copies, in units of the weight's own deviation."""

BLOCK = 2**24
"""Entries of a weight that are gathered at once: the room for all of a classifier as large as VGG's would be 411 MB."""

Moves = Sequence[tuple[int, Gather]]
"""(axis, what it takes)"""


class Weights:
    """Makes the weights of one resize, and keeps what they share."""

    def __init__(self, gathers: Iterable[Gather], seed: int, unsaved: Set[str]) -> None:
        """``unsaved`` are paths of constants that no state holds: they may not depend on the seed."""
        self._seed = seed
        self._unsaved = unsaved
        self._indices = {key: _index(i) for key, i in {id(g.index): g.index for g in gathers}.items()}
        self._rooms: dict[tuple[torch.dtype, torch.device], torch.Tensor] = {}

    def changes(self, gather: Gather, length: int) -> bool:
        """Whether a gather changes anything of an axis of that length."""
        return self._indices[id(gather.index)] is not None or len(gather.index) != length

    def gathered(self, path: str, old: torch.Tensor, moves: Moves) -> torch.Tensor:
        """Return a weight with every axis gathered; `path` decides the noise."""
        # What is divided goes first: it is done once for all copies of a row, which then are copied whole.
        *first, (axis, last) = sorted(moves, key=lambda move: move[1].divisor is None) if len(moves) > 1 else moves
        old, size = old.detach(), old.shape[axis]
        rows = max(1, size * BLOCK // max(1, old.numel())) if first else size
        if rows >= size:
            new = self._along(path, old, first).index_select(axis, self._index(last, old.device))
        else:
            new = self._in_blocks(path, old, first, axis, last, rows)
        self._divide(path, new, axis, last)
        return new

    def _in_blocks(
        self, path: str, old: torch.Tensor, first: Moves, axis: int, last: Gather, rows: int
    ) -> torch.Tensor:
        new: torch.Tensor | None = None
        for begin in range(0, old.shape[axis], rows):
            block = old.narrow(axis, begin, min(rows, old.shape[axis] - begin))
            block = self._along(path, block, first, (old, axis, begin))
            new = block.new_empty(_shape(block, axis, len(last.index))) if new is None else new
            places = np.flatnonzero((last.index >= begin) & (last.index < begin + rows))
            copies = block.index_select(axis, torch.from_numpy(last.index[places] - begin).to(old.device))
            new.index_copy_(axis, torch.from_numpy(places).to(old.device), copies)
        assert new is not None
        return new

    def _along(
        self, path: str, weight: torch.Tensor, moves: Moves, block: tuple[torch.Tensor, int, int] | None = None
    ) -> torch.Tensor:
        """Gather along some axes; what is returned is overwritten by the next."""
        for number, (axis, gather) in enumerate(moves):
            out = self._room(weight, axis, len(gather.index)) if number == 0 else None
            weight = torch.index_select(weight, axis, self._index(gather, weight.device), out=out)
            self._divide(path, weight, axis, gather, block)
        return weight

    def _index(self, gather: Gather, device: torch.device) -> torch.Tensor:
        index = self._indices[id(gather.index)]
        index = torch.from_numpy(gather.index) if index is None else index
        return index if device.type == "cpu" else index.to(device)

    def _room(self, like: torch.Tensor, axis: int, length: int) -> torch.Tensor:
        """Return memory for a tensor with another length along an axis, soon let go of: fresh pages cost much."""
        shape = _shape(like, axis, length)
        room = self._rooms.get((like.dtype, like.device))
        if room is None or room.numel() < prod(shape):
            room = self._rooms[like.dtype, like.device] = like.new_empty(prod(shape))
        return room[: prod(shape)].view(shape)

    def _divide(
        self,
        path: str,
        weight: torch.Tensor,
        axis: int,
        gather: Gather,
        block: tuple[torch.Tensor, int, int] | None = None,
    ) -> None:
        """Divide among copies in place, and part them by noise that sums to zero over the copies of a channel.

        The noise is the product of a random vector over the axis and one over the rest of the weight, of which a block
        (the whole before any gather, the axis it is cut along, and where it begins) takes its own part.
        """
        if gather.divisor is None or weight.is_meta:  # without values there is nothing to divide
            return
        shared = np.flatnonzero(gather.divisor > 1)
        if not shared.size:
            return
        begin, end = int(shared[0]), int(shared[-1]) + 1
        divisor = gather.divisor[begin:end]
        part = weight.narrow(axis, begin, end - begin)
        shape = [-1 if k == axis else 1 for k in range(weight.dim())]
        if path in self._unsaved:
            part.div_(torch.from_numpy(divisor).to(weight.device, weight.dtype).view(shape))
            return
        generator = np.random.default_rng([zlib.crc32(path.encode()), self._seed])
        signs = generator.standard_normal(end - begin) * (divisor > 1)
        channel = _numbered(gather.index[begin:end])
        signs -= (np.bincount(channel, signs) / np.bincount(channel))[channel]
        whole, cut, start = block or (weight, axis, 0)
        rest = [1 if k == axis else whole.shape[k] if k == cut else size for k, size in enumerate(weight.shape)]
        noise = torch.from_numpy(generator.standard_normal(rest)).to(weight.device, weight.dtype)
        if block is not None:
            noise = noise.narrow(cut, start, weight.shape[cut])
        # A quarter of its rows says it; all of a wide weight would take a tenth of a resize to read.
        deviation = _deviation(whole[: (len(whole) + 3) // 4]) or _deviation(whole) or 1.0
        along = torch.from_numpy(np.stack([divisor, signs / divisor])).to(weight.device, weight.dtype)
        shares, parting = along.view(2, *shape)
        part.div_(shares).addcmul_(noise, parting, value=NOISE * deviation)


def _index(index: Ids) -> torch.Tensor | None:
    """Return an index as a tensor; ``None`` where it may leave everything in its place."""
    return None if np.array_equal(index, np.arange(len(index))) else torch.from_numpy(index)


def _shape(like: torch.Tensor, axis: int, length: int) -> list[int]:
    return [length if k == axis else size for k, size in enumerate(like.shape)]


def _deviation(weight: torch.Tensor) -> float:
    norm = float(torch.linalg.vector_norm(weight))
    if not 0 < norm < math.inf:  # squares of 1e20 and of 1e-25 are no numbers of single precision
        norm = float(torch.linalg.vector_norm(weight.double()))
    return norm / float(max(1, weight.numel()) ** 0.5)


def _numbered(index: Ids) -> Ids:
    """Return for each entry the place of its value among the values that occur; most indices are in order."""
    if (index[1:] >= index[:-1]).all():
        numbers = np.zeros_like(index)
        np.cumsum(index[1:] != index[:-1], out=numbers[1:])
        return numbers
    return np.unique(index, return_inverse=True)[1]


_UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}

_PER_CHANNEL = 8
"""Bytes that say where one channel comes from, on the CPU, wherever the model is."""


def check_memory(gm: GraphModule, channels: ChannelGraph, widths: Mapping[str, int]) -> None:
    """Return if the weights that a resize makes fit into what is free where they are.

    Raises:
        ChannelError: they do not; the message names the group that asks for most, and the bytes.
    """
    for device, needed in _needed(gm, channels, widths).items():
        free = free_memory(device)
        if needed > free:
            asked = {name: _needed(gm, channels, {name: width})[device] for name, width in widths.items()}
            most = max(asked, key=asked.__getitem__)
            raise ChannelError(
                f"these widths need {_said(needed)} of memory, {_said(free)} are free on {device}: group {most}, "
                f"{channels[most].width} channels wide, alone asks for {_said(asked[most])}; make it narrower, or set "
                f"{FREE_MEMORY} to the bytes that there are"
            )


def _needed(gm: GraphModule, channels: ChannelGraph, widths: Mapping[str, int]) -> dict[torch.device, int]:
    """Return the bytes of all weights that change, by the device where they are."""
    before, after = channels.part_widths({}), channels.part_widths(widths)
    result: dict[torch.device, int] = defaultdict(int)
    result[torch.device("cpu")] = _PER_CHANNEL * sum(after)
    tensors = tensors_of(gm).tensors
    changed = {part for part, (old, new) in enumerate(zip(before, after, strict=True)) if old != new}
    for path, axes in channels.parameter_axes.items():
        if path in tensors and any(part in changed for axis in axes for part, _ in axis.terms):
            result[tensors[path].device] += prod(axis.at(after) for axis in axes) * tensors[path].element_size()
    return result


def _said(count: float) -> str:
    """Return bytes in words, such as "1.5 GB"; a plan can ask for more than any unit has."""
    unit = next((unit for unit in ("TB", "GB", "MB") if count >= _UNITS[unit]), "kB")
    return f"{int(count) // (_UNITS[unit] // 10) / 10:,} {unit}" if count < 10**18 else "more than 1,000,000 TB"
