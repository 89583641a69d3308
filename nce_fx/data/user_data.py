"""A user's own data: a callable without arguments that gives (train, test), two data sets or two loaders."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from nce_fx.data.loaders import BatchDataset, Data, Loader, Samples
from nce_fx.errors import InputError, one_line


def own_data(
    spec: str, factory: Callable[[], Any], seed: int = 0, batch_size: int = 64, augment: bool | None = None
) -> Data:
    """Return the data of a callable, which ``spec`` names (``package.module:callable``, ``file.py:callable``).

    It gives a pair (train, test). Each is a map-style data set of (input, target), or a DataLoader, or any other sized
    iterable of batches, in any form that `nce_fx.batches` reads. A DataLoader with torch's own samplers is taken apart:
    its data set, its collate function and its workers are used, the order and the batch size are the recipe's.
    Everything else is read as it comes. Random numbers that a data set draws are a function of seed, epoch and index;
    ``augment=False`` makes them the same in every epoch.

    The number of classes is the data set's ``classes``, or one more than the largest of its ``targets`` or ``labels``,
    or of the targets read one by one, which takes as long as it takes to load the training split. There are none where
    the target of a sample is not one whole number.

    Raises:
        InputError: the callable raises, or what it gives is not two splits of batches.
    """
    try:
        given = factory()
    except Exception as error:
        raise InputError(f"data {spec!r}: the callable raised {one_line(error)}") from error
    if isinstance(given, Data):
        return given
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise InputError(f"data {spec!r}: the callable gives {_kind(given)}, not a pair (train, test)")
    train, test = (_split(part, split, spec) for part, split in zip(given, ("train", "test"), strict=True))
    shape, of_classes = _first(train, "train", spec)
    _first(test, "test", spec)
    return Data(
        name=spec,
        train=train,
        test=test,
        input_shape=shape,
        classes=_classes(given[0], train, spec) if of_classes else None,
        seed=seed,
        batch_size=batch_size,
        augmented=train.at if isinstance(train, Samples) else None,
        augment=augment is not False,
        workers=max((part.num_workers for part in given if isinstance(part, DataLoader)), default=0),
    )


def _split(given: Any, split: str, spec: str) -> BatchDataset | Loader:
    """One split as a data set that makes batches, or as the loader that it is."""
    try:
        length = len(given)
    except TypeError:
        raise InputError(f"data {spec!r}: the {split} split, {_kind(given)}, has no length") from None
    if length == 0:
        raise InputError(f"data {spec!r}: the {split} split is empty")
    if isinstance(given, BatchDataset):
        return given
    if isinstance(given, DataLoader):
        usual = type(given.batch_sampler) is BatchSampler and type(given.sampler) in (RandomSampler, SequentialSampler)
        if usual and not isinstance(given.dataset, IterableDataset):
            return Samples(given.dataset, given.collate_fn)
        return given
    if hasattr(given, "__getitem__"):
        return Samples(given)
    if hasattr(given, "__iter__"):
        return given  # type: ignore[no-any-return]  # a sized iterable of batches
    raise InputError(f"data {spec!r}: the {split} split is {_kind(given)}, not a data set and not a loader")


def _first(split: BatchDataset | Loader, name: str, spec: str) -> tuple[tuple[int, ...], bool]:
    """The shape of one input, read from the split's first batch, and whether its target is one class a sample."""
    try:
        batch = split.__getitems__([0]) if isinstance(split, BatchDataset) else next(iter(split))
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"data {spec!r}: the first sample of the {name} split cannot be batched: {one_line(error)}"
        ) from error
    inputs, target = batch if isinstance(batch, tuple | list) and len(batch) == 2 else (batch, None)
    while isinstance(inputs, tuple | list | Mapping) and len(inputs):
        inputs = next(iter(inputs.values() if isinstance(inputs, Mapping) else inputs))
    if not isinstance(inputs, Tensor):
        raise InputError(f"data {spec!r}: the {name} split's input is {_kind(inputs)}, not a tensor")
    of_classes = isinstance(target, Tensor) and not target.is_floating_point() and target.dim() == 1
    return tuple(inputs.shape[1:]), of_classes


def _classes(given: Any, split: BatchDataset | Loader, spec: str) -> int:
    """The number of classes that the training split says it has, or that is counted."""
    source = given
    while isinstance(source, DataLoader | Subset):
        source = source.dataset
    named = getattr(source, "classes", None)
    if isinstance(named, int):
        return named
    if named is not None:
        return len(named)
    if isinstance(source, TensorDataset):
        return int(source.tensors[1].max()) + 1
    for attribute in ("targets", "labels"):
        values = getattr(source, attribute, None)
        if values is not None and len(values):
            return int(torch.as_tensor(values).max()) + 1
    try:
        batches = (
            map(split.__getitems__, ([i] for i in range(len(split)))) if isinstance(split, BatchDataset) else split
        )
        return 1 + max(int(target.max()) for _, target in batches)
    except Exception as error:
        raise InputError(f"data {spec!r}: a sample of the train split cannot be read: {one_line(error)}") from error


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}".replace("torch.", "")
    return f"a value of type {type(value).__name__}"
