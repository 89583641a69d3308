"""Labels: integer tensors that say, element by element, which channel an activation's element belongs to.

A label has the true shape of its tensor and stride 0 along every axis that carries no channel, so its memory does not
depend on image size. Every output channel of every op that owns weights has an id of its own; ``FIXED`` marks elements
whose number cannot change (the model's input, padding), ``NEUTRAL`` those that carry no channel at all.

Folding space into channels repeats an id with other values. The low bits of an entry are the id (and, at new widths,
its copy), the high bits say which of the values it is, so that no later reordering can take one for another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Label = torch.Tensor
Ids = npt.NDArray[np.int64]

FIXED = 0
NEUTRAL = 1
FIRST_ID = 2

_PLACE = 40
"""Bits of an entry that hold the id and the copy; the place stands above them."""
_PLACES = 2 ** (62 - _PLACE)


def bare(label: Any) -> Any:
    """Return the ids and copy numbers in a label or an array, without the places within them."""
    return label & (2**_PLACE - 1)


def placed(label: Any) -> bool:
    """Say whether any entry of an array of ids has a place."""
    return 0 not in label.shape and int(label.max()) >> _PLACE != 0


def memory_key(label: torch.Tensor) -> tuple[int, torch.Size, tuple[int, ...]]:
    """Return address, shape and strides of a label; labels with the same three are equal, since none is written to."""
    return label.data_ptr(), label.shape, label.stride()


def at_places(label: torch.Tensor, places: torch.Tensor, count: int) -> torch.Tensor:
    """Return a label with a place added to each entry: which of ``count`` parts of its channel it is."""
    before = label >> _PLACE
    result: torch.Tensor = bare(label) + ((before * count + places) % _PLACES << _PLACE)
    return result


def constant(value: int, shape: Sequence[int]) -> Label:
    """Return a label of one id everywhere."""
    return torch.full((1,) * len(shape), value, dtype=torch.int64).expand(tuple(shape))


def along(line: torch.Tensor, axis: int, shape: Sequence[int]) -> Label:
    """Return a label of this shape whose ids follow ``line`` along one axis and are equal along all others."""
    full, strides = list(shape), [0] * len(shape)
    full[axis], strides[axis] = line.numel(), line.stride(0)
    return line.as_strided(full, strides, line.storage_offset())


def core(label: Label) -> torch.Tensor:
    """Return a label with each axis of stride 0 cut to size 1: (1, 4, 1, 1) of the (2, 4, 8, 8) of an image."""
    if label.numel() == 0:
        return label
    sizes = [1 if stride == 0 else size for size, stride in zip(label.shape, label.stride(), strict=True)]
    return label.as_strided(sizes, label.stride(), label.storage_offset())


def compress(label: Label) -> Label:
    """Return the same label with stride 0 along every axis along which it is constant."""
    if label.numel() == 0:
        return label
    small = core(label)
    for axis, size in enumerate(small.shape):
        if size > 1:
            first = small.narrow(axis, 0, 1)
            if bool((small == first).all()):
                small = first
    return small.expand(label.shape)


def varies(label: Label, axis: int) -> bool:
    """Say whether ids differ along an axis (of a compressed label)."""
    return label.shape[axis] > 1 and label.stride(axis) != 0


def line_of(label: Label, axis: int) -> torch.Tensor:
    """Return the ids along one axis at the first index of all others; nothing of an empty label."""
    if not label.numel():
        return label.new_zeros(label.shape[axis])
    return label.as_strided((label.shape[axis],), (label.stride(axis),), label.storage_offset())


def resized(label: Label, shape: Sequence[int]) -> Label:
    """Return the label for a tensor whose constant axes have other sizes (pooling, upsampling, convolution rows)."""
    return core(label).expand(tuple(shape))


@dataclass(frozen=True)
class Layout:
    """The axes of a label that a view is made of: which are laid out in memory, and along which of them ids differ."""

    moving: frozenset[int]
    """Those that are laid out in memory."""
    named: frozenset[int] = frozenset()
    """Those along which ids differ: what stands there is never told apart by its place."""
    dims: int = 0
    """How many there are."""


def named_axes(label: Label) -> frozenset[int]:
    """Return the axes along which ids differ, whatever the places."""
    small = core(label)
    ids = compress(bare(small)) if placed(small) else small
    return frozenset(axis for axis in range(label.dim()) if varies(ids, axis))


def reshape(
    label: Label, shape: Sequence[int], laid_out: Callable[[Label, frozenset[int]], Layout] | None = None
) -> Label:
    """Reshape a label, touching only the axes that vary.

    Both shapes are cut into the shortest runs of axes with equal products; a run along which nothing varies stays
    constant whatever its sizes, so only runs that carry channels are laid out in memory. ``laid_out`` is given the
    label and their axes, and may name more.
    """
    if label.numel() == 0:
        return label.reshape(list(shape))
    runs = spans(label.shape, shape)
    moving = frozenset(k for old, _ in runs if any(varies(label, axis) for axis in old) for k in old)
    layout = laid_out(label, moving) if laid_out else Layout(moving)
    cropped: list[int] = []
    target: list[int] = []
    for old, new in runs:
        laid = any(axis in layout.moving and label.shape[axis] > 1 for axis in old)
        cropped += [label.shape[axis] if laid else 1 for axis in old]
        target += [shape[axis] if laid else 1 for axis in new]
    small = label.as_strided(cropped, label.stride(), label.storage_offset())
    if prod(target) and list(small.shape) != target:
        small = _folded(label, small, layout.named)
    return compress(small.reshape(target)).expand(list(shape))


def spans(old: Sequence[int], new: Sequence[int]) -> list[tuple[range, range]]:
    """Return the shortest runs of axes of two shapes that have equal products."""
    found = []
    i = j = 0
    while i < len(old) or j < len(new):
        begin_i, begin_j = i, j
        size_i = size_j = 1
        if i < len(old):
            size_i, i = old[i], i + 1
        if j < len(new):
            size_j, j = new[j], j + 1
        while size_i != size_j:
            if size_i < size_j:
                size_i, i = size_i * old[i], i + 1
            else:
                size_j, j = size_j * new[j], j + 1
        found.append((range(begin_i, i), range(begin_j, j)))
    return found


def _folded(label: Label, small: torch.Tensor, named: frozenset[int]) -> torch.Tensor:
    """Tell apart the elements of axes without channels that a reshape lays out along with channels."""
    still = [
        axis for axis, size in enumerate(small.shape) if size > 1 and axis not in named and not varies(label, axis)
    ]
    if not still:
        return small
    sizes = [small.shape[axis] if axis in still else 1 for axis in range(label.dim())]
    return at_places(small, torch.arange(prod(sizes)).reshape(sizes), prod(sizes))


def told_apart(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Leave out of two tensors that meet the slices that repeat what met just before: thousands of tokens are one."""
    if a.dim() != b.dim() or sum(size > 1 for size in map(max, a.shape, b.shape)) < 2:
        return a, b
    for axis in range(a.dim()):
        begins = [_begins(x, axis) for x in (a, b) if x.shape[axis] > 1]
        if begins:
            keep = torch.stack(begins).any(0).nonzero().reshape(-1)
            a, b = (x.index_select(axis, keep) if x.shape[axis] > len(keep) else x for x in (a, b))
    return a, b


def _begins(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Say of each slice along an axis whether it differs from the one before."""
    rows = bare(x.movedim(axis, 0).flatten(1))
    return torch.cat([torch.ones(1, dtype=torch.bool), (rows[1:] != rows[:-1]).any(1)])


def ranks(keys: Ids) -> Ids:
    """Return for each entry how many equal entries stand before it: ``[0, 0, 1]`` for ``[5, 7, 5]``."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    counts = np.diff(np.r_[starts, len(keys)])
    result = np.empty(len(keys), dtype=np.int64)
    result[order] = np.arange(len(keys)) - np.repeat(starts, counts)
    return result


def broadcast(a: Sequence[int], b: Sequence[int]) -> torch.Size:
    """Return the shape that two shapes have together; PyTorch's own way there takes a hundred times as long.

    Raises:
        RuntimeError: they do not go together.
    """
    longer = max(len(a), len(b))
    pairs = list(zip((1,) * (longer - len(a)) + tuple(a), (1,) * (longer - len(b)) + tuple(b), strict=True))
    if any(x != y and x != 1 and y != 1 for x, y in pairs):
        torch.broadcast_shapes(a, b)  # type: ignore[no-untyped-call]
    return torch.Size([y if x == 1 else x for x, y in pairs])


def numel(shape: Sequence[int]) -> int:
    """Return the number of elements of a shape."""
    return prod(shape)
