"""What a zoo model is: a tiny network, what it reads, and what the channel analysis must say of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from nce_fx.models import MODELS


@dataclass(frozen=True)
class ZooModel:
    """One pattern of real networks, as small as it can be."""

    build: Callable[[], nn.Module]
    inputs: tuple[Any, ...]
    free: tuple[str, ...] = ()
    """Producers that must be in unpinned groups."""
    pinned: Mapping[str, str] = field(default_factory=dict)
    """Producers that must be pinned -> what the reason must say."""
    together: tuple[frozenset[str], ...] = ()
    """Sets of producers that must share one group."""

    def make(self, seed: int = 0) -> nn.Module:
        """Return the model in eval mode, every parameter and running statistic random."""
        torch.manual_seed(seed)
        return randomize(self.build(), seed).eval()


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every floating point parameter and buffer anew: fresh layers start at zeros and ones, which hide mistakes.

    Weights keep activations at about unit scale; scales and running variances stay positive and away from zero.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            drawn = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + drawn.abs())
            elif tensor.dim() > 1:
                tensor.copy_(drawn / max(1, tensor.numel() // max(1, tensor.shape[0])) ** 0.5)
            elif name.endswith("weight"):
                tensor.copy_(drawn.sign() * (0.5 + drawn.abs()))
            else:
                tensor.copy_(0.5 * drawn)
    return model


BUILT_IN = [name for name in MODELS if name not in ("resnet20", "resnet56")]
"""The built-in networks, but for those that are ResNet-8 with more of the same blocks."""


def narrow(name: str) -> dict[str, Any]:
    """Return the arguments that give a built-in network few channels."""
    return {"multiplier": 0.25} if name == "mobilenet_v2" else {"width": 4}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return a fixed random input."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def image(channels: int = 3, size: int = 8, batch: int = 2) -> torch.Tensor:
    """Return a fixed random batch of images."""
    return noise(batch, channels, size, size)


def together(*names: str) -> tuple[frozenset[str], ...]:
    """Return one set of producers that share a group."""
    return (frozenset(names),)


OUTPUT = "output of the model"
"""What the reason of a producer of the model's output says."""


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """Return a convolution that keeps the image's size."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


class Head(nn.Module):
    """Global pooling and a classifier."""

    def __init__(self, channels: int, classes: int = 5) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> Any:
        return self.fc(x.mean((2, 3)))
