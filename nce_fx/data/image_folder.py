"""ImageNet-style folders, ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg``, read by Pillow.

Crops and sizes are torchvision's to the last bit, random ones included, but nothing of torchvision is asked for: its
compiled part has to be of the same build as torch, which it often is not.
"""

import math
import os
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from nce_fx.data.loaders import Data, Samples, existing_folder
from nce_fx.errors import InputError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"])
# What Pillow and the formats behind it raise on a damaged file.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error)


_LOOKED_AT = 16
"""Classes whose first image is looked at for its size."""


class CorruptImageError(InputError):
    """An image that cannot be read, or a batch of nothing else."""

    def __init__(self, message: str) -> None:
        # A DataLoader's process hands its traceback over as the message: the last line is ours.
        super().__init__(message.strip().splitlines()[-1].rpartition("CorruptImageError: ")[2])


@dataclass(frozen=True)
class ImageFiles:
    """The files of one split: ``ImageFiles(("cat", "dog"), (("train/cat/0.jpg", 0), ("train/dog/0.jpg", 1)))``."""

    classes: tuple[str, ...]
    samples: tuple[tuple[str, int], ...]
    """Path and class number of each image."""


class Pictures(Dataset[Any]):
    """The images of one split; an image that cannot be read is None, and warned of once, with the number so far."""

    def __init__(
        self, folder: ImageFiles, transform: "Callable[[Image], Tensor]", strict: bool, damaged: Tensor
    ) -> None:
        self.folder, self.transform, self.strict, self.damaged = folder, transform, strict, damaged

    def __len__(self) -> int:
        return len(self.folder.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | None:
        path, label = self.folder.samples[index]
        try:
            image = _read(path)
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


def image_folder(folder: str, *, strict: bool, size: int) -> Data:
    """Return the images of ``folder/train`` and ``folder/val``, normalised, (3, size, size); ``DIR@64`` gives the size.

    Trained on as random crops of 8 % to 100 % of the area, mirrored half of the time; tested on the centre crop after
    the shorter side is made 256/224 of ``size``. An image that cannot be read is left out with a warning that counts,
    or ends it all where ``strict``. Where ``DIR`` gives no size and its images are smaller, a warning says so.

    Raises:
        InputError: Pillow is not installed, a folder is missing or empty, or the splits' classes differ.
    """
    _pillow()
    chosen = False
    with_size = re.fullmatch(r"(.+)@([1-9][0-9]*)", folder)
    if with_size and not Path(folder).expanduser().exists():
        folder, size, chosen = with_size[1], int(with_size[2]), True
    root = existing_folder(folder, "imagefolder")
    seen, centred = partial(random_crop, size=size), partial(centre_crop, size=size)
    train, test = _split(root, "train"), _split(root, "val")
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))[0]
        raise InputError(f"data imagefolder: train/ and val/ of {folder} differ in their classes: {odd} is in only one")
    if not chosen:
        _say_enlarged(folder, train, size)
    # In shared memory: the processes that load count together.
    damaged = torch.zeros(len(train.samples), dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
    damaged_test = torch.zeros(len(test.samples), dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
    return Data(
        name="imagefolder",
        train=Samples(Pictures(train, centred, strict, damaged), readable),
        test=Samples(Pictures(test, centred, strict, damaged_test), readable),
        input_shape=(3, size, size),
        classes=len(train.classes),
        augmented=Samples(Pictures(train, seen, strict, damaged), readable).at,
        workers=min(4, (os.cpu_count() or 1) - 1),
    )


def _say_enlarged(folder: str, train: ImageFiles, size: int) -> None:
    """Warn where the first images of the first classes are all smaller than what they are scaled to."""
    first = {label: path for path, label in reversed(train.samples)}
    shapes = [shape for label in sorted(first)[:_LOOKED_AT] if (shape := _shape(first[label])) is not None]
    largest = max(shapes, key=min, default=(size, size))
    if min(largest) < size:
        warnings.warn(
            f"data imagefolder: the images of {folder} are small, such as {largest[0]}x{largest[1]}, and are enlarged"
            f" to {size}x{size}: imagefolder:{folder}@{min(largest)} chooses another size",
            stacklevel=4,
        )


def _shape(path: str) -> tuple[int, int] | None:
    """Width and height of an image, of which no pixel is read; nothing where it is damaged."""
    try:
        with _pillow().open(path) as image:
            return cast("tuple[int, int]", image.size)
    except DAMAGE:
        return None


def _split(root: Path, name: str) -> ImageFiles:
    """The files of one split, class by class, in the order of their names."""
    folder = root / name
    if not folder.is_dir():
        raise InputError(
            f"data imagefolder: {root} has no folder {name}/; train/CLASS/*.jpg and val/CLASS/*.jpg go there"
        )
    classes = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))
    if not classes:
        raise InputError(f"data imagefolder: {folder}: no folder of a class: images go into {name}/CLASS/")
    samples: list[tuple[str, int]] = []
    for number, each in enumerate(classes):
        found = sorted(str(path) for path in (folder / each).rglob("*") if path.suffix.lower() in SUFFIXES)
        if not found:
            raise InputError(f"data imagefolder: {folder}: no image in {each}/ ({' '.join(sorted(SUFFIXES))})")
        samples += ((path, number) for path in found)
    return ImageFiles(classes, tuple(samples))


def _pillow() -> ModuleType:
    """Pillow's images.

    Raises:
        InputError: Pillow is not installed.
    """
    try:
        return import_module("PIL.Image")
    except ModuleNotFoundError as error:
        raise InputError("data imagefolder: needs pillow: pip install 'nce-fx[vision]'") from error


def _read(path: str) -> "Image":
    with _pillow().open(path) as image:
        return cast("Image", image.convert("RGB"))


def centre_crop(image: "Image", size: int) -> Tensor:
    """Return the middle of an image whose shorter side is made 256/224 of ``size``, normalised, (3, size, size)."""
    width, height = image.size
    short = size * 256 // 224
    scaled = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    left, top = (round((length - size) / 2) for length in scaled)
    return _normalised(_resized(image, scaled).crop((left, top, left + size, top + size)))


def random_crop(image: "Image", size: int) -> Tensor:
    """Return a part of an image, 8 % to 100 % of it, mirrored half of the time, normalised, (3, size, size)."""
    left, top, width, height = _random_box(*image.size)
    result = _normalised(_resized(image.crop((left, top, left + width, top + height)), (size, size)))
    return result.flip(2) if torch.rand(1) < 0.5 else result


def _random_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Draw (left, top, width, height) of a part: its area, its form, its place; the middle where ten do not fit."""
    for _ in range(10):
        area = width * height * torch.empty(1).uniform_(0.08, 1.0).item()
        form = torch.exp(torch.empty(1).uniform_(math.log(3 / 4), math.log(4 / 3))).item()
        w, h = round(math.sqrt(area * form)), round(math.sqrt(area / form))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, (1,)))
            return int(torch.randint(0, width - w + 1, (1,))), top, w, h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width / (3 / 4)))
    return (width - w) // 2, (height - h) // 2, w, h


def _resized(image: "Image", size: tuple[int, int]) -> "Image":
    return image.resize(size, _pillow().Resampling.BILINEAR)


def _normalised(image: "Image") -> Tensor:
    """Return an image as numbers with mean 0 and deviation 1 in each channel over ImageNet, (3, height, width)."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    return pixels.sub_(torch.tensor(MEAN)[:, None, None]).div_(torch.tensor(DEVIATION)[:, None, None])
