"""The batches of an epoch, in an order that depends on the seed and the epoch alone: skipped, and shared by processes.

A batch belongs to all processes together and each takes a slice of it, so a run sees the same batches on one device and
on many, and a resumed run goes on with the batch after the last one it used.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol

from torch import Tensor, device
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from nce_fx.batches import samples_in
from nce_fx.data.loaders import Loader
from nce_fx.errors import TrainingError
from nce_fx.processes import Engine


class Data(Protocol):
    """What training asks of a data set; ``nce_fx.data.Data`` is one."""

    def loader(self, split: str, *, batch_size: int, seed: int, epoch: int, shuffle: bool) -> Loader:
        """Return the batches of ``"train"`` or ``"test"``, the same ones for the same arguments."""
        ...


_ALONE = Engine(device("cpu"))


class _Slices:
    """Index lists for one process: a batch sampler's from the ``skip``-th on, each cut to this process's share."""

    def __init__(self, lists: Iterable[list[int]], engine: Engine, skip: int, drop_empty: bool) -> None:
        self.lists, self.engine, self.skip, self.drop_empty = lists, engine, skip, drop_empty

    def __iter__(self) -> Iterator[list[int]]:
        for indices in islice(self.lists, self.skip, None):
            mine = _share(len(indices), self.engine, self.drop_empty)
            if mine:
                yield indices[mine.start : mine.stop]


def batches_of(loader: Loader, engine: Engine, skip: int = 0, *, drop_empty: bool = False) -> Iterator[Any]:
    """Iterate over this process's share of every batch, from the ``skip``-th batch on.

    A DataLoader over a map-style data set loads only what this process needs; anything else is cut after loading.

    Raises:
        TrainingError: a batch has fewer samples than there are processes; unless ``drop_empty``, which leaves it out in
            those that have none.
    """
    if engine.processes == 1 and skip == 0:
        return iter(loader)
    if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
        lists = loader.batch_sampler
        if isinstance(lists, BatchSampler):
            return iter(_with_batches(loader, _Slices(lists, engine, skip, drop_empty)))
    rest = islice(iter(loader), skip, None)
    return (_cut(batch, engine) for batch in rest if _share(_length(batch), engine, drop_empty))


def _with_batches(loader: DataLoader[Any], lists: _Slices) -> DataLoader[Any]:
    """The same DataLoader over other index lists; its options are all that it takes beside them."""
    loading = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context")
    options = (*loading, "generator", "prefetch_factor", "pin_memory_device")
    return DataLoader(loader.dataset, batch_sampler=lists, **{name: getattr(loader, name) for name in options})


def _share(size: int, engine: Engine, drop_empty: bool) -> range:
    """This process's part of a batch's positions: the parts of all processes make up the batch."""
    if size < engine.processes and not drop_empty:
        # Every process sees this, so all of them stop.
        raise TrainingError(
            f"a batch of {size} is too small for {engine.processes} processes: the last batch of an epoch must have a "
            "sample for each; choose another batch size"
        )
    return range(size * engine.rank // engine.processes, size * (engine.rank + 1) // engine.processes)


def parts_of(batch: Any, count: int) -> list[Any]:
    """Return a batch cut along its first axis into so many parts of nearly the same size."""
    return [_cut(batch, replace(_ALONE, rank=index, processes=count)) for index in range(count)]


def _cut(batch: Any, engine: Engine) -> Any:
    """This process's share of a loaded batch: every tensor is cut along its first axis, a list of samples as a list."""
    if engine.processes == 1:
        return batch
    size = _length(batch)
    mine = _share(size, engine, drop_empty=True)

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[mine.start : mine.stop] if value.dim() and len(value) == size else value
        if isinstance(value, Mapping):
            return {key: cut(item) for key, item in value.items()}
        if isinstance(value, list) and len(value) == size and not any(_is_batch(item, size) for item in value):
            return value[mine.start : mine.stop]
        if isinstance(value, Sequence) and not isinstance(value, str):
            return tuple(cut(item) for item in value)
        return value

    return cut(batch)


def _is_batch(value: Any, size: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == size


def _length(batch: Any) -> int:
    """The number of samples in a batch, whatever model it is for."""
    inputs, target = (batch[0], batch[1]) if isinstance(batch, tuple | list) and len(batch) > 1 else (batch, None)
    return samples_in(inputs, target)
