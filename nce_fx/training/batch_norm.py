"""BatchNorm over the whole batch where each process holds a share of it; on any device, for any traced form.

    mean = sum(x) / n        variance = sum((x - mean)^2) / n        sums and n over all processes

PyTorch's SyncBatchNorm exists for GPUs only and as a module only, but a traced graph may call ``batch_norm`` as a
function. So the call itself is caught, wherever it is made, and the model stays as it is. The sums are differentiable:
each process's gradient contains what its share did to the statistics of the others.

Its running statistics can be taken anew from a trained network. While a network trains they are averages over networks
that were: at few bits weights jump between levels to the last step, and what a layer gives jumps with them (Nagel et
al. 2022, "Overcoming oscillations in quantization-aware training", arXiv 2203.11086). Plain means over some batches of
the network as it is take their place.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode

from nce_fx.by_mode import evaluating
from nce_fx.ops import OPS
from nce_fx.processes import call

_SPELLINGS = frozenset(spelling for spelling, op in OPS.spellings.items() if op is OPS["batch_norm"])


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
        if func in _SPELLINGS:
            values = OPS.arguments(func, args, kwargs or {})
            if values.get("training", False):
                return sync_batch_norm(**_known(values))
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
    result, mean, variance, n = _whole_batch_norm(x, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * n / (n - 1)).to(running_var.dtype), momentum)
    return result.to(input.dtype)  # type: ignore[no-any-return]


@torch.library.custom_op("nce_fx::whole_batch_norm", mutates_args=())
def _whole_batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the result, and mean, variance and count of the whole batch.

    Statistics of all processes around PyTorch's own kernels, which pass over a tensor once each. An operation of its
    own, which a compiler does not look into.
    """
    channels = x.shape[1]
    packed = torch.cat([*_moments(x), x.new_full((1,), x.numel() / channels)])
    every = packed.new_empty(dist.get_world_size() * len(packed))
    dist.all_gather_single(every, packed)
    means, variances, counts = torch.split(every.view(-1, len(packed)), [channels, channels, 1], 1)
    n = counts.sum()
    shares = counts / n
    mean = (shares * means).sum(0)
    # Not from sums of squares, which lose too many digits for losses that must agree to 1e-5.
    variance = (shares * (means - mean).square_().add_(variances)).sum(0)
    return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance, n


@_whole_batch_norm.register_fake
def _(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    channels = x.new_empty(x.shape[1])
    return torch.empty_like(x), channels, torch.empty_like(channels), x.new_empty(())


@torch.library.custom_op("nce_fx::whole_batch_norm_backward", mutates_args=())
def _whole_batch_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, variance: Tensor, n: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Add what this process's values did to the statistics of the others.

    dx = w r (g - S / n - (x - mean) r^2 T / n),   r = 1 / sqrt(variance + eps)
    S = sum(g),   T = sum(g (x - mean)),   over all processes: each one's loss depends on the values of all.
    """
    # The sums alone, and all that does not wait for those of the others while they are on their way.
    _, along, total = torch.ops.aten.native_batch_norm_backward(
        grad, x, weight, mean, variance, None, None, False, eps, [False, True, True]
    )
    sums = torch.stack([total, along])
    waiting = dist.all_reduce(sums, async_op=True)
    inverse = torch.rsqrt(variance + eps)
    scale = inverse if weight is None else inverse * weight
    passed = grad * _along(scale, x)
    waiting.wait()
    all_total, all_along = sums.mul_(scale / n)
    slope = all_along.mul_(inverse)
    passed.addcmul_(x, _along(slope, x), value=-1).add_(_along(slope * mean - all_total, x))
    return passed, along, total


@_whole_batch_norm_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, variance: Tensor, n: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(grad), torch.empty_like(mean), torch.empty_like(mean)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, ctx.eps = inputs
    ctx.save_for_backward(x, weight, *output[1:])


def _backward(ctx: Any, grad: Tensor, *others: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
    passed, along, total = _whole_batch_norm_backward(grad, *ctx.saved_tensors, ctx.eps)
    needs = ctx.needs_input_grad
    return passed, along if needs[1] else None, total if needs[2] else None, None


_whole_batch_norm.register_autograd(_backward, setup_context=_keep)


def in_whole_batches(options: dict[str, Any]) -> Callable[[GraphModule, list[Any]], Any]:
    """Return PyTorch's compiler for a graph whose BatchNorms take the statistics of all processes.

    Args:
        options: the compiler's.
    """

    def compile_graph(gm: GraphModule, inputs: list[Any]) -> Any:
        from torch._inductor.compile_fx import compile_fx

        for node in gm.graph.nodes:
            values = OPS.arguments(node.target, node.args, node.kwargs) if node.target in _SPELLINGS else {}
            if values.get("training", False):
                node.args, node.kwargs, node.target = (), _known(values), sync_batch_norm
        gm.recompile()
        return compile_fx(gm, inputs, config_patches=options)

    return compile_graph


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in ("training", "cudnn_enabled")}


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of each channel.

    On a processor in four passes of its widest instructions: `torch.var_mean` takes twenty times as long there.
    """
    axes = [0, *range(2, x.ndim)]
    if x.device.type != "cpu":
        variance, mean = torch.var_mean(x, axes, correction=0)
        return mean, variance
    mean = x.mean(axes)
    return mean, x.sub(_along(mean, x)).square_().mean(axes)


def _along(values: Tensor, x: Tensor) -> Tensor:
    """Return a value a channel in the form that goes with (batch, channels, ...)."""
    return values.view([1, -1] + [1] * (x.ndim - 2))


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
