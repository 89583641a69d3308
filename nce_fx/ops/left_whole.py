"""Products that no row of the table knows: in modules and functions left whole, and in what computes weights.

They are counted by PyTorch's own counter as the graph gets its shapes, and cost the same at any widths: what such a
module reads and gives keeps its channels.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.utils.flop_counter import FlopCounterMode

LEFT_WHOLE = "left_whole"
"""In ``meta`` of a graph: path of a module, or name of a function's node -> MACs of its calls that no row knows."""


def macs_of(run: Callable[[], Any]) -> tuple[Any, int]:
    """Return what a call gives, and its multiply-accumulates; fused kernels are taken apart."""
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mv: _of_matrix_and_vector})
    with (
        warnings.catch_warnings(action="ignore"),
        torch.backends.mkldnn.flags(enabled=False),
        counter,
        sdpa_kernel(SDPBackend.MATH),
    ):
        result = run()
    return result, counter.get_total_flops() // 2


def _of_matrix_and_vector(matrix: Any, vector: Any, *_: Any, **__: Any) -> int:
    return 2 * torch.Size(matrix).numel()


def macs_of_weights(module: nn.Module) -> int:
    """Return the multiply-accumulates of what computes a module's weights before each call, in evaluation."""
    total = 0
    if is_parametrized(module):
        for name in module.parametrizations:  # type: ignore[union-attr]
            total += macs_of(lambda name=name: getattr(module, name))[1]  # type: ignore[misc]
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, SpectralNorm):
            total += macs_of(lambda hook=hook: hook.compute_weight(module, False))[1]  # type: ignore[misc]
    return total
