"""A device that is not there: tensors that say they are on it, are computed on the CPU, and refuse to meet others.

Code that mixes devices fails on it as it does on a GPU, so that machines without one find it. No gradients.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("xla", 0)
"""A name that PyTorch knows and has no code for: nothing of its own gets in between."""
_COPIES = ("_to_copy", "copy_")


class Elsewhere(torch.Tensor):
    """A tensor on the other device; ``here`` is the one that computes."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    device = property(lambda self: DEVICE)
    is_meta = property(lambda self: False)

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> Elsewhere:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=torch.device("meta"),
        )

    def __init__(self, here: torch.Tensor) -> None:
        self.here = here

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _call(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        new: torch.Tensor = Elsewhere(self.here.clone())
        memo[id(self)] = new = nn.Parameter(new, False) if isinstance(self, nn.Parameter) else new
        return new


class OtherDevice(TorchDispatchMode):
    """While active, what is asked for on the other device is made there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


def moved(value: Any) -> Any:
    """Return a module, moved in place, or tensors within tuples, lists and mappings on the other device."""
    if not isinstance(value, nn.Module):
        return tree_map(lambda leaf: Elsewhere(leaf) if isinstance(leaf, torch.Tensor) else leaf, value)
    memo: dict[int, torch.Tensor] = {}
    for module in value.modules():
        for tensors in (cast(dict[str, Any], module._parameters), module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = memo.setdefault(id(tensor), _moved(tensor))
    return value


def _moved(tensor: torch.Tensor) -> torch.Tensor:
    new = Elsewhere(tensor.detach())
    return nn.Parameter(new, False) if isinstance(tensor, nn.Parameter) else new


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.__name__.split(".")[0]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    # Indices may lie on the CPU whatever they are indices of.
    indexed = name == "index" and isinstance(args[0], Elsewhere)
    if there and name not in _COPIES and not indexed and any(t.dim() and not isinstance(t, Elsewhere) for t in tensors):
        raise RuntimeError(f"{name} got tensors on the CPU and on {DEVICE}")
    asked = kwargs.get("device")
    stays = bool(there) if asked is None else torch.device(asked).type == DEVICE.type
    if stays and asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    bare_args, bare_kwargs = tree_map(lambda leaf: leaf.here if isinstance(leaf, Elsewhere) else leaf, (args, kwargs))
    result = func(*bare_args, **bare_kwargs)
    if func._schema.is_mutable and name.endswith("_"):
        return args[0]
    return tree_map(lambda leaf: Elsewhere(leaf) if stays and isinstance(leaf, torch.Tensor) else leaf, result)
