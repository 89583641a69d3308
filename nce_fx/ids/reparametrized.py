"""Weight normalization: a weight computed from a direction and a length, treated as the parameter it stands for.

w = g * v / ||v||        and back: v = w, g = ||w||
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm


@dataclass(frozen=True)
class WeightNormed:
    """A weight that normalization computes, and the two parameters it is computed from."""

    value: torch.Tensor
    length: torch.Tensor
    direction: torch.Tensor
    length_path: str
    direction_path: str

    def parameters_for(self, weight: torch.Tensor) -> dict[int, torch.Tensor]:
        """Return what stands in for each of the old tensors (by ``id``) so that this weight is computed."""
        length = torch.norm_except_dim(weight, 2, 0)
        return {
            id(self.length): nn.Parameter(length, self.length.requires_grad),
            id(self.direction): nn.Parameter(weight.clone(), self.direction.requires_grad),
        }


def weight_normed(modules: Mapping[str, nn.Module]) -> dict[str, WeightNormed]:
    """Return the weights of a model that weight normalization over the output axis computes, old style or new."""
    found: dict[str, WeightNormed] = {}
    for path, module in {id(module): (path, module) for path, module in reversed(list(modules.items()))}.values():
        chain = _chain(module)
        if chain is not None:
            names = [f"{path}.parametrizations.weight.original{k}" for k in (0, 1)]
            value: Any = module.weight
            found[f"{path}.weight"] = WeightNormed(value.detach(), chain.original0, chain.original1, *names)
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm) and hook.name == "weight" and hook.dim == 0:
                length: Any = module.weight_g
                direction: Any = module.weight_v
                computed = torch._weight_norm(direction, length, 0).detach()
                names = [f"{path}.weight_g", f"{path}.weight_v"]
                found[f"{path}.weight"] = WeightNormed(computed, length, direction, *names)
    return found


def _chain(module: nn.Module) -> Any:
    """Return the parametrization of a module whose weight is normalized over its output axis and nothing else."""
    if "parametrizations" not in module._modules or not parametrize.is_parametrized(module, "weight"):
        return None
    every: Any = module.parametrizations
    chain = every.weight
    plain = len(every) == 1 and len(chain) == 1 and isinstance(chain[0], _WeightNorm) and chain[0].dim == 0
    return chain if plain else None


def plain_class(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module before weight normalization was put on it."""
    return type(module).__bases__[0] if _chain(module) is not None else type(module)
