"""Gradients of one's own that ``torch.func`` can take apart: grad, vmap, jacrev."""

from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import Function


class Transformable(Function):
    """A function that keeps no more than its inputs and settings, and whose two passes are made of tensors alone."""

    generate_vmap_rule = True

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Run it; PyTorch's own binds arguments to names at each call, a fifth of what a small tensor takes."""
        if is_transformed() or torch.compiler.is_compiling():
            return super().apply(*args)  # type: ignore[no-untyped-call]
        return super(Function, cls).apply(*unwrap_dead_wrappers(args))  # type: ignore[misc]


class StraightThrough(Transformable):
    """One that keeps nothing, and whose gradient is the identity of its first argument; the others have none."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep how many others there are."""
        ctx.others = len(inputs) - 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The identity."""
        return grad, *[None] * ctx.others


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is running: no number can be read off a tensor then."""
    return torch._C._are_functorch_transforms_active()


def reads_numbers(x: Tensor) -> bool:
    """Whether a number may be read off a tensor here: a plain one on a CPU, and nothing traces or compiles."""
    return (
        x.is_cpu
        and type(x) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not is_transformed()
        and torch._C._get_tracing_state() is None
        and not torch._C._len_torch_dispatch_stack()
    )
