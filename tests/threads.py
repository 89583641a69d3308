"""Plans made at several numbers of threads: the last digits of a sum do not decide on one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import nce_fx

THREADS = (1, 2, 4)


def mean_square(output: Any, target: Any) -> Tensor:
    values = [value for value in tree_leaves(output) if isinstance(value, Tensor) and value.is_floating_point()]
    return torch.stack([value.square().mean() for value in values]).sum()


def plans_at_all_threads(gm: Any, batches: list[Any], loss: Any = None, **options: Any) -> set[str]:
    """Return the different plans that are made, as text; the number of threads is put back."""
    channels = nce_fx.analyze_channels(gm)
    cost = nce_fx.analyze_cost(gm, channels)
    found, before = set(), torch.get_num_threads()
    try:
        for threads in THREADS:
            torch.set_num_threads(threads)
            measured = nce_fx.analyze_sensitivity(gm, batches, channels=channels, loss=loss, **options)
            found.add(nce_fx.plan_widths(channels, cost, measured, nce_fx.Budget(macs=1.0, params=1.0)).to_json())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    return found
