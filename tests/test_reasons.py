"""Every reason why a layer keeps its width: a network that shows it, whose other layers are free and keep the laws."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nce_fx
from tests import laws
from tests.zoo.model import conv, image, noise, randomize


class Network(nn.Module):
    """Layers by name, and what is done with them: ``Network(lambda n, x: n.b(n.a(x)), a=conv(3, 4), b=conv(4, 2))``."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parts: nn.Module | nn.Parameter | Tensor) -> None:
        super().__init__()
        self.done = forward
        for name, part in parts.items():
            if isinstance(part, nn.Module | nn.Parameter):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.done(self, x)


@dataclass(frozen=True)
class Case:
    reason: str
    """How it begins."""
    pinned: str
    """The layer that keeps its width for it."""
    make: Callable[[], Network]
    x: Tensor


def _both_forms(n: Any, x: Tensor) -> Any:
    h = n.b(n.a(x).relu())
    return n.c(h.mean(2) if n.training else h.mean((2, 3)).unsqueeze(-1)).sum()


def _written(n: Any, x: Tensor) -> Any:
    held = torch.zeros(2, 5, 4, dtype=x.dtype)
    held[:, 1:] = n.a(x)[:, 1:]
    return n.c(n.b(held).relu())


def _each_alone(n: Any, x: Tensor) -> Any:
    gates = n.a(x).sigmoid()
    return n.c(n.b(x).relu() * gates[:, :1] + n.b(x) * gates[:, 1:])


def _turned(n: Any, x: Tensor) -> Tensor:
    where = F.affine_grid(n.a(x.mean((2, 3))).view(2, 2, 3), [2, 3, 8, 8], align_corners=False)
    return F.grid_sample(x, where, align_corners=False)


def _mixed(n: Any, x: Tensor) -> Any:
    return n.c(n.b(n.a(x).transpose(1, 2)).transpose(1, 2).relu())


def _chain(first: Callable[[Any, Tensor], Any]) -> Callable[[Any, Tensor], Any]:
    """Return a forward whose layers ``b`` and ``c`` follow what is asked about."""
    return lambda n, x: n.c(n.b(first(n, x)).relu())


TOKENS, IMAGE = noise(2, 5, 6), image()


def tokens(first: Callable[[Any, Tensor], Any], read: int = 4, **parts: Any) -> Callable[[], Network]:
    """Build a network of three linear layers on ``(2, 5, 6)``, the second of which reads so many features."""
    return lambda: Network(
        _chain(first), **{"a": nn.Linear(6, 4), "b": nn.Linear(read, 5), "c": nn.Linear(5, 2)} | parts
    )


def images(first: Callable[[Any, Tensor], Any], read: int = 4, **parts: Any) -> Callable[[], Network]:
    """Build a network of three convolutions on ``(2, 3, 8, 8)``, the second of which reads so many channels."""
    return lambda: Network(_chain(first), **{"a": conv(3, 4), "b": conv(read, 5), "c": conv(5, 2)} | parts)


CASES = [
    Case("channels are picked by values", "a", images(lambda n, x: n.a(x).topk(3, 1).values, 3), IMAGE),
    Case(
        "channels are picked by values",
        "a",
        tokens(lambda n, x: n.a(x).gather(2, x[..., :3].long().abs() % 4), 3),
        TOKENS,
    ),
    Case(
        "channels are picked by values",
        "a",
        tokens(lambda n, x: n.a(x).gather(2, n.places), 3, places=torch.arange(30).view(2, 5, 3) % 4),
        TOKENS,
    ),
    Case(
        "a weight is picked from by values",
        "w",
        tokens(
            lambda n, x: F.linear(n.a(x), n.w.gather(1, n.places)),
            3,
            w=nn.Parameter(torch.zeros(3, 4)),
            places=torch.arange(12).view(3, 4) % 4,
        ),
        TOKENS,
    ),
    Case(
        "its rows are picked by values",
        "o",
        tokens(lambda n, x: n.a(x + n.o.weight[x[..., 0].long().abs() % 3]) + n.o(x).relu().mean(), o=nn.Linear(6, 3)),
        TOKENS,
    ),
    Case(
        "channels are written to by values",
        "a",
        tokens(lambda n, x: n.a(x).scatter(2, x[..., :3].long().abs() % 4, x[..., 3:])),
        TOKENS,
    ),
    Case(
        "channels along one axis meet channels along another in a product",
        "o",
        tokens(
            lambda n, x: (n.a(x).transpose(1, 2)[..., None] @ n.o(x).mean(1)[:, None, None]).mean(1),
            3,
            o=nn.Linear(6, 3),
        ),
        TOKENS,
    ),
    Case(
        "channels along one axis meet channels along another",
        "o",
        tokens(lambda n, x: (n.a(x).mean(1)[..., None] * n.o(x).mean(1)[:, None]).mean(1), 3, o=nn.Linear(6, 3)),
        TOKENS,
    ),
    Case(
        "its one channel is broadcast over others",
        "gate",
        images(lambda n, x: n.a(x) * n.gate(x), gate=conv(3, 1)),
        IMAGE,
    ),
    Case(
        "its channels are summed with a constant of the graph",
        "a",
        tokens(lambda n, x: n.a(x) @ torch.ones(4, 3, dtype=x.dtype), 3),
        TOKENS,
    ),
    Case("its channels are mixed by a product over them", "a", tokens(lambda n, x: n.a(x) @ x[:, :4, :4]), TOKENS),
    Case("its channels are mixed by cumsum", "a", images(lambda n, x: n.a(x).cumsum(1)), IMAGE),
    Case("its channels are mixed by softmax", "a", tokens(lambda n, x: n.a(x).softmax(-1)), TOKENS),
    Case(
        "its channels are mixed by argmax, an index of channels",
        "a",
        tokens(lambda n, x: n.t[n.a(x).argmax(-1)], 6, t=torch.rand(4, 6)),
        TOKENS,
    ),
    Case(
        "its channels are mixed by a Fourier transform (fft)",
        "a",
        tokens(lambda n, x: torch.fft.fft(n.a(x)).real),
        TOKENS,
    ),
    Case(
        "evaluation and training go on with values of different form",
        "b",
        lambda: Network(_both_forms, a=conv(3, 4), b=conv(4, 5), c=nn.Conv1d(5, 2, 1)),
        IMAGE,
    ),
    Case("it says where to read, by a matrix of fixed size", "a", images(_turned, 3, a=nn.Linear(3, 6)), IMAGE),
    Case(
        "it says where to read, by one coordinate for each axis",
        "a",
        images(lambda n, x: F.grid_sample(x, n.a(x).permute(0, 2, 3, 1).tanh(), align_corners=False), 3, a=conv(3, 2)),
        IMAGE,
    ),
    Case(
        "its neighbours are summed by local_response_norm",
        "a",
        images(lambda n, x: F.local_response_norm(n.a(x), 3)),
        IMAGE,
    ),
    Case(
        "its channels are pooled or resampled along their own axis",
        "a",
        tokens(lambda n, x: F.avg_pool1d(n.a(x), 2), 2),
        TOKENS,
    ),
    Case(
        "it is written into another tensor, in place",
        "a",
        images(lambda n, x: x.clone().copy_(n.a(x)), 3, a=conv(3, 3)),
        IMAGE,
    ),
    Case(
        "it is written into a tensor that the graph holds as a constant",
        "a",
        lambda: Network(_written, a=nn.Linear(6, 4), b=nn.Linear(4, 5), c=nn.Linear(5, 2)),
        TOKENS,
    ),
    Case("a triangle of its channels is kept, by their places", "a", tokens(lambda n, x: n.a(x).tril()), TOKENS),
    Case(
        "its channel axis is padded by reflect",
        "a",
        tokens(lambda n, x: F.pad(n.a(x), (1, 1), mode="reflect"), 6),
        TOKENS,
    ),
    Case(
        "it mixes tokens, whose channels run along another axis",
        "b",
        lambda: Network(_mixed, a=nn.Linear(6, 4), b=nn.Linear(5, 7), c=nn.Linear(4, 2)),
        TOKENS,
    ),
    Case(
        "it is read by a weight that is a constant of the graph",
        "a",
        images(lambda n, x: F.conv2d(n.a(x), torch.ones(3, 4, 1, 1, dtype=x.dtype)), 3),
        IMAGE,
    ),
    Case(
        "several axes of a parameter are folded into one, and multiplied",
        "a",
        tokens(lambda n, x: n.a(x) @ n.a.weight.flatten()[:12].view(4, 3), 3),
        TOKENS,
    ),
    Case(
        "it is the state of a recurrent layer",
        "a",
        tokens(lambda n, x: n.cell(x, n.a(x.mean(1))[None])[0], cell=nn.GRU(6, 4, batch_first=True)),
        TOKENS,
    ),
    Case("it makes an output of the model, whose shape is the user's", "c", tokens(lambda n, x: n.a(x)), TOKENS),
    Case(
        "it meets a constant of fixed length",
        "a",
        images(lambda n, x: n.a(x) * torch.arange(n.a(x).shape[1], dtype=x.dtype).view(1, -1, 1, 1)),
        IMAGE,
    ),
    Case(
        "it is joined elementwise with something of fixed length",
        "a",
        tokens(lambda n, x: n.a(x) + x, 6, a=nn.Linear(6, 6)),
        TOKENS,
    ),
    Case(
        "it is the one channel of several that is cut out",
        "a",
        lambda: Network(_each_alone, a=conv(3, 2), b=conv(3, 4), c=conv(4, 2)),
        IMAGE,
    ),
]
NOT_SHOWN = {
    "they are looked up by position",
    "its values say what is picked",
    "its channels are summed with weights that depend on the data",
    "its weight is computed from it as a whole",
}
"""Reasons that no small network was found for: another comes first."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.pinned}: {case.reason}".replace(" ", "_")[:60])
def test_a_reason_is_said_of_the_layer_that_it_holds_for(case):
    torch.manual_seed(0)
    model = randomize(case.make()).eval()
    groups = nce_fx.analyze_channels(nce_fx.trace(model, (case.x,))).groups
    found = {producer: group.pinned or "" for group in groups for producer in group.producers}
    assert {producer for producer, reason in found.items() if reason.startswith(case.reason)} == {case.pinned}
    assert found["b" if case.pinned != "b" else "a"] == "", "what the reason says nothing of is free"
    laws.widening_keeps_the_function(model, (case.x,))
    laws.narrowing_is_removal(model, (case.x,))


@pytest.mark.parametrize(
    ("then", "where"),
    [
        (lambda n, x: F.max_pool2d(x, 2), "max_pool2d"),
        (lambda n, x: x.mean(2, keepdim=True), "mean"),
        (lambda n, x: n.each(x), "each"),
        (lambda n, x: x, "b"),
    ],
)
def test_a_reason_names_the_first_operation_that_reads_rows_of_two_makers_as_one(then, where):
    make = images(lambda n, x: then(n, torch.cat([n.a(x), x], 2)), 3, a=conv(3, 3), each=nn.Conv2d(3, 3, 3, groups=3))
    channels = nce_fx.analyze_channels(nce_fx.trace(make().eval(), (IMAGE,)))
    reason = channels["a"].pinned or ""
    assert reason.startswith("it is joined elementwise with something of fixed length")
    assert f"at {where} ({where})" in reason
    assert channels["b"].pinned is None


def test_every_reason_of_a_rule_has_a_network():
    package = Path(nce_fx.__file__).parent
    said = set()
    for path in (*package.glob("ops/rules/*.py"), *package.glob("passes/analysis/channels/*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] in ("pin", "opaque"):
                said |= {a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    shown = {reason for reason in said if any(reason.startswith(case.reason) for case in CASES)}
    assert said - shown == NOT_SHOWN
