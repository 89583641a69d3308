"""The bits of first and last layers, planned with the widths, within the budget of the network as it was given."""

import numpy as np
import pytest
import torch

import nce_fx
from nce_fx import artifacts
from nce_fx.cli.retraining import _unresized
from nce_fx.end_bits import BITS, total_noise
from nce_fx.errors import InputError
from nce_fx.models import MODELS
from nce_fx.passes.transform.quantize import describe
from nce_fx.quantities import OWN

PAID = [row.name for row in OWN if row.default is not None]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = MODELS["resnet8"](num_classes=4, in_channels=3, width=4).eval()
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(16, 3, 16, 16, generator=generator), torch.randint(0, 4, (16,), generator=generator))
        for _ in range(2)
    ]
    return model, batches


@pytest.fixture(scope="module")
def planned(network):
    model, batches = network
    return nce_fx.rewrite(model, (torch.zeros(2, 3, 16, 16),), batches=batches, end_bits="plan")


@pytest.fixture(scope="module")
def given(network):
    model, batches = network
    return nce_fx.rewrite(model, (torch.zeros(2, 3, 16, 16),), batches=batches)


def weight_bits(gm):
    return {layer.layer: layer.weight_bits for layer in describe(gm)}


def test_the_budget_is_that_of_the_network_as_it_was_given(planned, given):
    assert planned.report.original == given.report.original
    for name in PAID:
        assert planned.report.rewritten.cost[name] <= given.report.original.cost[name]
    assert planned.report.budget == given.report.budget == dict.fromkeys(PAID, 1.0)


def test_the_ends_have_the_bits_that_the_report_says_and_nothing_else_has_others(planned, given):
    ends = planned.report.end_bits
    assert set(ends) == {"conv1", "fc"}
    assert set(ends.values()) <= set(BITS)
    assert weight_bits(planned.graph_module) == weight_bits(given.graph_module) | ends
    reads = [{layer.layer: layer.activation_bits for layer in describe(r.graph_module)} for r in (planned, given)]
    assert reads[0] == reads[1]
    # The rival is the network as it was given.
    assert weight_bits(planned.uniform) == weight_bits(given.uniform)


def test_no_other_bits_have_a_plan_of_less_noise(network, planned):
    """Each pair planned apart, its sensitivities measured with these bits: the one that was chosen is the best."""
    batches = network[1]
    gm = planned.original
    channels = nce_fx.analyze_channels(gm)
    limits = planned.report.original.cost
    found = {}
    for first in BITS:
        for last in BITS:
            spec = nce_fx.QuantSpec(overrides={"conv1": {"weight_bits": first}, "fc": {"weight_bits": last}})
            uniform = nce_fx.quantize(gm, spec, batches)
            cost = nce_fx.analyze_cost(gm, channels, quantized=uniform)
            noise = nce_fx.analyze_sensitivity(gm, batches, channels=channels, quantized=uniform)
            ratios = {name: limits[name] / cost.total.by_quantity[name] for name in PAID}
            plan = nce_fx.plan_widths(channels, cost, noise, nce_fx.Budget(**ratios))
            found[first, last] = total_noise(channels, noise, plan)
    ends = planned.report.end_bits
    # What was measured end by end adds up to what is measured of both.
    assert found[ends["conv1"], ends["fc"]] == pytest.approx(min(found.values()), rel=1e-3)
    assert len(set(np.round(list(found.values()), 9))) == 9


def test_a_result_with_planned_ends_comes_back_and_its_rival_has_the_bits_as_given(network, planned, tmp_path):
    artifacts.save(planned.graph_module, tmp_path / "result", report=planned.report, float_model=planned.original)
    again = nce_fx.load(tmp_path / "result", network[0])
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(again(x), planned.graph_module(x))
    rival = _unresized(again, [])(planned.original).graph_module
    assert weight_bits(rival) == weight_bits(planned.uniform)


def test_bits_that_the_user_gives_by_name_are_kept(network):
    model, batches = network
    spec = nce_fx.QuantSpec(overrides={"conv*": 4})
    result = nce_fx.rewrite(model, (torch.zeros(2, 3, 16, 16),), batches=batches, spec=spec, end_bits="plan")
    assert set(result.report.end_bits) == {"fc"}
    assert weight_bits(result.graph_module)["conv1"] == 4
    with pytest.raises(InputError, match="end_bits='all': give one of given, plan"):
        nce_fx.rewrite(model, (torch.zeros(2, 3, 16, 16),), end_bits="all")
