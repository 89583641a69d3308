"""Fashion-MNIST from a folder: 60,000 and 10,000 grey images of 28x28 (Xiao et al. 2017, arXiv 1708.07747).

Four files in the IDX format of MNIST, plain or gzipped:

    train-images-idx3-ubyte   t10k-images-idx3-ubyte      uint8 (N, rows, columns)
    train-labels-idx1-ubyte   t10k-labels-idx1-ubyte      uint8 (N,), 0 to 9

An IDX file is, big-endian: two zero bytes, the type (8: uint8), the number of axes, the length of each axis in four
bytes, and the values.
"""

import gzip
import math
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nce_fx.data.images import Images, ShiftedImages
from nce_fx.data.loaders import Data, existing_folder
from nce_fx.errors import InputError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the files."""
CLASSES = 10
# Of the training split, in units of pixels: 0 to 255.
MEAN, DEVIATION = [72.940], [90.021]
_GET = (
    "on Debian or Ubuntu `apt-get install dataset-fashion-mnist` puts them where they are looked for; elsewhere take "
    "those of github.com/zalandoresearch/fashion-mnist and say fashion-mnist:DIR"
)
_BYTES = 8
"""The type code of uint8."""


def fashion_mnist(folder: str) -> Data:
    """Return Fashion-MNIST, normalised, (1, 28, 28); trained on with a random crop (2 pixels) and mirroring.

    Nothing is downloaded: ``folder`` holds the four files; where it is empty, `DEBIAN` does.

    Raises:
        InputError: a file is missing or damaged.
    """
    if not folder and not DEBIAN.is_dir():
        raise InputError(f"data fashion-mnist: there is no {DEBIAN}: {_GET}")
    root = existing_folder(folder or str(DEBIAN), "fashion-mnist")
    train, test = (_split(root, name) for name in ("train", "t10k"))
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        shapes = " and ".join("x".join(map(str, split.pixels.shape[2:])) for split in (train, test))
        raise InputError(f"data fashion-mnist: the images of the two splits in {root} differ in size: {shapes}")
    return Data(
        name="fashion-mnist",
        train=train,
        test=test,
        input_shape=tuple(train.pixels.shape[1:]),
        classes=CLASSES,
        augmented=partial(ShiftedImages, train, 2, True),
    )


def _split(root: Path, name: str) -> Images:
    """Return the images of "train" or "t10k"."""
    pixels, labels = read_idx(root, f"{name}-images-idx3-ubyte", 3), read_idx(root, f"{name}-labels-idx1-ubyte", 1)
    if len(pixels) != len(labels) or not len(labels):
        raise InputError(f"data fashion-mnist: {root} has {len(pixels)} images and {len(labels)} labels in {name}")
    if int(labels.max()) >= CLASSES:
        raise InputError(f"data fashion-mnist: {root} has a label {int(labels.max())} in {name}; they are 0 to 9")
    return Images(pixels[:, None], labels, MEAN, DEVIATION)


def read_idx(root: Path, name: str, axes: int) -> Tensor:
    """Return the values of an IDX file of uint8, ``name`` or ``name.gz``.

    Raises:
        InputError: the file is not there, or not what its own header says.
    """
    path = next((file for file in (root / name, root / f"{name}.gz") if file.is_file()), None)
    if path is None:
        raise InputError(f"data fashion-mnist: {root} has neither {name} nor {name}.gz: {_GET}")
    try:
        content = path.read_bytes() if path.suffix != ".gz" else gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"data fashion-mnist: {path} cannot be read ({error}): {_GET}") from error
    start = 4 + 4 * axes
    sizes = np.frombuffer(content[4:start], ">u4").tolist() if len(content) >= start else []
    if content[:4] != bytes((0, 0, _BYTES, axes)) or len(content) - start != math.prod(sizes):
        raise InputError(f"data fashion-mnist: {path} is no intact IDX file of {axes} axes: {_GET}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(sizes).copy())
