"""Plans as JSON: the same bytes for the same plan, one line for what is wrong, and only for their own model."""

import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import nce_fx
from nce_fx.devices import FREE_MEMORY, free_memory
from nce_fx.errors import ChannelError, PlanError
from nce_fx.models import MODELS
from nce_fx.passes.analysis.channels import analyze_channels
from nce_fx.passes.analysis.channels.plan_check import check_plan
from nce_fx.plan import PlanSchema, WidthPlan, model_fingerprint


def traced(**options: Any) -> GraphModule:
    return nce_fx.trace(MODELS["resnet8"](**options).eval(), (torch.randn(1, 3, 32, 32),))


@pytest.fixture(scope="module")
def plan():
    gm = traced()
    original = analyze_channels(gm).widths
    widths = {**original, "layer1.0.conv1": original["layer1.0.conv1"] + 3}
    return WidthPlan(widths, original, model_fingerprint(gm), source={"metric": "sqnr", "gap": 0.25})


def test_json_and_back_is_the_same_plan_and_the_same_bytes(plan):
    text = plan.to_json()
    again = WidthPlan.from_json(text)
    assert again == plan
    assert again.to_json() == text
    shuffled = WidthPlan(dict(reversed(plan.widths.items())), plan.original, plan.model, source=plan.source)
    assert shuffled.to_json() == text
    assert plan.changed == {"layer1.0.conv1": plan.original["layer1.0.conv1"] + 3}


def test_the_schema_describes_the_json(plan):
    assert set(PlanSchema.model_json_schema()["properties"]) == set(json.loads(plan.to_json()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": {"a": "wide"}}, r"damaged at widths.a: .*valid integer"),
        ({"widths": {"a": 0}}, r"damaged at widths.a: .*greater than 0"),
        ({"model": None}, r"damaged at model"),
        ({"version": 99}, r"version 99, this program reads version 1"),
        ({"surprise": 1}, r"damaged at surprise"),
        ({"widths": {"other": 3}}, r"is not in both widths and original"),
    ],
)
def test_damaged_plans_are_refused_in_one_line(plan, change, message):
    with pytest.raises(PlanError, match=message) as caught:
        WidthPlan.from_json(json.dumps({**json.loads(plan.to_json()), **change}))
    assert "\n" not in str(caught.value)


def test_text_that_is_no_plan_is_refused():
    for text in ("", "{", "[]", "3"):
        with pytest.raises(PlanError):
            WidthPlan.from_json(text)


def test_a_plan_fits_its_model_however_it_is_made(plan):
    check_plan(plan, traced())
    torch.manual_seed(5)
    check_plan(plan, traced())


def test_a_plan_for_another_model_is_refused_with_the_first_difference(plan):
    with pytest.raises(PlanError, match=r"group conv1 is 6 channels wide here, 4 in the plan's model"):
        check_plan(plan, traced(width=6))
    with pytest.raises(PlanError, match="no channel group conv1"):
        check_plan(plan, nce_fx.trace(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), (torch.randn(1, 3),)))
    with pytest.raises(PlanError, match="an operation or a shape differs"):
        check_plan(plan, nce_fx.trace(MODELS["resnet8"]().eval(), (torch.randn(1, 3, 16, 16),)))


def test_fingerprints_are_of_the_architecture():
    first, second = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    inputs = (torch.randn(1, 3, 8, 8),)
    assert model_fingerprint(nce_fx.trace(first, inputs)) == model_fingerprint(nce_fx.trace(second, inputs))
    others = [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid()),
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 4, 3, padding_mode="reflect", padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()),
    ]
    prints = {model_fingerprint(nce_fx.trace(model, inputs)) for model in (first, *others)}
    assert len(prints) == 5


@pytest.mark.parametrize("digits", [11, 20, 400])
def test_widths_that_no_memory_holds_are_refused_before_any_is_taken(digits):
    with pytest.raises(ChannelError, match=r"of memory, .* are free on cpu: group layer1\.0\.conv1, 4 ") as error:
        nce_fx.resize(traced(), {"conv1": 5, "layer1.0.conv1": 10**digits})
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_what_memory_is_free_can_be_said(monkeypatch):
    gm, widths = traced(), {"layer1.0.conv1": 17}
    weights = 4 * (2 * 17 * 4 * 9 + 4 * 17)  # of two convolutions, and of the norm between them
    monkeypatch.setenv(FREE_MEMORY, str(weights))
    with pytest.raises(ChannelError, match=r"need \d\.\d kB of memory, 5\.1 kB are free on cpu: group layer1"):
        nce_fx.resize(gm, widths)
    monkeypatch.setenv(FREE_MEMORY, str(weights + 8 * 1000))  # and what says where channels come from
    assert nce_fx.resize(gm, widths).get_parameter("layer1.0.conv1.weight").shape[0] == 17
    assert free_memory(torch.device("meta")) == float("inf")
