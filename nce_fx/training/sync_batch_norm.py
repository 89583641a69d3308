"""BatchNorm over the whole batch where each process holds a share of it; on any device, for any traced form.

    mean = sum(x) / n        variance = sum((x - mean)^2) / n        sums and n over all processes

PyTorch's SyncBatchNorm exists for GPUs only and as a module only, but a traced graph may call ``batch_norm`` as a
function. So the call itself is caught, wherever it is made, and the model stays as it is. The sums are differentiable:
each process's gradient contains what its share did to the statistics of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nce_fx.ops import OPS


class SyncBatchStatistics(TorchFunctionMode):
    """While active, every ``batch_norm`` in training mode uses the statistics of all processes together.

    All processes run the same model, so they meet the same calls in the same order.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace a ``batch_norm`` in training mode; let everything else pass."""
        if OPS.spellings.get(func) is OPS["batch_norm"]:
            values = OPS.arguments(func, args, kwargs or {})
            if values.get("training", False):
                known = {name: value for name, value in values.items() if name not in ("training", "cudnn_enabled")}
                return sync_batch_norm(**known)
        return func(*args, **(kwargs or {}))


def sync_batch_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return ``batch_norm`` in training mode over the batches of all processes, and update the running statistics.

    Args:
        input: this process's share, (share of the batch, channels, ...).
        running_mean: (channels,), updated in place with ``momentum``, as is ``running_var`` (unbiased).
        running_var: (channels,).
        weight: (channels,) or None.
        bias: (channels,) or None.
        momentum: the part of the new statistics in the running ones.
        eps: added to the variance.
    """
    x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
    axes = [0, *range(2, x.ndim)]
    shape = [1, -1] + [1] * (x.ndim - 2)
    size = x.new_tensor([x.numel() / x.shape[1]])
    total = _sum_over_processes(torch.cat([x.sum(axes), size]))
    n = total[-1]
    mean = total[:-1] / n
    # Two passes: a variance from sums of squares loses too many digits for losses that must agree to 1e-5.
    centred = x - mean.view(shape)
    variance = _sum_over_processes((centred * centred).sum(axes)) / n
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * n / (n - 1)).to(running_var.dtype), momentum)
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight
    result = centred * scale.view(shape)
    if bias is not None:
        result = result + bias.view(shape)
    return result.to(input.dtype)


def _sum_over_processes(values: Tensor) -> Tensor:
    total: Tensor = _AllReduce.apply(values)  # type: ignore[no-untyped-call]
    return total


class _AllReduce(torch.autograd.Function):
    """The sum over all processes; the gradient of a sum that every process uses is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total
