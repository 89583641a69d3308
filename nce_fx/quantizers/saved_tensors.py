"""Keeping quantized tensors for the backward pass as what they are: small integers.

Autograd keeps the input and the weight of every layer as floating-point numbers. Quantized ones have at most 256
values, and integers in one byte an element give them back bit for bit:

    with compact_saving():
        loss = loss_function(model(inputs), target)
    loss.backward()

Without it a training step holds every quantized weight beside the float one. Weights are few beside activations, so
their conversion costs next to nothing; activations are kept as integers, too, where ``activations=True`` asks for it.

Eager mode only: under `torch.compile` the compiler decides what to keep and what to compute again; this does nothing.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef


@dataclass(frozen=True)
class Packed:
    """Levels in one byte an element: ``(values + offset) * scale``."""

    values: Tensor
    scale: Tensor
    offset: Tensor | float
    work: torch.dtype
    """What the quantizer computed in."""
    dtype: torch.dtype
    """What it returned."""

    def unpack(self) -> Tensor:
        """Return the levels, computed as the quantizer did."""
        q = self.values.to(self.work)
        if isinstance(self.offset, Tensor) or self.offset:
            q.add_(self.offset)
        return q.mul_(self.scale).to(self.dtype)


def pack_levels(q: Tensor, scale: Tensor, offset: Tensor | float, dtype: torch.dtype, low: int) -> Packed | None:
    """Pack whole numbers, if somebody wants them; ``None`` outside of `compact_saving`."""
    if torch.compiler.is_compiling() or not _kept.active:
        return None
    return Packed(q.to(torch.uint8 if low == 0 else torch.int8), scale, offset, q.dtype, dtype)


class _Entry(NamedTuple):
    storage: StorageWeakRef
    version: int
    strides: tuple[tuple[int, ...], tuple[int, ...]]
    packed: Packed


class _Kept(threading.local):
    """The quantized tensors of the running forward pass, by the address of their storage."""

    def __init__(self) -> None:
        self.active = self.activations = False
        self.tensors: dict[int, _Entry] = {}


_kept = _Kept()


def register(levels: Tensor, packed: Packed | None) -> Tensor:
    """Remember that ``levels`` can be kept as ``packed``, and return it."""
    if packed is not None:
        storage = levels.untyped_storage()
        layout = (tuple(levels.shape), levels.stride())
        _kept.tensors[storage._cdata] = _Entry(
            StorageWeakRef(storage),  # type: ignore[no-untyped-call]
            levels._version,
            layout,
            packed,
        )
    return levels


def packs_activations() -> bool:
    """Whether activations shall be kept as integers."""
    return _kept.activations


@contextmanager
def compact_saving(*, activations: bool = False) -> Iterator[None]:
    """Keep quantized weights (and activations) of the forward pass inside as integers, one byte an element."""
    before = _kept.active, _kept.activations
    _kept.active, _kept.activations = True, activations
    try:
        with saved_tensors_hooks(_pack_saved, _unpack_saved):
            yield
    finally:
        _kept.active, _kept.activations = before
        if not _kept.active:
            _kept.tensors.clear()


@contextmanager
def plain_saving() -> Iterator[None]:
    """Keep nothing of the forward pass inside as integers: what is computed again has no need of them."""
    before = _kept.active, _kept.activations
    _kept.active = _kept.activations = False
    try:
        yield
    finally:
        _kept.active, _kept.activations = before


def _pack_saved(saved: Tensor) -> Any:
    entry = _kept.tensors.get(saved.untyped_storage()._cdata)
    # The tensor may be gone and its address another's, or it may have been changed in place since.
    if entry is None or saved._version != entry.version:
        return saved
    if entry.storage.expired():  # type: ignore[no-untyped-call]
        return saved
    same = (tuple(saved.shape), saved.stride()) == entry.strides and saved.dtype == entry.packed.dtype
    return entry.packed if same else saved


def _unpack_saved(kept: Any) -> Any:
    return kept.unpack() if isinstance(kept, Packed) else kept
