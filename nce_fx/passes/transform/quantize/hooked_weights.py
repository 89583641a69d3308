"""Weights that PyTorch's older hooks compute before every call: as nodes of the graph, so that a quantizer can follow.

weight_norm      _weight_norm(weight_v, weight_g)
prune            weight_mask * weight_orig
spectral_norm    weight_orig over its largest singular value, by power iteration in training
"""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.passes.shape_prop import _extract_tensor_metadata
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from nce_fx.paths import read_at


class SpectralWeight(nn.Module):
    """A weight over its largest singular value, as the hook of ``torch.nn.utils.spectral_norm`` computes it."""

    def __init__(self, dim: int, iterations: int, eps: float) -> None:
        super().__init__()
        self.dim, self.iterations, self.eps = dim, iterations, eps

    def forward(self, weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Return the weight; in training the estimates ``u`` and ``v`` take their next steps, in place."""
        matrix = weight.movedim(self.dim, 0).flatten(1)
        if self.training:
            with torch.no_grad():
                for _ in range(self.iterations):
                    v.copy_(F.normalize(torch.mv(matrix.t(), u), dim=0, eps=self.eps))
                    u.copy_(F.normalize(torch.mv(matrix, v), dim=0, eps=self.eps))
            # The next step must not change what the gradient of this one is computed from.
            u, v = u.clone(), v.clone()
        return weight / torch.dot(u, torch.mv(matrix, v))


def weight_hook(module: nn.Module) -> Any:
    """Return the one hook that computes the weight of a module, or ``None``."""
    found = [
        hook
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, WeightNorm | SpectralNorm | BasePruningMethod)
        and getattr(hook, "name", getattr(hook, "_tensor_name", "")) == "weight"
    ]
    return found[0] if len(found) == 1 == len(module._forward_pre_hooks) else None


def is_pruned(module: nn.Module) -> bool:
    """Whether a mask of ``torch.nn.utils.prune`` lies on the weight of a module."""
    return isinstance(weight_hook(module), BasePruningMethod)


def computed_by_hook(gm: GraphModule, path: str) -> Node:
    """Compute a weight in front of the insertion point as its hook does, and take the hook off."""
    module: Any = gm.get_submodule(path)
    hook = weight_hook(module)
    if isinstance(hook, WeightNorm):
        node = gm.graph.call_function(
            torch._weight_norm, (read_at(gm, f"{path}.weight_v"), read_at(gm, f"{path}.weight_g"), hook.dim)
        )
    elif isinstance(hook, SpectralNorm):
        module.add_module("weight_spectral", SpectralWeight(hook.dim, hook.n_power_iterations, hook.eps))
        module.weight_spectral.train(module.training)
        given = tuple(read_at(gm, f"{path}.{name}") for name in ("weight_orig", "weight_u", "weight_v"))
        node = gm.graph.create_node("call_module", f"{path}.weight_spectral", given)
    else:
        node = gm.graph.call_function(
            torch.mul, (read_at(gm, f"{path}.weight_mask"), read_at(gm, f"{path}.weight_orig"))
        )
    first = next(iter(module._parameters.values()))
    shape = module.weight_v.shape if isinstance(hook, WeightNorm) else module.weight_orig.shape
    node.meta["tensor_meta"] = _extract_tensor_metadata(first.detach().new_empty(shape))
    module._forward_pre_hooks.clear()
    vars(module).pop("weight", None)
    return node


def warn_of_zeros(path: str, weight: Tensor, levels: Tensor) -> None:
    """Say that what was pruned does not stay zero, where a quantizer has no zero among its levels."""
    if bool((levels[weight == 0] != 0).any()):
        warnings.warn(
            f"{path} is pruned, and its quantizer has no zero among its levels: pruned weights come back; lsq has one",
            stacklevel=2,
        )
