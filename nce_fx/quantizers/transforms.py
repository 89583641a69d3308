"""Gradients of one's own that ``torch.func`` can take apart: grad, vmap, jacrev."""

import torch
from torch.autograd import Function


class Transformable(Function):
    """A function that keeps no more than its inputs and settings, and whose two passes are made of tensors alone."""

    generate_vmap_rule = True


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is running: no number can be read off a tensor then."""
    return torch._C._are_functorch_transforms_active()
