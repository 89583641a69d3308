"""A program is a list of small operations; any list is a network, so that hypothesis can draw and shrink it.

An operation names its kind and four small numbers. It reads one of the values made so far (counted from the newest of
those it can take), and leaves one or more. One that finds nothing to read is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tests.zoo.model import image, randomize

SIZES = (4, 6, 8, 12)
CHANNELS = 3
SIDE = 8
MOST_CHANNELS = 32
MOST_ELEMENTS = 8192


@dataclass(frozen=True)
class Op:
    """One operation of a program."""

    kind: str
    of: int = 0
    """Which value it reads: 0 is the newest that it can take, then back in time."""
    other: int = 0
    """Which second value it reads, where it takes two."""
    size: int = 0
    variant: int = 0

    @property
    def channels(self) -> int:
        return SIZES[self.size % len(SIZES)]

    def __repr__(self) -> str:
        numbers = ((name, getattr(self, name)) for name in ("of", "other", "size", "variant"))
        return f"Op({', '.join([repr(self.kind), *(f'{name}={value}' for name, value in numbers if value)])})"


@dataclass(frozen=True)
class Program:
    """A network: a stem, the operations, and what is returned."""

    ops: tuple[Op, ...]
    end: str = "joined"
    """``joined``: loose values pooled, joined, classified; ``tuple``, ``dict``: each classified; ``auxiliary``: in
    training the first one's classes beside all of them; ``raw``: the newest."""
    takes: str = "tensor"
    """``tensor``: the image; ``dict``: a mapping that holds it; ``optional``: a gain that may be left out."""


ENDS = ("joined", "tuple", "raw", "dict", "auxiliary")
TAKES = ("tensor", "tensor", "dict", "optional")


def inputs_of(program: Program) -> tuple[Any, ...]:
    """Return the example inputs of a program's network, in float64."""
    x = image(CHANNELS, SIDE).double()
    return ({"image": x, "name": "a"},) if program.takes == "dict" else (x,)


Shape = tuple[int, ...]


@dataclass(frozen=True)
class Kind:
    """How an operation is built: what it reads, and the layer for a value of this shape."""

    takes: str
    """The value's kind: "image" [B, C, H, W], "tokens" [B, N, C] or "vector" [B, C]."""
    make: Callable[..., nn.Module | None]
    """(op, shape) or (op, shape, other shape) -> layer, or ``None`` where it cannot be."""
    fits: Callable[[Shape, Shape], bool] | None = None
    """For operations of two values: whether the second, of this shape, fits the first."""


class Step(nn.Module):
    """A layer from a function of itself and its inputs; keywords become submodules and parameters."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, torch.Tensor) else part)
        self.function = function

    def forward(self, *values: Any) -> Any:
        return self.function(self, *values)


def kind_of(shape: Shape) -> str:
    """Return what a value of this shape is."""
    return {4: "image", 3: "tokens", 2: "vector"}[len(shape)]


def channel_axis(shape: Shape) -> int:
    """Return the axis of the channels: the last of tokens and vectors, the second of images."""
    return 1 if len(shape) == 4 else len(shape) - 1


class Generated(nn.Module):
    """The network of a program."""

    def __init__(self, program: Program, kinds: Mapping[str, Kind]) -> None:
        super().__init__()
        self.end, self.takes = program.end, program.takes
        self.stem = nn.Conv2d(CHANNELS, 8, 3, padding=1)
        self.layers = nn.ModuleList()
        self.steps: list[tuple[int, tuple[int, ...]]] = []
        values = [image(CHANNELS, SIDE)]
        self.used: set[int] = {0}
        self.learned = [False, True]
        """Whether a value depends on any parameter."""
        with torch.no_grad():
            values.append(self.stem(values[0]))
            for op in program.ops:
                self._add(op, kinds, values)
        shapes = [tuple(value.shape) for value in values]
        self.ranks = [len(shape) for shape in shapes]
        self.loose = [k for k in range(1, len(values)) if k not in self.used] or [len(values) - 1]
        widths = [shapes[k][channel_axis(shapes[k])] for k in self.loose]
        if self.end in ("tuple", "dict"):
            self.heads = nn.ModuleList(nn.Linear(width, 3) for width in widths)
        elif self.end in ("joined", "auxiliary"):
            self.head = nn.Linear(sum(widths), 3)
        if self.end == "auxiliary":
            self.first = nn.Linear(widths[0], 3)

    def _add(self, op: Op, kinds: Mapping[str, Kind], values: list[torch.Tensor]) -> None:
        shapes = [tuple(value.shape) for value in values]
        place = self._again(op, shapes) if op.kind == "again" else self._new(op, kinds[op.kind], shapes)
        if place is None:
            return
        layer, sources = place
        try:
            results = _flat(layer(*(values[k] for k in sources)))
        except RuntimeError:
            # A view of what is not contiguous: programmers meet that at once, so no model does it.
            return
        if any(value.numel() > MOST_ELEMENTS for value in results):
            return
        if op.kind != "again":
            self.layers.append(layer)
        self.steps.append((list(self.layers).index(layer), sources))
        self.used.update(sources)
        values.extend(results)
        learned = any(self.learned[k] for k in sources) or any(True for _ in layer.parameters())
        self.learned.extend([learned] * len(results))

    def _new(self, op: Op, kind: Kind, shapes: list[Shape]) -> tuple[nn.Module, tuple[int, ...]] | None:
        """Make the layer of an operation for the values that it reads."""
        own = [k for k, shape in enumerate(shapes) if kind_of(shape) == kind.takes]
        if not own:
            return None
        sources: tuple[int, ...] = (own[-1 - op.of % len(own)],)
        if kind.fits is not None:
            second = [k for k, shape in enumerate(shapes) if kind.fits(shapes[sources[0]], shape)]
            if not second:
                return None
            sources = (*sources, second[-1 - op.other % len(second)])
        made = kind.make(op, *(shapes[k] for k in sources))
        return None if made is None else (made.eval(), sources)

    def _again(self, op: Op, shapes: list[Shape]) -> tuple[nn.Module, tuple[int, ...]] | None:
        """Use an earlier layer a second time, on another value of the same shape."""
        places = [
            (self.layers[layer], (k,))
            for layer, sources in self.steps
            for k, shape in enumerate(shapes)
            if len(sources) == 1 and k != sources[0] and shape == shapes[sources[0]]
        ]
        return places[-1 - op.other % len(places)] if places else None

    def forward(self, x: Any, gain: torch.Tensor | None = None) -> Any:
        if self.takes == "dict":
            x = x["image"]
        if self.takes == "optional" and gain is not None:
            x = x * gain
        values = [x, self.stem(x)]
        for layer, sources in self.steps:
            values.extend(_flat(self.layers[layer](*[values[k] for k in sources])))
        if self.end == "raw":
            return values[len(self.learned) - 1 - self.learned[::-1].index(True)]
        pooled = [_pool(values[k], self.ranks[k]) for k in self.loose]
        if self.end == "tuple":
            return tuple(head(value) for head, value in zip(self.heads, pooled, strict=True))
        if self.end == "dict":
            return {f"head{k}": head(value) for k, (head, value) in enumerate(zip(self.heads, pooled, strict=True))}
        joined = self.head(torch.cat(pooled, 1))
        return (joined, self.first(pooled[0])) if self.end == "auxiliary" and self.training else joined


def _flat(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _pool(value: Any, rank: int) -> Any:
    if rank == 4:
        return value.mean((2, 3))
    return value.mean(1) if rank == 3 else value


def build(program: Program, kinds: Mapping[str, Kind], seed: int = 0) -> nn.Module:
    """Return the network of a program in eval mode and float64, every parameter random."""
    torch.manual_seed(seed)
    return randomize(Generated(program, kinds), seed).double().eval()
