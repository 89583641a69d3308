"""A data set, and its batches: their order is a function of seed and epoch, and of nothing else.

So is every random number that a sample's augmentation draws: sample i of epoch e is the same whether one process loads
it or eight workers do, and whether the run was interrupted or not.
"""

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from nce_fx.errors import InputError
from nce_fx.nearest import nearest_path
from nce_fx.random_state import put_back, seed_all


class Loader(Protocol):
    """A sized iterable of batches ``(inputs, target)``; a torch DataLoader is one."""

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the batches."""
        ...

    def __len__(self) -> int:
        """Return the number of batches."""
        ...


class BatchDataset(Dataset[Any]):
    """A map-style data set that makes whole batches itself."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Any:
        inputs, target = self.__getitems__([index])
        return inputs[0], target[0]

    def __getitems__(self, indices: Sequence[int]) -> Any:
        """Return the batch ``(inputs, target)`` of the samples at these indices."""
        raise NotImplementedError


class Samples(BatchDataset):
    """Any map-style data set, its random numbers (torch's, NumPy's, Python's) a function of seed, epoch and index."""

    def __init__(
        self, dataset: Any, collate: Callable[[list[Any]], Any] = default_collate, seed: int = 0, epoch: int = 0
    ) -> None:
        self.dataset, self.collate, self.seed, self.epoch = dataset, collate, seed, epoch

    def at(self, seed: int, epoch: int) -> "Samples":
        """Return the samples as they are in another epoch."""
        return Samples(self.dataset, self.collate, seed, epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        with put_back():
            return self._sample(index)

    def __getitems__(self, indices: Sequence[int]) -> Any:
        """Return the collated samples at these indices."""
        with put_back():
            return self.collate([self._sample(index) for index in indices])

    def _sample(self, index: int) -> Any:
        seed = seed_of(self.seed, self.epoch, index)
        seed_all(seed)
        return self.dataset[index]


CALIBRATION_BATCHES, CALIBRATION_SIZE = 8, 64
"""How much training data sensitivities and the quantizers' first ranges come from."""


@dataclass(frozen=True)
class Data:
    """A data set in two splits. ``load_data`` makes one."""

    name: str
    train: BatchDataset | Loader
    """The training split without augmentation; batches as they come where the user gave a loader of their own."""
    test: BatchDataset | Loader
    input_shape: tuple[int, ...]
    """The shape of one input, without the batch axis: (channels, height, width) for images."""
    classes: int | None
    """How many there are; ``None`` where targets are something else."""
    seed: int = 0
    batch_size: int = 64
    augmented: Callable[[int, int], BatchDataset] | None = None
    """(seed, epoch) -> the training split as it is trained on in that epoch; None where there is no augmentation."""
    augment: bool = True
    """Whether training uses ``augmented``."""
    workers: int = 0
    """Processes that load; 0 loads in this one."""

    def loader(
        self,
        split: str = "train",
        batch_size: int | None = None,
        seed: int | None = None,
        epoch: int = 0,
        shuffle: bool | None = None,
    ) -> Loader:
        """Return the batches ``(inputs, target)`` of a split; the same arguments give the same batches.

        Args:
            split: "train", which is augmented, or "test", which is not.
            batch_size: samples in a batch, the last one may be smaller; the data's own by default.
            seed: of the order and the augmentation; the data's own by default.
            epoch: each has its own order and augmentation.
            shuffle: by default the training split is shuffled, the test split is not.

        Raises:
            InputError: an unknown split, or a batch size below 1.
        """
        seed = self.seed if seed is None else seed
        batch_size = self.batch_size if batch_size is None else batch_size
        if split not in ("train", "test"):
            raise InputError(f"data {self.name}: no split {split!r}; there are 'train' and 'test'")
        if batch_size < 1:
            raise InputError(f"data {self.name}: batch size {batch_size} is below 1")
        dataset = self.train if split == "train" else self.test
        if split == "train" and self.augment and self.augmented is not None:
            dataset = self.augmented(seed, epoch)
        if not isinstance(dataset, BatchDataset):
            return dataset
        shuffle = split == "train" if shuffle is None else shuffle
        order = order_of(len(dataset), seed, epoch) if shuffle else range(len(dataset))
        return DataLoader(
            dataset,
            batch_size,
            sampler=order,
            collate_fn=as_it_is,
            num_workers=self.workers,
            # Or each iteration would draw a number from the global generator.
            generator=torch.Generator().manual_seed(seed_of(seed, epoch, 2)),
            multiprocessing_context="fork" if self.workers and sys.platform == "linux" else None,
        )

    def batches(self, n: int, batch_size: int | None = None, seed: int | None = None) -> list[Any]:
        """Return at most ``n`` batches of the training split, without augmentation, for calibration and sensitivity.

        Fewer where the split has fewer; the seed chooses which.

        Raises:
            InputError: a number of batches or a batch size below 1.
        """
        batch_size = self.batch_size if batch_size is None else batch_size
        if n < 1 or batch_size < 1:
            raise InputError(f"data {self.name}: {n} batches of {batch_size} samples: both must be 1 or more")
        if not isinstance(self.train, BatchDataset):
            return list(islice(iter(self.train), n))
        order = order_of(len(self.train), self.seed if seed is None else seed, 0)[: n * batch_size]
        return [self.train.__getitems__(order[at : at + batch_size]) for at in range(0, len(order), batch_size)]


def as_it_is(batch: Any) -> Any:
    """Return the batch that a ``BatchDataset`` has already made."""
    return batch


def seed_of(*position: int) -> int:
    """Return a seed for a position such as (seed, epoch, index): a hash, so that near positions share nothing."""
    digest = hashlib.blake2b(repr(position).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def order_of(length: int, seed: int, epoch: int) -> list[int]:
    """Return the order of an epoch: a permutation of ``range(length)``."""
    generator = torch.Generator().manual_seed(seed_of(seed, epoch))
    order: list[int] = torch.randperm(length, generator=generator).tolist()
    return order


def existing_folder(folder: str, name: str) -> Path:
    """Return the absolute path of a folder that is there.

    Raises:
        InputError: it is not given, not there, or not a folder.
    """
    if not folder:
        raise InputError(f"data {name}: say where its folder is: {name}:DIR")
    path = Path(folder).expanduser().absolute()
    if not path.exists():
        raise InputError(f"data {name}: there is no folder {folder}{nearest_path(Path(folder))}")
    if not path.is_dir():
        raise InputError(f"data {name}: {folder} is a file, not a folder")
    return path
