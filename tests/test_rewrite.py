"""The compiler as a whole: within budget, deterministic, equal to its parts composed by hand, honest in its report."""

import copy
import dataclasses
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import nce_fx
from nce_fx.errors import BudgetError, InputError, NceFxError, PlanError, TraceError
from nce_fx.models import MODELS
from nce_fx.passes.analysis.sensitivity.analyze import WITH_DATA, WITHOUT_DATA
from nce_fx.rewrite import analyze, build


def example(size=16):
    return (torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)),)


def batches(count=2, size=16):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 3, size, size, generator=generator), torch.randint(10, (8,), generator=generator))
        for _ in range(count)
    ]


def net(name="resnet8"):
    torch.manual_seed(0)
    return MODELS[name]().eval()


def counted(gm, inputs):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        gm(*inputs)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("ratio", [0.8, 1.0, 1.5])
def test_the_budget_holds_on_the_network_itself(ratio):
    budget = nce_fx.Budget(macs=ratio, params=ratio)
    result = nce_fx.rewrite(net(), example(), batches=batches(), budget=budget)
    resized = nce_fx.resize(result.original, result.plan)
    assert counted(resized, example()) <= ratio * counted(result.original, example())
    params = [sum(p.numel() for p in gm.parameters()) for gm in (resized, result.original)]
    assert params[0] <= ratio * params[1]
    assert result.report.rewritten.macs == counted(resized, example())


@pytest.mark.parametrize("quantity", ["macs", "params", "bit_ops", "weight_bytes", "activation_bytes"])
@pytest.mark.parametrize("spec", [nce_fx.QuantSpec(weight_bits=2, activation_bits=8), nce_fx.QuantSpec("lsq", "lsq")])
def test_a_lone_limit_holds_in_the_report_and_is_spent(quantity, spec):
    result = nce_fx.rewrite(net(), example(), budget=nce_fx.Budget(**{quantity: 0.8}), spec=spec)
    before, after = (getattr(record, quantity) for record in (result.report.original, result.report.rewritten))
    assert 0.9 * 0.8 * before <= after <= 0.8 * before
    assert result.plan.source["cost"] == {quantity: after}
    absolute = nce_fx.rewrite(net(), example(), budget=nce_fx.Budget(**{quantity: after}), spec=spec)
    assert getattr(absolute.report.rewritten, quantity) <= after


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2"])
@pytest.mark.parametrize("spec", [nce_fx.QuantSpec(), nce_fx.QuantSpec(weight_bits=2, activation_bits=4)])
def test_without_a_budget_nothing_that_is_paid_rises(name, spec):
    result = nce_fx.rewrite(net(name), example(32), spec=spec)
    before, after = result.report.original.cost, result.report.rewritten.cost
    assert set(result.report.budget) == {"macs", "params", "bit_ops", "weight_bytes"}
    assert all(after[quantity] <= before[quantity] for quantity in result.report.budget)
    assert result.plan.changed
    assert before.keys() == after.keys() >= {"activation_bytes"}
    alone = nce_fx.rewrite(net(name), example(32), spec=spec, budget=nce_fx.Budget(macs=1.0))
    assert alone.report.budget == {"macs": 1.0}
    assert alone.plan.source["objective"] <= result.plan.source["objective"]


def test_the_rewritten_network_has_visible_two_bit_quantizers():
    result = nce_fx.rewrite(net(), example(), batches=batches())
    names = [node.name for node in result.graph_module.graph.nodes]
    assert sum(name.endswith("_weight_quant") for name in names) == sum(
        isinstance(module, nn.Conv2d | nn.Linear) for module in net().modules()
    )
    assert any(name.endswith("_activation_quant") for name in names)
    assert result.graph_module(*example()).shape == (1, 10)


@pytest.mark.long
def test_rewriting_twice_gives_the_same_plan_and_weights():
    one, two = (nce_fx.rewrite(net(), example(), batches=batches(), seed=4) for _ in range(2))
    assert one.plan.to_json() == two.plan.to_json()
    assert one.report == two.report
    state = two.graph_module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in one.graph_module.state_dict().items())


def test_the_whole_is_the_parts_composed():
    from nce_fx.passes.transform.quantize import InsertQuantizers
    from nce_fx.passes.transform.resize import ResizeChannels
    from nce_fx.pipeline import Given, Pipeline

    result = nce_fx.rewrite(net(), example(), batches=batches())
    gm = nce_fx.trace(net(), example())
    spec = nce_fx.QuantSpec()
    uniform = nce_fx.quantize(gm, spec, batches())
    byhand = nce_fx.quantize(nce_fx.resize(gm, result.plan), spec, like=uniform)
    piped = Pipeline((ResizeChannels(result.plan), InsertQuantizers(spec)))(gm, Given(like=uniform)).graph_module
    expected = result.graph_module(*example())
    assert torch.equal(byhand.eval()(*example()), expected)
    assert torch.equal(piped.eval()(*example()), expected)


@pytest.mark.parametrize("metric", ["sqnr", "sqnr_activation", "gauss_newton", "fisher", "hessian", "kl"])
@pytest.mark.parametrize("activation", ["pact", "minmax"])
def test_ranges_of_the_sensitivity_pass_are_those_of_a_pass_of_their_own(metric, activation):
    spec = nce_fx.QuantSpec(activation=activation)
    found = analyze(net(), example(), batches=batches(3), spec=spec, metric=metric).uniform
    assert found is not None
    own = nce_fx.quantize(nce_fx.trace(net(), example()), spec, batches(3)).state_dict()
    assert found.state_dict().keys() == own.keys()
    assert all(torch.equal(value, own[name]) for name, value in found.state_dict().items())


def test_a_rewrite_runs_over_the_data_once(monkeypatch):
    # What would run a pass for calibration alone.
    monkeypatch.setattr(sys.modules["nce_fx.passes.transform.quantize.calibrate"]._Observer, "run", None)
    result = nce_fx.rewrite(net(), example(), batches=batches())
    ranges = {name: value for name, value in result.graph_module.state_dict().items() if name.endswith(".step")}
    assert ranges.keys() == {name for name in result.uniform.state_dict() if name.endswith(".step")}
    assert all(torch.equal(value, result.uniform.state_dict()[name]) for name, value in ranges.items())
    assert len(set(map(float, ranges.values()))) > 1


def test_batchnorm_in_training_mode_is_calibrated_with_the_statistics_of_the_batch():
    model = net().train()
    found = analyze(model, example(), batches=batches()).uniform
    assert found is not None
    own = nce_fx.quantize(nce_fx.trace(model, example()), batches=batches())
    assert all(torch.equal(value, own.state_dict()[name]) for name, value in found.state_dict().items())


def test_the_model_is_not_changed():
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    nce_fx.rewrite(model, example(), batches=batches())
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_report_says_what_the_plan_does():
    result = nce_fx.rewrite(net(), example(), batches=batches(), freeze=("layer2*",))
    report = result.report
    assert {group.id: group.after for group in report.groups if group.pinned is None}.items() <= {
        **{group.id: group.before for group in report.groups},
        **result.plan.widths,
    }.items()
    assert report.metric == WITH_DATA
    assert report.bits == 2
    assert report.widened + report.narrowed <= len(report.groups)
    assert {layer.name for layer in report.layers} >= {"conv1", "layer1.0.conv1", "fc"}
    assert nce_fx.rewrite(net(), example()).report.metric == WITHOUT_DATA


def test_steps_are_observed_in_order():
    seen: list[str] = []
    nce_fx.rewrite(net(), example(), observe=seen.append)
    assert seen == [
        "trace",
        "analyze channels",
        "analyze cost",
        "analyze sensitivity",
        "plan",
        "resize and quantize",
    ]


def test_a_plan_for_another_network_is_refused():
    plan = nce_fx.rewrite(net(), example()).plan
    with pytest.raises(PlanError, match="another model"):
        build(nce_fx.trace(net("resnet20"), example()), plan)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"budget": nce_fx.Budget(macs=0.001)}, BudgetError, "least"),
        ({"metric": "guess"}, NceFxError, "guess"),
        ({"example_inputs": (torch.randn(1, 5, 16, 16),)}, TraceError, "5, 16, 16"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(change, error, match):
    arguments = {"example_inputs": example(), **change}
    with pytest.raises(error, match=match) as raised:
        nce_fx.rewrite(net(), **arguments)
    assert len(str(raised.value).splitlines()) == 1


def test_weights_that_are_not_finite_are_refused():
    model = net()
    model.layer1[0].conv1.weight.data[0, 0, 0, 0] = float("inf")
    with pytest.raises(InputError, match=r"layer1\.0\.conv1\.weight"):
        nce_fx.rewrite(model, example())


def test_sensitivities_that_are_not_finite_are_refused():
    model = net()
    model.fc.weight.data.fill_(3e38)
    with pytest.raises(NceFxError, match=r"NaN|finite"):
        nce_fx.rewrite(model, example(), batches=batches())


def test_analyses_are_frozen():
    analyses = analyze(net(), example())
    with pytest.raises(dataclasses.FrozenInstanceError):
        analyses.cost = None  # type: ignore[misc, assignment]
