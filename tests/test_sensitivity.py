"""Sensitivities: against hand computation, against the plain way of doing it, and without a trace left on the model."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

import nce_fx
from nce_fx.errors import InputError
from nce_fx.models import MODELS
from nce_fx.passes.analysis.channels import analyze_channels
from nce_fx.passes.analysis.channels.graph import ChannelGraph
from nce_fx.passes.analysis.sensitivity import METRICS, Noise, analyze_sensitivity
from nce_fx.tasks import losses
from tests.counting import operations
from tests.zoo import ZOO


def coarse(value: Tensor) -> Tensor:
    """A plain uniform rounding, easy to say again by hand."""
    return (value * 4).round() / 4


COARSE = Noise(lambda path, weight: coarse(weight), lambda name, readers, sample: coarse)


class Block(nn.Module):
    """A residual block with everything in place, the way it is often written."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.relu, self.head = nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Linear(8, 4)

    def forward(self, x):
        x = self.relu(self.first(x))
        y = self.norm(self.second(x))
        y += x
        return self.head(F.relu(y, inplace=True).mean((2, 3)))


def traced(model: nn.Module, *shape: int) -> GraphModule:
    return nce_fx.trace(model.eval(), (torch.randn(2, *shape),))


def drawn(*shape: int, count: int = 2, classes: int = 4) -> list[tuple[Any, Any]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(6, *shape, generator=generator), torch.randint(0, classes, (6,), generator=generator))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def block():
    torch.manual_seed(0)
    return traced(Block(), 3, 6, 6)


def plain_loss(gm: GraphModule, batches: list[tuple[Any, Any]]) -> float:
    with torch.no_grad():
        return float(torch.stack([F.cross_entropy(gm(x), y) for x, y in batches]).mean())


def test_loss_is_the_loss_with_one_weight_rounded(block):
    batches = drawn(3, 6, 6)
    report = analyze_sensitivity(block, batches, "loss", noise=COARSE)
    for path in ("first", "second", "head"):
        rounded = copy.deepcopy(block)
        weight = rounded.get_submodule(path).weight
        weight.data = coarse(weight.data)
        rise = plain_loss(rounded, batches) - plain_loss(block, batches)
        assert report.by_node[path].weight == pytest.approx(rise, abs=1e-6)


def test_loss_is_the_loss_with_one_activation_rounded(block):
    batches = drawn(3, 6, 6)
    report = analyze_sensitivity(block, batches, "loss", noise=COARSE)
    rounded = copy.deepcopy(block)
    node = next(node for node in rounded.graph.nodes if node.target == "second").args[0]
    with rounded.graph.inserting_after(node):
        rounding = rounded.graph.call_function(coarse, (node,))
    node.replace_all_uses_with(rounding, delete_user_cb=lambda user: user is not rounding)
    rounded.recompile()
    rise = plain_loss(rounded, batches) - plain_loss(block, batches)
    assert report.by_node["second"].activation == pytest.approx(rise, abs=1e-6)
    assert abs(rise) > 1e-4


def test_kl_is_never_negative_and_zero_without_noise(block):
    batches = drawn(3, 6, 6)
    report = analyze_sensitivity(block, [(x, None) for x, _ in batches], "kl", noise=COARSE)
    assert all(node.weight > 0 for node in report.by_node.values())
    nothing = Noise(lambda path, weight: weight, lambda name, readers, sample: lambda value: value)
    for metric in METRICS:
        silent = analyze_sensitivity(block, batches, metric, noise=nothing)
        assert all(abs(node.total) < 1e-9 for node in silent.by_node.values()), metric


def test_sqnr_is_noise_over_signal(block):
    report = analyze_sensitivity(block, None, "sqnr", noise=COARSE)
    weight = block.second.weight.detach()
    assert report.by_node["second"].weight == pytest.approx(
        float((coarse(weight) - weight).square().sum() / weight.square().sum()), rel=1e-5
    )
    assert report.by_node["second"].activation == 0
    with_data = analyze_sensitivity(block, drawn(3, 6, 6), "sqnr_activation", noise=COARSE)
    assert with_data.by_node["second"].weight == report.by_node["second"].weight
    images = torch.cat([x for x, _ in drawn(3, 6, 6)])
    assert with_data.by_node["first"].activation == pytest.approx(
        float((coarse(images) - images).square().sum() / images.square().sum()), rel=1e-5
    )


def squared(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output - target).square().sum(1).mean()


def test_fisher_is_the_squared_product_written_out():
    """One linear layer and a squared loss: the gradient of sample n along the weight's error d is (y - t) . (x d')."""
    torch.manual_seed(0)
    gm = traced(nn.Sequential(nn.Linear(5, 3)), 5)
    x, target = torch.randn(7, 5), torch.randn(7, 3)
    report = analyze_sensitivity(gm, [(x, target)], "fisher", noise=COARSE, loss=squared)
    weight, bias = gm.get_parameter("0.weight").detach(), gm.get_parameter("0.bias").detach()
    slope = x @ weight.t() + bias - target
    along = (slope * (x @ (coarse(weight) - weight).t())).sum(1)
    assert report.by_node["0"].weight == pytest.approx(float(0.5 * along.square().mean()), rel=1e-4)
    read = (slope @ weight * (coarse(x) - x)).sum(1)
    assert report.by_node["0"].activation == pytest.approx(float(0.5 * read.square().mean()), rel=1e-4)


def test_gauss_newton_is_the_curvature_of_the_divergence(monkeypatch):
    """For a linear layer the output's error is exact, and 1/2 dz' (diag p - p p') dz what KL is to second order."""
    torch.manual_seed(0)
    gm = traced(nn.Sequential(nn.Linear(5, 3)), 5)
    x = torch.randn(4000, 5)
    monkeypatch.setattr(losses, "TEMPERATURE", 1.0)
    weight, bias = gm.get_parameter("0.weight").detach(), gm.get_parameter("0.bias").detach()
    chances = (x @ weight.t() + bias).softmax(1)
    tilt = 0.01 * torch.arange(15).view(3, 5)
    tilted = Noise(lambda path, weight: weight + tilt, lambda name, readers, sample: coarse)
    error = x @ tilt.t()
    exact = 0.5 * ((chances * error.square()).sum(1) - (chances * error).sum(1).square()).mean()
    report = analyze_sensitivity(gm, [(x, None)], "gauss_newton", noise=tilted)
    assert report.by_node["0"].weight == pytest.approx(float(exact), rel=0.05)
    divergence = analyze_sensitivity(gm, [(x, None)], "kl", noise=tilted)
    assert report.by_node["0"].weight == pytest.approx(divergence.by_node["0"].weight, rel=0.1)


class Named(nn.Module):
    """Returns logits, or a dict in which they come behind what they are computed from."""

    def __init__(self, alone: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.alone = nn.Linear(6, 5), nn.Linear(5, 4), alone

    def forward(self, x):
        features = self.body(x).relu()
        logits = self.head(features)
        return logits if self.alone else {"features": features, "logits": logits}


@pytest.mark.parametrize("metric", METRICS)
def test_scores_are_those_that_the_model_calls_logits(metric):
    alone, beside = (analyze_sensitivity(traced(Named(way), 6), drawn(6), metric).by_node for way in (True, False))
    assert alone["head"].weight > 0
    assert beside == alone


def test_hessian_is_exact_where_the_hessian_is_diagonal():
    """y = w x elementwise by a 1x1 depthwise conv, squared loss: H is diagonal, and signs square to one."""
    torch.manual_seed(0)
    gm = traced(nn.Sequential(nn.Conv2d(4, 4, 1, groups=4, bias=False), nn.Flatten()), 4, 1, 1)
    x = torch.randn(9, 4, 1, 1)
    target = torch.randn(9, 4)
    report = analyze_sensitivity(gm, [(x, target)], "hessian", noise=COARSE, loss=squared)
    weight = gm.get_parameter("0.weight").detach().flatten()
    trace = float(x.flatten(1).square().mean(0).sum())
    expected = 0.5 * trace / 4 * float((coarse(weight) - weight).square().sum())
    # Not to the last digit: the signs of the input, the other tensor that is disturbed, average out only slowly.
    assert report.by_node["0"].weight == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("metric", sorted({*METRICS} - {"sqnr", "sqnr_activation", "gauss_newton"}))
def test_a_head_that_the_loss_does_not_read_has_no_sensitivity(metric):
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.unread = nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x):
            return self.read(x), self.unread(x)

    torch.manual_seed(0)
    gm = traced(Heads(), 6)
    report = analyze_sensitivity(gm, drawn(6), metric, noise=COARSE, loss=lambda output, _: output[0].square().mean())
    assert report.by_node["read"].weight > 0
    assert report.by_node["unread"].weight == 0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ["norm_of_each_mode", "one_way_each", "auxiliary_head"])
def test_what_only_training_runs_is_not_run(name, metric):
    gm = nce_fx.trace(ZOO[name].make(), ZOO[name].inputs)
    before = {name: value.clone() for name, value in gm.state_dict().items()}
    batches = [(5 * ZOO[name].inputs[0], torch.tensor([1, 2])), (ZOO[name].inputs[0], torch.tensor([0, 1]))]
    first = analyze_sensitivity(gm, batches, metric)
    assert all(torch.equal(value, before[name]) for name, value in gm.state_dict().items())
    quantized = nce_fx.quantize(gm, batches=batches)
    assert all(torch.equal(value, quantized.state_dict()[name]) for name, value in before.items())
    assert first == analyze_sensitivity(gm, batches, metric)


@pytest.mark.parametrize("metric", ["gauss_newton", "loss"])
def test_a_model_that_draws_numbers_is_measured_alike_wherever_the_generator_stands(metric):
    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x):
            return self.second(F.dropout(self.first(x).relu(), 0.5, training=True))

    torch.manual_seed(0)
    batches = [(torch.randn(8, 6), torch.randint(0, 4, (8,)))]
    gm = nce_fx.trace(Drawing().eval(), batches[0][:1])
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(analyze_sensitivity(gm, batches, metric))
    assert found[0] == found[1]


@pytest.mark.parametrize("metric", METRICS)
def test_the_model_is_left_as_it_was_and_the_result_repeats(metric):
    torch.manual_seed(0)
    gm = nce_fx.trace(MODELS["resnet8"]().train(), (torch.randn(2, 3, 16, 16),))
    before = {name: value.clone() for name, value in gm.state_dict().items()}
    batches = drawn(3, 16, 16, count=1)
    channels = analyze_channels(gm)
    state = torch.get_rng_state()
    first = analyze_sensitivity(gm, batches, metric, channels=channels)
    assert torch.equal(state, torch.get_rng_state())
    assert first == analyze_sensitivity(gm, batches, metric, channels=channels)
    assert gm.training
    assert all(module.training for module in gm.modules())
    assert all(torch.equal(value, before[name]) for name, value in gm.state_dict().items())
    assert all(parameter.grad is None for parameter in gm.parameters())
    assert set(first.by_group) == {group.id for group in channels}
    assert first.ranked() == sorted(first.ranked(), key=lambda item: (-item[1], item[0]))
    # A frozen model is measured all the same.
    for parameter in gm.parameters():
        parameter.requires_grad_(False)
    frozen = analyze_sensitivity(gm, batches, metric, channels=channels)
    for path, node in frozen.by_node.items():
        assert node.total == pytest.approx(first.by_node[path].total, rel=1e-3, abs=1e-7)


@pytest.mark.long
def test_what_the_metrics_cost():
    """The gradient metric: at most three plain steps whatever the depth. One at a time: under half of L forwards."""
    gm = nce_fx.trace(MODELS["resnet20"]().eval(), (torch.randn(1, 3, 16, 16),))
    channels, batches = analyze_channels(gm), drawn(3, 16, 16, count=8)

    def step() -> None:
        for inputs, target in batches:
            torch.autograd.backward(F.cross_entropy(gm(inputs), target))

    plain, forward = operations(step), operations(lambda: [gm(inputs) for inputs, _ in batches])
    for metric in ("fisher", "gauss_newton"):
        run = partial(analyze_sensitivity, gm, batches, metric, channels=channels)
        assert operations(run) <= 3 * plain
    report = analyze_sensitivity(gm, batches, "loss", channels=channels)
    count = sum(1 + (node.activation != 0) for node in report.by_node.values())
    spent = operations(lambda: analyze_sensitivity(gm, batches, "loss", channels=channels))
    assert spent <= 0.55 * count * forward
    # What is run once to find the layout comes on top.
    assert report.forwards == pytest.approx(spent / forward, rel=0.3)


class Mixed(nn.Module):
    """A shared layer, a raw parameter, a lookup, and recurrence."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.shared = nn.Embedding(10, 6), nn.Linear(6, 6)
        self.kernel, self.recurrent = nn.Parameter(torch.randn(4, 6)), nn.GRU(6, 6, batch_first=True)

    def forward(self, tokens):
        x = self.recurrent(self.table(tokens))[0]
        return F.linear(self.shared(torch.relu(self.shared(x))), self.kernel).mean(1)


@pytest.mark.parametrize("metric", METRICS)
def test_raw_parameters_shared_and_recurrent_layers(metric):
    torch.manual_seed(0)
    gm = nce_fx.trace(Mixed(), (torch.randint(0, 10, (2, 5)),))
    batches = [(torch.randint(0, 10, (6, 5)), torch.randint(0, 4, (6,)))]
    nothing_known = ChannelGraph((), (), {}, {})
    report = analyze_sensitivity(gm, batches, metric, noise=COARSE, channels=nothing_known)
    assert {"shared", "kernel", "recurrent"} <= set(report.by_node)
    if metric in ("sqnr", "sqnr_activation", "kl"):  # the others may be zero or below where rounding happens to help
        assert report.by_node["kernel"].weight > 0
        assert report.by_node["shared"].weight > 0


def test_groups_gather_their_producers_and_what_carries_them():
    class Concat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.out = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            return self.out(torch.cat([self.left(x), self.right(x)], 1)).mean((2, 3))

    torch.manual_seed(0)
    gm = traced(Concat(), 3, 4, 4)
    report = analyze_sensitivity(gm, drawn(3, 4, 4), "sqnr_activation", noise=COARSE)
    carried = report.by_node["out"].activation
    assert carried > 0
    assert report.by_group["left"] == pytest.approx(report.by_node["left"].weight + 0.75 * carried)
    assert report.by_group["right"] == pytest.approx(report.by_node["right"].weight + 0.25 * carried)


def test_bits_matter_and_may_differ_per_layer(block):
    batches = drawn(3, 6, 6)
    two, four = (analyze_sensitivity(block, batches, "kl", bits) for bits in (2, 4))
    assert sum(node.total for node in two.by_node.values()) > 2 * sum(node.total for node in four.by_node.values())
    mixed = analyze_sensitivity(block, batches, "kl", {"second": 2})
    assert mixed.by_node["second"].weight == pytest.approx(two.by_node["second"].weight)
    assert mixed.by_node["first"].weight == 0


def test_defaults(block):
    assert analyze_sensitivity(block).metric == "sqnr"
    assert METRICS[analyze_sensitivity(block, drawn(3, 6, 6)).metric].needs_data


@pytest.mark.parametrize("metric", METRICS)
def test_progress_counts_to_the_end(block, metric):
    seen: list[tuple[int, int]] = []
    analyze_sensitivity(block, drawn(3, 6, 6), metric, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[-1][0] == seen[-1][1]


def test_what_cannot_be_measured_is_refused_in_one_line(block):
    batches = drawn(3, 6, 6)
    bad = copy.deepcopy(block)
    bad.get_parameter("second.weight").data[0, 0, 0, 0] = float("nan")
    cases: list[tuple[str, dict[str, Any]]] = [
        ("no sensitivity metric 'guess': choose one of sqnr", {"batches": batches, "metric": "guess"}),
        ("the loss metric needs data: give batches, or choose sqnr", {"batches": None, "metric": "loss"}),
        ("9 bits: choose 1 to 8", {"batches": batches, "bits": 9}),
        ("the batches do not fit the model: .*first", {"batches": [(torch.randn(2, 5, 6, 6), torch.zeros(2).long())]}),
        ("the loss does not fit", {"batches": [(torch.randn(2, 3, 6, 6), torch.zeros(3).long())], "metric": "fisher"}),
        (
            "NaN or infinite on these batches",
            {"batches": [(torch.full((2, 3, 6, 6), torch.inf), torch.zeros(2).long())], "metric": "loss"},
        ),
        (
            "the gauss_newton sensitivity of first is not finite",
            {"batches": [(torch.full((2, 3, 6, 6), torch.inf), None)]},
        ),
    ]
    for message, options in cases:
        with pytest.raises(InputError, match=message) as caught:
            analyze_sensitivity(block, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="layer second has weights that are NaN"):
        analyze_sensitivity(bad, batches)
    with pytest.raises(InputError, match=r"does not know the curvature of .*cross_entropy: choose fisher"):
        analyze_sensitivity(block, batches, "gauss_newton", loss=F.cross_entropy)
    detached = traced(Detached(), 3, 6, 6)
    for metric in ("gauss_newton", "fisher", "hessian"):
        with pytest.raises(InputError, match="is it detached"):
            analyze_sensitivity(detached, batches, metric)
    for metric, known in METRICS.items():
        if known.needs_data:
            with pytest.raises(InputError, match=f"the {metric} metric needs data"):
                analyze_sensitivity(block, None, metric)


class Detached(nn.Module):
    """What it gives depends on no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.layer(x).detach().mean((2, 3))


def test_a_report_and_its_plan_say_which_batches_they_come_from(block):
    batches = drawn(3, 6, 6)
    report = analyze_sensitivity(block, batches)
    assert (report.batches["batches"], report.batches["samples"]) == (2, 12)
    assert analyze_sensitivity(block, drawn(3, 6, 6)).batches == report.batches
    changed = [(inputs.clone(), target.clone()) for inputs, target in batches]
    changed[1][1][0] = (changed[1][1][0] + 1) % 4
    assert analyze_sensitivity(block, changed).batches["sha256"] != report.batches["sha256"]
    assert analyze_sensitivity(block, None).batches == {}
    channels = analyze_channels(block)
    cost = nce_fx.analyze_cost(block, channels)
    plan = nce_fx.plan_widths(channels, cost, report, nce_fx.Budget(macs=1.0))
    assert plan.source["measured_on"] == report.batches
    assert (
        nce_fx.rewrite(copy.deepcopy(block), (batches[0][0],), batches=batches).plan.source["measured_on"]
        == report.batches
    )


class Viewing(nn.Module):
    """A view after a convolution: it refuses what lies channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4 * 6 * 6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().view(x.shape[0], -1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("metric", ["kl", "loss"])
def test_one_at_a_time_leaves_the_layout_of_the_model_and_takes_views(metric):
    for model in (Viewing(), MODELS["resnet8"]()):
        gm = nce_fx.trace(model.eval(), (torch.randn(1, 3, 8, 8),))
        report = analyze_sensitivity(gm, drawn(3, 8, 8, count=1), metric)
        assert all(value.is_contiguous() for value in gm.parameters())
        assert any(node.weight for node in report.by_node.values())
