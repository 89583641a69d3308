"""What the planner values beside noise: widths as capacity, read off what they cost."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import nce_fx
from nce_fx.errors import BudgetError, InputError
from nce_fx.models import MODELS
from nce_fx.passes.planning import Budget, plan_widths
from nce_fx.passes.planning.choices import Rules, legal_choices
from nce_fx.passes.planning.importance import elasticities
from nce_fx.passes.planning.posynomial import constraints

NETWORKS: dict[str, dict[str, Any]] = {
    "resnet20": {"width": 16},
    "resnet18": {"width": 8},
    "mobilenet_v2": {"multiplier": 0.2},
}


@pytest.fixture(scope="module", params=NETWORKS)
def analysed(request):
    model = MODELS[request.param](num_classes=10, **NETWORKS[request.param]).eval()
    gm = nce_fx.trace(model, (torch.zeros(1, 3, 32, 32),))
    channels = nce_fx.analyze_channels(gm)
    drawn = np.random.default_rng(0).lognormal(0, 1, len(channels.groups))
    by_group = {group.id: float(value) for group, value in zip(channels, drawn, strict=True)}
    noise = SimpleNamespace(metric="drawn", by_group=by_group)
    return SimpleNamespace(channels=channels, cost=nce_fx.analyze_cost(gm, channels), noise=noise)


ALL = Budget(macs=1.0, params=1.0, bit_ops=1.0, weight_bytes=1.0)


@pytest.mark.parametrize("limits", [ALL, Budget(macs=1.0), Budget(params=1.0), Budget(weight_bytes=1.0)])
def test_where_capacity_alone_counts_the_widths_as_they_are_are_the_best(analysed, limits):
    plan = plan_widths(analysed.channels, analysed.cost, analysed.noise, limits, capacity=1.0)
    assert not plan.changed
    # Not for want of a better one: no plan at all is better.
    assert plan.source["gap"] < 1e-3
    assert plan.predicted_noise == 1.0


def test_capacity_holds_a_plan_nearer_to_the_widths_as_they_are(analysed):
    distances = []
    for capacity in (0.0, 0.4, 0.8):
        plan = plan_widths(analysed.channels, analysed.cost, analysed.noise, ALL, capacity=capacity)
        distances.append(sum(abs(np.log(plan.widths[g] / plan.original[g])) for g in plan.changed))
        assert plan.source["bound"] <= plan.source["objective"] * (1 + 1e-9)
        spent, before = analysed.cost.at(plan.widths).total, analysed.cost.total
        assert all(getattr(spent, name) <= getattr(before, name) for name in ALL.as_mapping())
    assert distances[0] > distances[1] > distances[2] > 0


def test_an_elasticity_is_by_how_much_cost_rises(analysed):
    choices = legal_choices(analysed.channels, Rules())
    limits = {"macs": 1.5 * analysed.cost.macs}
    found = elasticities(constraints(analysed.cost.model, choices, limits), ["macs"])
    for group, value in zip(choices.groups, found, strict=True):
        # MACs are at most quadratic in one group's width, where two sides give the slope exactly.
        near = [analysed.cost.at({group.id: group.width + by * group.step}).macs for by in (-1, 1)]
        slope = (near[1] - near[0]) / (2 * group.step) * group.width / analysed.cost.macs
        assert value == pytest.approx(slope, rel=1e-6)


def test_the_plan_says_its_noise_beside_what_it_made_least(analysed):
    plain = plan_widths(analysed.channels, analysed.cost, analysed.noise, ALL)
    mixed = plan_widths(analysed.channels, analysed.cost, analysed.noise, ALL, capacity=0.5)
    assert "capacity" not in plain.source
    assert mixed.source["capacity"] == 0.5
    assert mixed.source["noise_before"] == plain.source["noise_before"]
    assert plain.source["bound"] <= mixed.source["noise"]
    assert mixed.predicted_noise == mixed.source["noise"] / mixed.source["noise_before"]


def test_a_share_that_is_none_and_a_budget_that_tells_nothing_are_refused(analysed):
    with pytest.raises(InputError, match="capacity is True: give a number"):
        plan_widths(analysed.channels, analysed.cost, analysed.noise, ALL, capacity=True)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(BudgetError, match="is no share: give 0"):
            plan_widths(analysed.channels, analysed.cost, analysed.noise, ALL, capacity=share)
    with pytest.raises(BudgetError, match="limit MACs or parameters"):
        plan_widths(analysed.channels, analysed.cost, analysed.noise, Budget(), capacity=0.5)
