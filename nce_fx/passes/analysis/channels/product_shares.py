"""Products of data that are summed over channels, queries and keys of one head: copies of a pair share its product."""

import zlib

import numpy as np
import numpy.typing as npt

from nce_fx.ids.labels import Ids
from nce_fx.ops import OPS

Shares = npt.NDArray[np.float64]

PRODUCTS = OPS.where(lambda op: op.kind == "product")
"""What multiplies its arguments and sums over channels that both have."""


def product_shares(index: Ids, name: str) -> Shares:
    """Return for each new channel its share of the products of the old one: unequal, and one in sum, so copies part."""
    drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(len(index))
    counts = np.bincount(index)
    mean = np.bincount(index, drawn) / np.maximum(counts, 1)
    result: Shares = (1 + 0.25 * (drawn - mean[index])) / counts[index]
    return result
