"""ImageNet-style folders, ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg``, read through torchvision and Pillow."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from nce_fx.data.loaders import Data, Samples
from nce_fx.data.vision import existing_folder, torchvision_part
from nce_fx.errors import InputError, one_line

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What Pillow and the formats behind it raise on a damaged file.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error)


class CorruptImageError(InputError):
    """An image that cannot be read, or a batch of nothing else."""

    def __init__(self, message: str) -> None:
        # A DataLoader's process hands its traceback over as the message: the last line is ours.
        super().__init__(message.strip().splitlines()[-1].rpartition("CorruptImageError: ")[2])


class Pictures(Dataset[Any]):
    """The images of one split; an image that cannot be read is None, and warned of once, with the number so far."""

    def __init__(self, folder: Any, transform: Callable[[Any], Tensor], strict: bool, damaged: Tensor) -> None:
        self.folder, self.transform, self.strict, self.damaged = folder, transform, strict, damaged

    def __len__(self) -> int:
        return len(self.folder.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | None:
        path, label = self.folder.samples[index]
        try:
            image = self.folder.loader(path)
        except DAMAGE as error:
            if self.strict:
                raise CorruptImageError(f"corrupt image {path} ({one_line(error)}): repair or remove it") from error
            if not self.damaged[index]:
                self.damaged[index] = 1
                count = int(self.damaged.sum())
                warnings.warn(f"corrupt image {path} left out; {count} so far in this split", stacklevel=2)
            return None
        return self.transform(image), label


def readable(samples: list[Any]) -> Any:
    """Collate the samples that could be read.

    Raises:
        CorruptImageError: none of them could.
    """
    found = [sample for sample in samples if sample is not None]
    if not found:
        raise CorruptImageError(
            f"data imagefolder: all {len(samples)} images of a batch are corrupt: is the disk damaged?"
        )
    return default_collate(found)


def image_folder(
    folder: str,
    seed: int = 0,
    batch_size: int = 64,
    augment: bool | None = None,
    *,
    strict: bool = False,
    size: int = 224,
) -> Data:
    """Return the images of ``folder/train`` and ``folder/val``, normalised, (3, size, size).

    Trained on as random crops of 8 % to 100 % of the area, mirrored half of the time; tested on the centre crop after
    the shorter side is made 256/224 of ``size``. An image that cannot be read is left out with a warning that counts,
    or ends it all where ``strict``.

    Raises:
        InputError: torchvision or Pillow is not installed, a folder is missing or empty, or the splits' classes differ.
    """
    root = existing_folder(folder, "imagefolder")
    transforms = torchvision_part("transforms", "imagefolder")
    normalised = [transforms.ToTensor(), transforms.Normalize(MEAN, DEVIATION)]
    plain = [transforms.Resize(size * 256 // 224), transforms.CenterCrop(size)]
    moved = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    seen, centred = transforms.Compose(moved + normalised), transforms.Compose(plain + normalised)
    train, test = _split(root, "train"), _split(root, "val")
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))[0]
        raise InputError(f"data imagefolder: train/ and val/ of {folder} differ in their classes: {odd} is in only one")
    # In shared memory: the processes that load count together.
    damaged = torch.zeros(len(train.samples), dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
    damaged_test = torch.zeros(len(test.samples), dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
    return Data(
        name="imagefolder",
        train=Samples(Pictures(train, centred, strict, damaged), readable),
        test=Samples(Pictures(test, centred, strict, damaged_test), readable),
        input_shape=(3, size, size),
        classes=len(train.classes),
        seed=seed,
        batch_size=batch_size,
        augmented=Samples(Pictures(train, seen, strict, damaged), readable).at,
        augment=augment is not False,
        workers=min(4, (os.cpu_count() or 1) - 1),
    )


def _split(root: Path, name: str) -> Any:
    """torchvision's ImageFolder of one split, which knows the files, the classes and how to open an image."""
    datasets = torchvision_part("datasets", "imagefolder")
    if not (root / name).is_dir():
        raise InputError(
            f"data imagefolder: {root} has no folder {name}/; train/CLASS/*.jpg and val/CLASS/*.jpg go there"
        )
    try:
        return datasets.ImageFolder(str(root / name))
    except (OSError, ValueError) as error:
        raise InputError(f"data imagefolder: {root / name}: {one_line(error)}") from error
