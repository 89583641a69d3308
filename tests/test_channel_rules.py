"""What single rules say of channels: a small network for each, its free groups and their steps, and the laws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn, tensor

import nce_fx
from tests import laws
from tests.test_reasons import IMAGE, TOKENS, Network, images, tokens
from tests.zoo.model import conv, noise, randomize

aten = torch.ops.aten


@dataclass(frozen=True)
class Rule:
    what: str
    make: Callable[[], Network]
    x: Tensor
    free: Mapping[str, int]
    """Producers of each group that may have another width -> the step of its widths."""


def network(forward: Callable[[Any, Tensor], Any], **parts: Any) -> Network:
    return Network(forward, **parts)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def _picked(pick: Callable[[Tensor, Tensor], Tensor], n: Any, x: Tensor) -> Tensor:
    return pick(n.a(x), n.i)


def _feature_of_heads(pick: Callable[[Tensor, Tensor], Tensor], places: list[int]) -> Network:
    return network(
        lambda n, x: n.c(n.b(pick(n.a(x).view(2, 5, 2, 2), n.i)).flatten(2)),
        **{"a": nn.Linear(6, 4), "b": nn.Linear(len(places), 5), "c": nn.Linear(10, 2), "i": tensor(places)},
    )


def _part_written(n: Any, x: Tensor) -> Tensor:
    held: Tensor = n.a(x)
    held[:, 1:].copy_(n.o(x)[:, 1:])
    return held


MEETINGS = [
    Rule(
        "a gate of one channel stays one, whichever side it is on",
        images(lambda n, x: n.gate(x) * n.a(x), gate=conv(3, 1)),
        IMAGE,
        {"a": 1, "b": 1},
    ),
    Rule(
        "a scale that the heads share is copied with what they have inside",
        lambda: network(
            lambda n, x: n.c((n.a(x).view(2, 5, 2, 3) * n.s).flatten(2)),
            a=nn.Linear(6, 6),
            s=parameter(3),
            c=nn.Linear(6, 2),
        ),
        TOKENS,
        {"a": 2},
    ),
    Rule(
        "a gate of each head that a layer makes is of the heads' group",
        lambda: network(
            lambda n, x: n.c((n.a(x).view(2, 5, 2, 3) * n.g(x)[:, :, None]).flatten(2)),
            a=nn.Linear(6, 6),
            g=nn.Linear(6, 3),
            c=nn.Linear(6, 2),
        ),
        TOKENS,
        {"a,g": 2},
    ),
    Rule(
        "a weight over the norm of its rows, by the default axis",
        lambda: network(
            lambda n, x: n.c(F.linear(n.a(x).relu(), torch._weight_norm(n.v, n.g)).relu()),
            a=nn.Linear(6, 4),
            v=parameter(3, 4),
            g=parameter(3, 1),
            c=nn.Linear(3, 2),
        ),
        TOKENS,
        {"a": 1, "v": 1},
    ),
    Rule(
        "a weight whose rows are standardized by a batch norm",
        lambda: network(
            lambda n, x: n.c(
                n.a(F.conv2d(x, F.batch_norm(n.w.reshape(1, 6, -1), None, None, n.g, training=True).view_as(n.w)))
            ),
            **{"w": parameter(6, 3, 3, 3), "g": parameter(6), "a": conv(6, 4), "c": conv(4, 2)},
        ),
        IMAGE,
        {"w": 1, "a": 1},
    ),
    Rule(
        "a transposed convolution as ATen has it",
        images(
            lambda n, x: aten.convolution.default(n.a(x), n.w, None, [2, 2], [0, 0], [1, 1], True, [0, 0], 1),
            6,
            w=parameter(4, 6, 3, 3),
        ),
        IMAGE,
        {"a": 1, "w": 1, "b": 1},
    ),
    Rule(
        "the last state of a recurrent layer has a row for each of the batch",
        lambda: network(
            lambda n, x: n.c(n.b(n.cell(n.a(x))[1][-1][:, None] + x[..., :3]).relu()),
            **{
                "a": nn.Linear(6, 4),
                "cell": nn.GRU(4, 3, batch_first=True),
                "b": nn.Linear(3, 5),
                "c": nn.Linear(5, 2),
            },
        ),
        TOKENS,
        {"a": 1, "b": 1},
    ),
    Rule(
        "a transform along tokens, whose number becomes half",
        tokens(lambda n, x: torch.fft.rfft(n.a(x), dim=1).abs()),
        TOKENS,
        {"a": 1, "b": 1},
    ),
    Rule(
        "a complex number is copied as one",
        tokens(lambda n, x: torch.view_as_complex(n.a(x).view(2, 5, 2, 2)).abs(), 2),
        TOKENS,
        {"a": 2, "b": 1},
    ),
    Rule(
        "a filter of complex numbers has the channels that it multiplies",
        tokens(
            lambda n, x: torch.fft.irfft(torch.fft.rfft(n.a(x), dim=1) * torch.view_as_complex(n.w), n=5, dim=1),
            w=parameter(3, 4, 2),
        ),
        TOKENS,
        {"a": 1, "b": 1},
    ),
]
MOVEMENTS = [
    Rule("the largest along tokens", tokens(lambda n, x: n.a(x).mT.topk(3).values.mT), TOKENS, {"a": 1, "b": 1}),
    Rule("the largest of one token", tokens(lambda n, x: n.a(x).topk(1, 1).values), TOKENS[:, :1], {"a": 1, "b": 1}),
    Rule(
        "an image that is read where data say",
        lambda: network(
            lambda n, x: n.c(n.b(F.grid_sample(n.i, n.a(x).permute(0, 2, 3, 1).tanh(), align_corners=False)).relu()),
            **{"a": conv(3, 2), "i": noise(2, 3, 8, 8), "b": conv(3, 4), "c": conv(4, 2)},
        ),
        IMAGE,
        {"b": 1},
    ),
    Rule(
        "upsampling by factors, as ATen has it",
        images(lambda n, x: aten.upsample_nearest2d.vec(n.a(x), None, [1.5, 2.0])),
        IMAGE,
        {"a": 1, "b": 1},
    ),
    Rule("a triangle of each channel's map", images(lambda n, x: n.a(x).tril()), IMAGE, {"a": 1, "b": 1}),
    Rule(
        "tokens that are repeated as data say",
        tokens(lambda n, x: n.a(x).repeat_interleave((x[0, :, 0] > -9).long(), 1, output_size=5)),
        TOKENS,
        {"b": 1},
    ),
    *(
        Rule(
            f"one channel, taken {len(places)} times by {how}",
            images(partial(_picked, pick), len(places), i=tensor(places)),
            IMAGE,
            {"a": 1, "b": 1},
        )
        for places in ([1, 1], [1, 1, 1])
        for how, pick in {"index_select": lambda x, i: x.index_select(1, i), "an index": lambda x, i: x[:, i]}.items()
    ),
    *(
        Rule(
            f"one feature of each head, taken {len(places)} times by {how}, is read by a layer",
            partial(_feature_of_heads, pick, places),
            TOKENS,
            {"b": 1},
        )
        for places in ([1, 1], [1, 1, 1])
        for how, pick in {
            "index_select": lambda x, i: x.index_select(3, i),
            "an index": lambda x, i: x[:, :, :, i],
        }.items()
    ),
    Rule(
        "channels by a table of places",
        images(lambda n, x: n.a(x)[:, n.i].flatten(1, 2), i=tensor([[1, 0], [2, 3]])),
        IMAGE,
        {"a": 1, "b": 1},
    ),
    Rule(
        "one channel stretched over places",
        images(
            lambda n, x: torch.cat([n.a(x), n.g(x.mean(3))[..., None].expand(-1, -1, -1, 8)], 1),
            5,
            g=nn.Conv1d(3, 1, 1),
        ),
        IMAGE,
        {"a": 1, "b": 1},
    ),
    Rule(
        "one channel that is stretched along no axis",
        images(lambda n, x: torch.cat([n.a(x), n.g(x).expand(2, -1, -1, -1)], 1), 5, g=conv(3, 1)),
        IMAGE,
        {"a": 1, "g": 1, "b": 1},
    ),
    Rule(
        "a constant image that is read where data say",
        lambda: network(
            lambda n, x: n.c(
                n.b(
                    F.grid_sample(
                        torch.ones(2, 3, 8, 8, dtype=x.dtype), n.a(x).movedim(1, 3).tanh(), align_corners=False
                    )
                ).relu()
            ),
            **{"a": conv(3, 2), "b": conv(3, 4), "c": conv(4, 2)},
        ),
        IMAGE,
        {"b": 1},
    ),
    Rule(
        "batches joined by the default axis",
        tokens(lambda n, x: torch.cat([n.a(x), n.o(x)]), o=nn.Linear(6, 4)),
        TOKENS,
        {"a,o": 1, "b": 1},
    ),
    Rule(
        "tokens of a parameter before those of a layer",
        tokens(lambda n, x: torch.cat([n.t.expand(2, -1, -1), n.a(x)], 1), t=parameter(3, 4)),
        TOKENS,
        {"a": 1, "b": 1},
    ),
    Rule("zeros beside channels", images(lambda n, x: F.pad(n.a(x), (0, 0, 0, 0, 1, 2)), 7), IMAGE, {"a": 1, "b": 1}),
    Rule("zeros beside features", tokens(lambda n, x: F.pad(n.a(x), (1, 2)), 7), TOKENS, {"a": 1, "b": 1}),
    Rule(
        "zeros beside what heads have inside",
        tokens(lambda n, x: F.pad(n.a(x).view(2, 5, 2, 2), (2, 1)).flatten(2), 10),
        TOKENS,
        {"a": 2, "b": 1},
    ),
    Rule(
        "a gate of the second half, by the default axis",
        tokens(lambda n, x: F.glu(n.a(x)), 2),
        TOKENS,
        {"a": 2, "b": 1},
    ),
    Rule("a part that is copied into", tokens(_part_written, o=nn.Linear(6, 4)), TOKENS, {"a,o": 1, "b": 1}),
    Rule(
        "an axis that is named, made two",
        tokens(lambda n, x: n.a(x).unflatten(dim=2, sizes=(2, 2)).transpose(2, 3).flatten(2)),
        TOKENS,
        {"a": 1, "b": 1},
    ),
    Rule("a part of the last axis", tokens(lambda n, x: n.a(x)[..., 1:3], 2), TOKENS, {"a": 1, "b": 1}),
    Rule("a part of an axis amid others", images(lambda n, x: n.a(x)[..., 1:3, 2:, :], 2), IMAGE, {"a": 1, "b": 1}),
    Rule("a part from the second on", tokens(lambda n, x: n.a(x).narrow(2, 1, 2), 2), TOKENS, {"a": 1, "b": 1}),
    Rule(
        "two parts, each read by a layer of its own",
        lambda: network(
            lambda n, x: n.c(n.b(n.a(x).narrow(2, 0, 1)).relu() + n.d(n.a(x).narrow(2, 1, 3))),
            **{"a": nn.Linear(6, 4), "b": nn.Linear(1, 5), "d": nn.Linear(3, 5), "c": nn.Linear(5, 2)},
        ),
        TOKENS,
        {"a": 1, "b,d": 1},
    ),
    Rule(
        "an axis of one that goes, as ATen has it",
        tokens(lambda n, x: aten.squeeze.default(n.a(x)[:1])),
        TOKENS,
        {"a": 1, "b": 1},
    ),
]


@pytest.mark.parametrize("rule", MEETINGS + MOVEMENTS, ids=lambda rule: rule.what.replace(" ", "_"))
def test_what_may_have_another_width_is_said_and_the_laws_hold(rule):
    holds(rule)


def holds(rule: Rule) -> None:
    """Raise an AssertionError unless the groups of a network are those that its rule names, and the laws hold."""
    torch.manual_seed(0)
    model = randomize(rule.make()).eval()
    groups = nce_fx.analyze_channels(nce_fx.trace(model, (rule.x,))).groups
    assert {",".join(group.producers): group.step for group in groups if group.pinned is None} == rule.free
    assert not [group.pinned for group in groups if "report" in (group.pinned or "")]
    laws.widening_keeps_the_function(model, (rule.x,), dtypes=(torch.float64,))
    laws.narrowing_is_removal(model, (rule.x,))
    laws.cost_is_exact(model, (rule.x,))


def test_a_weight_that_is_computed_and_put_over_the_norm_of_its_rows_is_free():
    built = network(
        lambda n, x: n.c(F.linear(n.a(x).relu(), torch._weight_norm(n.v * 2, n.g)).relu()),
        **{"a": nn.Linear(6, 4), "v": parameter(3, 4), "g": parameter(3, 1), "c": nn.Linear(3, 2)},
    )
    model = randomize(built).eval()
    assert nce_fx.analyze_channels(nce_fx.trace(model, (TOKENS,)))["v"].pinned is None
    laws.widening_keeps_the_function(model, (TOKENS,), dtypes=(torch.float64,))
