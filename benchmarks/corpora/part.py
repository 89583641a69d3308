"""A part of a data set, for studies of many networks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from nce_fx.data import Data
from nce_fx.data.images import Images


def some_images(data: Data, count: int | None) -> Data:
    """Return the data with only its first training images, moved and mirrored as before; all of them without a number.

    Data of a kind that is not held in memory is returned as it is.
    """
    if count is None or not isinstance(data.train, Images):
        return data
    part = Images.__new__(Images)
    part.__dict__.update(data.train.__dict__)
    part.pixels, part.labels = data.train.pixels[:count], data.train.labels[:count]
    moved = data.augmented
    return replace(
        data, train=part, augmented=partial(moved.func, part, *moved.args[1:]) if isinstance(moved, partial) else None
    )
