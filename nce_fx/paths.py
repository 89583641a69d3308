"""Modules by their paths, found without what ``get_submodule`` spends on each step: passes ask for every node."""

from __future__ import annotations

from torch import nn


def module_at(root: nn.Module, path: str) -> nn.Module:
    """Return the module at a path; the same as ``get_submodule``."""
    module: nn.Module | None = root
    for name in path.split("."):
        module = module._modules.get(name) if module is not None else None
    return root.get_submodule(path) if module is None else module
