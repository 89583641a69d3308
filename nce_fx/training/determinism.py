"""Randomness that is a function of seed and position, and the state of the user's generators put back afterwards.

Dropout, augmentation and the like draw from global generators. Those are seeded anew before every step, so there are no
generator states to save: a run resumed at any step draws what the run that was never stopped drew.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nce_fx.processes import Engine
from nce_fx.random_state import put_back, seed_all
from nce_fx.training.recipe import seed_at


def seed_step(seed: int, epoch: int, step: int, engine: Engine) -> int:
    """Seed torch, NumPy and Python for one step of this process, and return the seed of its batch."""
    value = seed_at(seed, epoch, step, engine.rank)
    seed_all(value)
    if engine.device.type != "cpu":
        torch.get_device_module(engine.device).manual_seed(value)
    return value


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Reproducible kernels on a GPU while training; the global generators and settings are restored at the end."""
    cudnn = torch.backends.cudnn
    settings = (cudnn.deterministic, cudnn.benchmark)
    with put_back([device] if device.type == "cuda" else []):
        try:
            cudnn.deterministic, cudnn.benchmark = True, False
            yield
        finally:
            cudnn.deterministic, cudnn.benchmark = settings
