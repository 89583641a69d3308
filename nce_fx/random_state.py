"""The global generators of random numbers: Python's, NumPy's and PyTorch's."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def put_back(gpus: Iterable[int | torch.device] = ()) -> Iterator[None]:
    """Put their states back in the end, those of these GPUs too: whoever else draws notices nothing."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(list(gpus)):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def seed_all(value: int) -> None:
    """Start them anew; of PyTorch's that of the processor."""
    random.seed(value)
    np.random.seed(value % 2**32)
    # Not torch.manual_seed: for every device there may be it formats a stack trace, a tenth of a small net's step.
    torch.default_generator.manual_seed(value)
