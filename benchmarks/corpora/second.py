"""A second corpus, of libraries that the first one has nothing of: how to build each model small, without a download.

Text, detection, segmentation, diffusion, restoration, sound, medicine, tables. Every model starts from random weights
and runs on inputs that are made here. A library that is not installed, or has no such model, is said and left out.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Inputs = tuple[Any, ...]


@dataclass(frozen=True)
class Sample:
    """One model: how it is built, and the shapes (of noise) or tensors that it is called with."""

    library: str
    name: str
    build: Callable[[], nn.Module]
    inputs: Inputs


class Called(nn.Module):
    """A model that is called with arguments by name, and whose outputs are those that are picked."""

    def __init__(
        self, model: nn.Module, names: tuple[str, ...] = (), pick: Callable[[Any], Any] | None = None, **fixed: Any
    ) -> None:
        super().__init__()
        self.model, self.names, self.pick, self.fixed = model, names, pick, fixed

    def forward(self, *values: Any) -> Any:
        """Call the model."""
        count = len(values) - len(self.names)
        given = dict(zip(self.names, values[count:], strict=True))
        found = self.model(*values[:count], **given, **self.fixed)
        return found if self.pick is None else self.pick(found)


def made(path: str, *args: Any, **options: Any) -> nn.Module:
    """Build a model by the path of its class: ``made("monai.networks.nets:UNet", spatial_dims=2)``."""
    found: nn.Module = made_any(path, *args, **options)
    return found


def made_any(path: str, *args: Any, **options: Any) -> Any:
    """Build anything by the path of its class, such as a configuration."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)(*args, **options)


def tokens(*shape: int, below: int = 64) -> torch.Tensor:
    """Return the same random ids on every call."""
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(sum(shape)))


def table(library: str, module: str, models: dict[str, tuple[Inputs, dict[str, Any]]]) -> Iterator[Sample]:
    """Yield a sample for each row: the class (after a space: what tells two apart) -> inputs and options."""
    for name, (inputs, options) in models.items():
        where = module if ":" not in name else f"{module}.{name.split(':')[0]}"
        kind = name.split(":")[-1].split()[0]

        def build(where: str = where, kind: str = kind, options: dict[str, Any] = options) -> nn.Module:
            args = options.get("args", ())
            return made(f"{where}:{kind}", *args, **{k: v for k, v in options.items() if k != "args"})

        yield Sample(library, name.split(":")[-1], build, inputs)
