"""scikit-learn's digits: 1,797 grey 8x8 images of handwritten digits (Alpaydin and Kaynak 1998).

The split is fixed: 1,200 images to train, 597 to test, each with the same share of every digit.
"""

from functools import partial

import torch

from nce_fx.data.images import Images, ShiftedImages
from nce_fx.data.loaders import Data
from nce_fx.errors import InputError

TRAIN_IMAGES = 1200


def digits() -> Data:
    """Return the digits, normalised, (1, 8, 8); where it is asked for, they are moved by up to one pixel in training.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise InputError("data digits: needs scikit-learn: pip install 'nce-fx[demo]'") from error
    pixels, labels = load_digits(return_X_y=True)
    # The split never follows the user's seed: accuracies of different seeds are on the same test images.
    parts = train_test_split(pixels, labels, train_size=TRAIN_IMAGES, random_state=0, stratify=labels)
    train_pixels, test_pixels = (torch.from_numpy(part).float().view(-1, 1, 8, 8) for part in parts[:2])
    train_labels, test_labels = (torch.from_numpy(part) for part in parts[2:])
    mean, deviation = [train_pixels.mean().item()], [train_pixels.std().item()]
    train = Images(train_pixels, train_labels, mean, deviation)
    return Data(
        name="digits",
        train=train,
        test=Images(test_pixels, test_labels, mean, deviation),
        input_shape=(1, 8, 8),
        classes=10,
        augmented=partial(ShiftedImages, train, 1, False),
        augment=False,
    )
