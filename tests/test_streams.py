"""Residual streams: which groups are, and that within half of the cost no plan narrows one further than one factor."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import nce_fx
from nce_fx.errors import BudgetError, InputError
from nce_fx.models import INPUT_SHAPES, MODELS
from nce_fx.passes.analysis.channels import analyze_channels
from nce_fx.passes.analysis.cost import analyze_cost
from nce_fx.passes.planning import Budget, plan_widths
from nce_fx.passes.planning.choices import Rules
from nce_fx.passes.planning.even import even_widths

HALF = Budget(macs=0.5, params=0.5)


@pytest.fixture(scope="module", params=["resnet20", "mobilenet_v2"])
def analysed(request):
    gm = nce_fx.trace(MODELS[request.param]().eval(), (torch.zeros(1, *INPUT_SHAPES[request.param]),))
    channels = analyze_channels(gm)
    return channels, analyze_cost(gm, channels, weight_bits=2, activation_bits=2)


def plan(channels, cost, budget, **options):
    # To noise alone streams are cheap to narrow, as 8-bit shortcuts make them.
    noise = {group.id: 1e-3 if group.sums else 1.0 for group in channels}
    return plan_widths(channels, cost, SimpleNamespace(metric="made up", by_group=noise), budget, **options)


def test_streams_are_where_layers_that_read_other_groups_add_up(analysed):
    channels, _ = analysed
    found = [group.id for group in channels if group.sums]
    assert found in (
        ["conv1", "layer2.0.conv2", "layer3.0.conv2"],
        ["features.2.conv.2", "features.4.conv.2", "features.7.conv.2", "features.11.conv.2", "features.14.conv.2"],
    )


def test_no_stream_is_narrower_than_one_factor_leaves_it(analysed):
    channels, cost = analysed
    even = even_widths(cost, HALF, Rules(), {})
    streams = [group.id for group in channels if group.sums]
    held, half, free = (plan(channels, cost, HALF, streams=share) for share in (1.0, 0.5, 0.0))
    assert any(free.widths[group] < even[group] for group in streams)
    assert all(held.widths[group] >= even[group] for group in streams)
    assert all(2 * half.widths[group] >= even[group] for group in streams)
    # What is asked beside the noise costs noise.
    assert free.source["objective"] <= half.source["objective"] <= held.source["objective"]
    assert free.source["streams"] == 0.0


def test_at_the_networks_own_cost_streams_may_give(analysed):
    channels, cost = analysed
    own = Budget(macs=1.0, params=1.0)
    assert plan(channels, cost, own).widths == plan(channels, cost, own, streams=0.0).widths


def test_what_is_no_share_is_refused(analysed):
    with pytest.raises(BudgetError, match=r"streams=1\.5 is no share"):
        plan(analysed[0], analysed[1], HALF, streams=1.5)


@pytest.mark.parametrize("asked", [{"streams": 1.5}, {"capacity": -1.0}, {"round_to": 0}, {"end_bits": "all"}])
def test_what_makes_no_sense_is_refused_before_the_model_is_looked_at(asked):
    def forward(*_):
        raise AssertionError("the model ran")

    model = nn.Linear(3, 2)
    model.forward = forward  # type: ignore[method-assign]
    with pytest.raises((BudgetError, InputError), match=next(iter(asked))):
        nce_fx.rewrite(model, (torch.zeros(1, 3),), **asked)
