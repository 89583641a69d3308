"""The running statistics of BatchNorm, taken anew from a trained network.

While a network trains its statistics are averages over networks that were: at few bits weights jump between levels to
the last step, and what a layer gives jumps with them (Nagel et al. 2022, "Overcoming oscillations in quantization-aware
training", arXiv 2203.11086). Plain means over some batches of the network as it is take their place.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from nce_fx.by_mode import evaluating
from nce_fx.ops import OPS
from nce_fx.processes import call


def reestimate(
    model: nn.Module, batches: Iterable[Any], forward_pass: Callable[[], AbstractContextManager[None]]
) -> None:
    """Set the running mean and variance of every BatchNorm module to their means over batches.

    All else runs as in evaluation. Modes and momenta are put back.

    Args:
        model: a trained network; its BatchNorm modules are changed.
        batches: the inputs of each forward pass.
        forward_pass: what surrounds one.
    """
    norms: list[Any] = [
        module for module in model.modules() if OPS.derived(module) is OPS["batch_norm"] and module.track_running_stats
    ]
    momenta = [norm.momentum for norm in norms]
    try:
        with evaluating(model), torch.no_grad():
            for norm in norms:
                norm.training = True
                norm.reset_running_stats()
                norm.momentum = None  # a plain mean over all batches
            for inputs in batches:
                with forward_pass():
                    call(model, inputs)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
