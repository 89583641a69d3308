"""Data to train, calibrate and evaluate on, by name: one source a file, one table of them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nce_fx.callables import load_callable
from nce_fx.data.cifar10 import cifar10
from nce_fx.data.digits import digits
from nce_fx.data.fashion_mnist import fashion_mnist
from nce_fx.data.image_folder import image_folder
from nce_fx.data.loaders import Data
from nce_fx.data.user_data import own_data
from nce_fx.errors import InputError
from nce_fx.nearest import nearest
from nce_fx.registry import Registry

SOURCES = {
    "digits": "scikit-learn's 1,797 grey 8x8 images",
    "fashion-mnist:DIR": "60,000 grey 28x28 images of clothes; without DIR from where Debian puts them",
    "cifar10:DIR": "CIFAR-10 from a folder, through torchvision",
    "imagefolder:DIR": "train/CLASS/* and val/CLASS/* images, 224x224; DIR@64 for 64x64",
    "package.module:callable": "a callable that gives (train, test)",
    "path/to/file.py:callable": "the same, from a file",
}
"""What ``load_data`` takes, and what each is."""
BUILT_IN = ("digits", "fashion-mnist", "cifar10", "imagefolder")
"""The names before the colon that are data of nce-fx's own, not modules to import."""


FROM_PACKAGES: Registry[Callable[[], Any]] = Registry("data", {}, callable)
"""Data of installed packages by name: callables that give (train, test), as a user's own do."""


def load_data(
    spec: str,
    *,
    seed: int = 0,
    batch_size: int = 64,
    augment: bool | None = None,
    strict: bool = False,
    size: int = 224,
) -> Data:
    """Return the data that ``spec`` names; see ``SOURCES``.

    Args:
        spec: ``digits``, ``fashion-mnist:DIR``, ``cifar10:DIR``, ``imagefolder:DIR``, ``package.module:callable``,
            ``file.py:callable``, or what an installed package brings.
        seed: the default seed of the data's loaders. It never changes which images are in which split.
        batch_size: the default batch size of the data's loaders.
        augment: whether training sees augmented images; by default as is usual for the data (digits: no).
        strict: an image that cannot be read is an error, not a warning; for ``imagefolder``.
        size: height and width of the images; for ``imagefolder``.

    Raises:
        InputError: no such data, a folder or package that is missing, a callable that fails: one line that says which.
    """
    name, colon, rest = spec.partition(":")
    if name == "digits" and not colon:
        data = digits()
    elif name == "fashion-mnist":
        data = fashion_mnist(rest)
    elif name == "cifar10":
        data = cifar10(rest)
    elif name == "imagefolder":
        data = image_folder(rest, strict=strict, size=size)
    elif colon or spec in FROM_PACKAGES:
        found = load_callable(spec, "data", BUILT_IN) if colon else FROM_PACKAGES[spec]
        return own_data(spec, found, seed, batch_size, augment)
    else:
        known = (*SOURCES, *FROM_PACKAGES)
        raise InputError(f"no data {spec!r}: there are {', '.join(known)}{nearest(spec, known)}")
    return replace(data, seed=seed, batch_size=batch_size, augment=data.augment if augment is None else augment)


__all__ = ["BUILT_IN", "FROM_PACKAGES", "SOURCES", "Data", "load_data"]
