"""Every law over every model of the zoo and the small built-in networks, and what the analysis must find in each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import nn

import nce_fx
from nce_fx.models import MODELS
from tests.drawing import Traced, keep, traced
from tests.laws import LAWS, QUANTIZED, new_channels_live, the_budget_holds_at_any_bits
from tests.zoo import ZOO, randomize
from tests.zoo.model import image

BUILT_IN: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "resnet8": (lambda: MODELS["resnet8"](num_classes=10, width=8), image(3, 16)),
    "resnet20": (lambda: MODELS["resnet20"](num_classes=10, width=4), image(3, 16)),
    "mobilenet_v2": (lambda: MODELS["mobilenet_v2"](num_classes=10, multiplier=0.25), image(3, 32, batch=4)),
}
NAMES = [*ZOO, *BUILT_IN]

TWO_AXES = "a value that carries channels along two axes is pinned, though one of them could change"
FALLS_SHORT = {
    "outer_product": TWO_AXES,
    "grey_to_many": "expand_as(y) spreads one channel over a width that is then its own",
}
"""Pinned, in words and without a wrong result, though it could be free: what the analysis does not see yet."""


def expected(names: Iterable[str], short: Mapping[str, str]) -> list[Any]:
    """Mark what is known to fall short; strictly, so that what is mended must be taken off the list."""
    marks = {name: [pytest.mark.xfail(reason=reason, strict=True)] for name, reason in short.items()}
    return [pytest.param(name, marks=marks.get(name, [])) for name in names]


@lru_cache(maxsize=2)
def subject(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    if name in ZOO:
        return ZOO[name].make(), ZOO[name].inputs
    torch.manual_seed(0)
    build, x = BUILT_IN[name]
    return randomize(build()).eval(), (x,)


# By its scope, a model's laws and its groups come one after another: they share one trace of it in each dtype.
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", NAMES, scope="module")
def test_law(name, law):
    LAWS[law](*subject(name))


def test_new_channels_of_a_model_that_computes_in_float32_alone_are_copies_to_its_rounding():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 40), nn.BatchNorm1d(40), nn.GELU(), nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 2)
    )
    x = torch.randn(8, 6)
    gm = nce_fx.trace(randomize(model).eval(), (x,))
    keep(model, torch.float64, Traced(gm, (x,), nce_fx.analyze_channels(gm)))
    for seed in range(3):
        new_channels_live(model, (x,), seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_budget_holds_at_every_spec(name):
    for seed in range(len(QUANTIZED)):
        the_budget_holds_at_any_bits(*subject(name), seed=seed)


@pytest.mark.parametrize("name", expected(ZOO, FALLS_SHORT), scope="module")
def test_groups_are_what_they_must_be(name):
    model = ZOO[name]
    channels = traced(*subject(name)).channels
    group_of = {producer: group for group in channels.groups for producer in group.producers}
    for producer in model.free:
        assert producer in group_of, f"{producer} is in no group"
        assert group_of[producer].pinned is None, f"{producer} is pinned: {group_of[producer].pinned}"
    for producer, words in model.pinned.items():
        reason = group_of[producer].pinned
        assert reason is not None, f"{producer} is free, it must be pinned"
        assert words in reason, f"{producer} is pinned for another reason than {words!r}: {reason}"
    for producers in model.together:
        assert len({group_of[producer].id for producer in producers}) == 1, f"{sorted(producers)} are apart"
