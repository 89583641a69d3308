"""CIFAR-10 from a folder, read by torchvision: 50,000 and 10,000 colour images of 32x32 (Krizhevsky 2009)."""

from functools import partial
from pathlib import Path

import torch

from nce_fx.data.images import Images, ShiftedImages
from nce_fx.data.loaders import Data, existing_folder
from nce_fx.errors import InputError, one_line

FOLDER = "cifar-10-batches-py"
# Of the training split, in units of pixels: 0 to 255.
MEAN = [255 * 0.4914, 255 * 0.4822, 255 * 0.4465]
DEVIATION = [255 * 0.2470, 255 * 0.2435, 255 * 0.2616]


def cifar10(folder: str) -> Data:
    """Return CIFAR-10, normalised, (3, 32, 32); trained on with the usual random crop (4 pixels) and mirroring.

    Nothing is downloaded: ``folder`` is (or holds) the unpacked ``cifar-10-batches-py``.

    Raises:
        InputError: torchvision is not installed, or the folder does not hold an intact CIFAR-10.
    """
    root = existing_folder(folder, "cifar10")
    if root.name == FOLDER:
        root = root.parent
    try:
        from torchvision.datasets import CIFAR10
    except ModuleNotFoundError as error:
        raise InputError("data cifar10: needs torchvision: pip install 'nce-fx[vision]'") from error
    except Exception as error:
        raise InputError(
            "data cifar10: torchvision does not work with the installed torch: install the pair of one release and one "
            f"kind, CPU or CUDA ({one_line(error)})"
        ) from error
    try:
        splits = [CIFAR10(str(root), train=train, download=False) for train in (True, False)]
    except Exception as error:
        raise InputError(
            f"data cifar10: {Path(folder)} holds no intact {FOLDER}: unpack cifar-10-python.tar.gz there "
            f"({one_line(error)})"
        ) from error
    train, test = (
        Images(torch.from_numpy(split.data).permute(0, 3, 1, 2), torch.tensor(split.targets), MEAN, DEVIATION)
        for split in splits
    )
    return Data(
        name="cifar10",
        train=train,
        test=test,
        input_shape=(3, 32, 32),
        classes=len(splits[0].classes),
        augmented=partial(ShiftedImages, train, 4, True),
    )
