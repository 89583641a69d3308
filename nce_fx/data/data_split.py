"""The training data split in two: weights learn from one part, widths are chosen by the other.

Which sample is in which part is a function of the seed, and stays. Data that comes as batches of the user's own is
halved batch by batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from nce_fx.data.loaders import BatchDataset, Data, Loader, order_of, seed_of
from nce_fx.errors import InputError

_HALVING = 3
"""Position of the halving in the seed, so that it is no epoch's order."""


class _Subset(BatchDataset):
    def __init__(self, whole: BatchDataset, indices: Sequence[int]) -> None:
        self.whole, self.indices = whole, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, indices: Sequence[int]) -> Any:
        return self.whole.__getitems__([self.indices[index] for index in indices])


class _EverySecond:
    """Every second batch of a loader, from the first or the second on."""

    def __init__(self, whole: Loader, first: int) -> None:
        self.whole, self.first = whole, first

    def __len__(self) -> int:
        return (len(self.whole) - self.first + 1) // 2

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.whole), self.first, None, 2)


@dataclass(frozen=True)
class _Augmented:
    whole: Callable[[int, int], BatchDataset]
    indices: Sequence[int]

    def __call__(self, seed: int, epoch: int) -> BatchDataset:
        return _Subset(self.whole(seed, epoch), self.indices)


def split_data(data: Data, seed: int) -> tuple[Data, Data]:
    """Return the data for the weights and the data for the widths; the latter has one sample more where it is odd.

    Raises:
        InputError: there is not enough data for two halves.
    """
    if len(data.train) < 2:
        raise InputError(f"data {data.name}: a search halves its training split, which is too short: {len(data.train)}")
    if not isinstance(data.train, BatchDataset):
        # The second, fourth ... batches for the weights: their half must not be the longer one.
        return replace(data, train=_EverySecond(data.train, 1)), replace(data, train=_EverySecond(data.train, 0))
    order = order_of(len(data.train), seed_of(seed, _HALVING), 0)
    middle = len(order) // 2
    return _part(data, data.train, order[:middle]), _part(data, data.train, order[middle:])


def held_out(data: Data, share: float, seed: int) -> tuple[Data, Data] | None:
    """Return the data without a share of its training split, and that share; each with the share as its test split.

    ``None`` where the training split comes as batches of the user's own, or is too short for both.
    """
    if not isinstance(data.train, BatchDataset):
        return None
    order = order_of(len(data.train), seed_of(seed, _HALVING), 0)
    border = round(share * len(order))
    if not 0 < border < len(order):
        return None
    kept, held = _part(data, data.train, order[border:]), _part(data, data.train, order[:border])
    return replace(kept, test=held.train), replace(held, test=held.train)


def holding_out(data: Data, share: float, seed: int) -> Data:
    """Return the data without a share of its training split, which is its test split: ``holding_out(data, 0.2, 0)``.

    Batches of the user's own can only be halved.
    """
    parts = held_out(data, share, seed)
    if parts is not None:
        return parts[0]
    kept, other = split_data(data, seed)
    return replace(kept, test=other.train)


def _part(data: Data, train: BatchDataset, indices: Sequence[int]) -> Data:
    augmented = None if data.augmented is None else _Augmented(data.augmented, indices)
    return replace(data, train=_Subset(train, indices), augmented=augmented)
