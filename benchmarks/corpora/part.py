"""A part of a data set, for studies of many networks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from nce_fx.data import Data
from nce_fx.data.images import Images
from nce_fx.errors import InputError


def some_images(data: Data, count: int | None) -> Data:
    """Return the data with only its first training images, moved and mirrored as before; all of them without a number.

    Data of a kind that is not held in memory is returned as it is.
    """
    if count is None or not isinstance(data.train, Images):
        return data
    part, moved = _slice(data.train, slice(count)), data.augmented
    return replace(
        data, train=part, augmented=partial(moved.func, part, *moved.args[1:]) if isinstance(moved, partial) else None
    )


def tested_on_last(data: Data, count: int) -> Data:
    """Return the data with its last training images as the test split.

    Raises:
        InputError: the data is not held in memory.
    """
    if not isinstance(data.train, Images):
        raise InputError(f"data {data.name}: its images are not held in memory, so that none can be taken from the end")
    return replace(data, test=_slice(data.train, slice(len(data.train) - count, None)))


def _slice(images: Images, place: slice) -> Images:
    part = Images.__new__(Images)
    part.__dict__.update(images.__dict__)
    part.pixels, part.labels = images.pixels[place], images.labels[place]
    return part
